"""Numbers in the fixed words of the book: settings and levels alone; what is measured is computed by the pages.

Trusted: the words as they are kept, and, for the table in the method, the program that stands below it.
"""

import contextlib
import io
import json
import re

import pytest

from reptrace.report.profiles import ROOT

PAGES = (*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "book/index.md", ROOT / "book/lab.md",
         ROOT / "book/own_model.md", ROOT / "book/own_posttraining.md", ROOT / "book/posttraining_paper.md",
         ROOT / "book/glossary.md")
NUMBER = r"\d[\d,]*\.\d+|\d[\d,]* (?:%|minutes?|seconds?|hours?|thousand|million|billion|of \d+)"
NOT_MEASURED = r"section \d\.\d|95 %|95 of 100|about 3 %"  # a place in the paper, levels, how well a figure is read
SETTINGS = {  # what a page sets or asks, not what it found
    "estimators": "90 to 98 %",
    "fig03_capabilities": r"fewer than 2\.5 or more than 97\.5 %",  # the same level, at either end
    "fig04_toy_dynamics": r"jitter of 0\.001|rate of 0\.25|changes of 2 %|scale 0\.1|more than 5 % of starts",
    "fig12_13_controls": r"fewer than 5 % of starts|in over 5 %|within 1 % of its last value",
    "fig05_post_training": r"Tulu 3\.1|2606\.04272",  # names
    "settings_tried": r"\*\*Not in the table:\*\*.*",  # runs of which no table is left
    "lab": r"size set \(2 % at first\)|#b=[^\"]*"}


def prose(page):
    """A page's words, without code, mathematics, citations and exercises."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return " ".join(re.sub(r"```.*?```|## Exercises.*|`[^`]*`|\$[^$]*\$", "", text, flags=re.S).split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_measured_number_stands_in_fixed_prose(page):
    allowed = "|".join(filter(None, (NOT_MEASURED, SETTINGS.get(page.stem))))
    assert re.findall(NUMBER, re.sub(allowed, "", prose(page))) == []


def test_what_a_page_is_allowed_to_say_is_said():
    for page in PAGES:
        if page.stem in SETTINGS:
            for setting in SETTINGS[page.stem].split("|"):
                assert re.search(setting, prose(page)), setting


def test_the_method_s_table_is_what_the_program_below_it_prints():
    text = (ROOT / "book/method.md").read_text()
    program = re.search(r"The program behind this table.*?```python\n(.*?)```", text, flags=re.S)[1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    found = dict(line.split() for line in printed.getvalue().splitlines())
    cells = [[cell.strip() for cell in row.split("|")[2:-1]]
             for row in re.findall(r"^\| (?:sequences per dimension|RankMe measured).*$", text, flags=re.M)]
    assert found == dict(zip(*cells, strict=True))
