"""Parts of a Markdown text that are made, between marks: `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping

MARKED = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def filled(text: str, contents: Mapping[str, str]) -> str:
    """The text with these contents between the marks of their names; what other marks enclose is left as it is."""
    return MARKED.sub(lambda mark: mark[1] + contents[mark[2]] + mark[3] if mark[2] in contents else mark[0], text)


def plain(text: str) -> str:
    """A plain text in Markdown, so that nothing in it is markup."""
    return re.sub(r"([\\`*_{}\[\]<>$#|~])", r"\\\1", text)
