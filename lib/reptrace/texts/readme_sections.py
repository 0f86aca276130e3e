"""A page in Markdown or reStructuredText -> its sections, each a heading with what stands under it.

By lines, with no parser of either: what a package calls its markup is often wrong, or not said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HASHES = re.compile(r"#{1,6}[ \t]")
RULE = re.compile(r"""([=\-~^"'*+#])\1{2,}\s*$""")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def sections(page: str) -> list[str]:
    """The page cut before each heading, of whatever level; the first part may have none."""
    lines = page.split("\n")
    starts = [0, *_headings(lines)]
    parts = ("\n".join(lines[first:end]) for first, end in zip(starts, [*starts[1:], len(lines)], strict=True))
    return [part.strip() for part in parts if part.strip()]


def _headings(lines: Sequence[str]) -> list[int]:
    """Numbers of the lines that headings begin at; "# comments" in fenced code are none."""
    found, fence = [], ""
    for number, line in enumerate(lines):
        title = lines[number - 1] if number else ""
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif HASHES.match(line):
            found.append(number)
        elif RULE.match(line) and title[:1].strip() and not RULE.match(title):
            above = number > 1 and lines[number - 2].strip() == line.strip()  # reST may rule a title above as well
            found.append(number - 1 - above)
        elif opened := FENCE.match(line):
            fence = opened[1]
    return found
