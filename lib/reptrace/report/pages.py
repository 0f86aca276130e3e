"""What every page of the book must have, and what the theme's markup lacks.

`check` looks at an executed notebook before the book is built, `mend` at the built pages.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from reptrace.records.store import write_atomically

# What to drop from the pages, or to change in them, and why.
MENDED = [
    # Twice in every page, which is an error; and the book offers no live code, for which it would go to the network.
    (r"<script>const THEBE_JS_URL.*?</script>\s*", ""),
    (r'<script[^>]*sphinx-thebe\.js[^>]*></script>\s*|<link[^>]*sphinx-thebe\.css[^>]*>\s*', ""),
    (r'<script type="text/x-thebe-config">.*?</script>\s*(?:<script>kernelName = .*?</script>\s*)?', ""),
    # Blocked where a page is opened as a file; the style sheet loads the same fonts.
    (r'<link rel="preload" as="font"[^>]*>\s*', ""),
    # Their names are what they show, "Show code cell source" and "Search Ctrl + K"; two fields had one id.
    (r'(<summary) aria-label="Toggle hidden content"', r"\1"),
    (r'(<button class="btn search-button-field[^>]*?)\s*aria-label="Search"', r"\1"),
    (r'(<div class="search-button__search-container">(?:(?!</div>).)*?)id="search-input"', r'\1id="search-input-2"'),
    (r' role="list"(?= class="citation-list")| role="doc-biblioentry"', ""),  # a list without items, say screen readers
]


def check(page: Path) -> None:
    """That figures and tables of an executed notebook can be read, also by who cannot see them.

    Raises
    ------
    ValueError
        A figure without caption or alternative text, or beside anything else in its cell; a table without a caption.
    """
    for number, cell in enumerate(json.loads(page.read_text())["cells"]):
        shown = [output.get("data", {}) for output in cell.get("outputs", [])
                 if output.get("name") != "stderr"]  # progress, which the book leaves out
        where = f"{page.name}, cell {number} ({''.join(cell['source']).strip().splitlines()[:1]})"
        if any(name.startswith("image/") for data in shown for name in data):
            said = cell["metadata"].get("mystnb", {})
            if not (said.get("figure", {}).get("caption") and said.get("image", {}).get("alt")):
                raise ValueError(f"{where}: a figure without caption and alternative text: show it by figures.show.")
            if len(shown) > 1:
                raise ValueError(f"{where}: the cell shows more than its figure, under which all would stand.")
        markup = "".join("".join(data.get("text/html", "")) for data in shown)
        if markup.count("<table") > markup.count("<caption"):
            raise ValueError(f"{where}: a table without a caption: show it by figures.table.")


def mend(html: Path) -> None:
    """Drop from the built pages what makes errors or what screen readers stumble over; done twice, it does nothing."""
    for page in (path for path in html.rglob("*.html") if path.relative_to(html).parts[0] != "_static"):
        text = page.read_text()
        mended = text
        for pattern, better in MENDED:
            mended = re.sub(pattern, better, mended, flags=re.DOTALL)
        if mended != text:
            write_atomically(page, mended.encode())
