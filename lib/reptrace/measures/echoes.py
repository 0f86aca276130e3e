"""How much of a text is said again: stretches of tokens that stood in it before, or in what it goes on from.

Text that is real repeats itself a little, too, and the more the longer it is: compare texts of one length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GRAM = 4  # tokens of a stretch


def echoes(prompt: Sequence[int], written: Sequence[int], gram: int = GRAM) -> dict[str, float]:
    """Shares of the stretches of `gram` tokens of what was written: those that stood in it before (`repeated`), and
    those that stand in the prompt (`copied`). Both are nan of a text that is shorter than one."""
    there = {tuple(prompt[k : k + gram]) for k in range(len(prompt) - gram + 1)}
    each = [tuple(written[k : k + gram]) for k in range(len(written) - gram + 1)]
    if not each:
        return {"repeated": math.nan, "copied": math.nan}
    return {"repeated": 1 - len(set(each)) / len(each), "copied": sum(one in there for one in each) / len(each)}
