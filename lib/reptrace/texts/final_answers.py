"""The number that a worked solution ends with, and whether it is the right one, as competition problems are checked.

An answer is what stands in the last \\boxed{...}; where there is none, the last number. It is compared as an exact
number: 27, 027, 27.0, $27$, \\frac{54}{2} and 27 \\text{ cm} are one; 27 or 28, 27\\pi and 27x are none.
"""

from __future__ import annotations

import re
from fractions import Fraction

BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
LONGEST = 200  # letters of an answer; what is longer is no number that a problem asks for
DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+"
LAST = re.compile(rf"(?<![A-Za-z0-9_.])(?:(?<![)\]}}])-)?(?:{DIGITS})(?:/\d+)?")
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(-?\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
UNITS = ("degrees", "degree", "units", "unit", "cm", "mm", "m", "km", "meters", "inches", "feet", "miles", "hours",
         "minutes", "seconds", "dollars", "cents", "percent", "points", "ways", "square")
WORDS = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
SIGNS = re.compile(r"\\[,!;:() ]|\\?\$|\\?%|\^\s*\{?\s*\\circ\s*\}?|°")


def final_answer(text: str) -> str | None:
    """What stands in the last box of a text; None where that box is not closed, since the text was cut off in it.

    Without a box, the last number; None where there is no number either.
    """
    boxes = list(BOX.finditer(text))
    if not boxes:
        numbers = LAST.findall(text)
        return numbers[-1] if numbers else None
    start, depth = boxes[-1].end(), 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[start:place].strip()
    return None


def number(answer: str | None) -> Fraction | None:
    """The one number that an answer is, units and signs of layout left out; None where it is anything else."""
    if answer is None or len(answer) > LONGEST:
        return None
    worded = WORDS.sub(lambda found: found[1] if found[1].strip().isdigit() else " ", answer.rpartition("=")[2])
    plain = SIGNS.sub(" ", worded).strip().rstrip(".")
    words = plain.split()
    while len(words) > 1 and words[-1].lower() in UNITS:
        words.pop()
    plain = FRACTION.sub(lambda found: f" {'/'.join(filter(None, found.groups()))} ", " ".join(words)).strip()
    found = re.fullmatch(rf"([-+−]?)\s*({DIGITS})\s*(?:/\s*({DIGITS}))?", plain)
    if not found:
        return None
    sign, above, below = found.groups()
    divisor = Fraction((below or "1").replace(",", ""))
    return None if not divisor else (-1 if sign in ("-", "−") else 1) * Fraction(above.replace(",", "")) / divisor


def right(found: str | None, answer: str) -> bool:
    """Whether what `final_answer` found is the number of a problem's answer; ValueError where that is no number."""
    wanted = number(answer)
    if wanted is None:
        raise ValueError(f"a problem's answer must be a number, got {answer!r}.")
    return number(found) == wanted
