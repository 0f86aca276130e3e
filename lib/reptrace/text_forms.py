"""What a text is that calls itself plain: JSON or markup, told from prose and code that merely begins or ends like it.

A guess, so it asks for more than a first brace: the whole must be of that form, or most lines, or what only such files
begin with.
"""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

_JSON_BEGINS = re.compile(r'\{\s*"[^"\n]*"\s*:|\[\s*(?:\{\s*"|"[^"\n]*"\s*[,\]])')
_BETWEEN = re.compile(r"[\s,]*")
_COMMENTS = re.compile(r"(?:\s*<!--.*?-->)*\s*", re.DOTALL)
_PAGE = re.compile(r"<(\?xml|!doctype|html|head|body)\b", re.IGNORECASE)
# An element that holds documents or pictures, with attributes, or with nothing but tags behind it on its line
_WRAPPER = re.compile(r"<(add|articles?|atom|corpus|data|dataset|docs?|documents?|feed|gpx|kml|math|mediawiki|pages?|"
                      r"records?|root|rss|svg|tei|teicorpus|texts?|tmx|urlset|xml)"
                      r"(\s+[\w:.-]+\s*=\s*[\"'][^>]*|\s*/?>\s*?(\n|<|$))", re.IGNORECASE)
_FIRST_TAG = re.compile(r"<([A-Za-z_][\w:.-]+)[^<>]*>")
# Elements that Markdown and plain prose put between words
_WITHIN_PROSE = {
    "abbr", "blockquote", "br", "center", "code", "dd", "del", "details", "div", "dl", "dt", "em", "figure", "font",
    "h1", "h2", "h3", "h4", "h5", "h6", "hr", "iframe", "img", "ins", "kbd", "li", "mark", "ol", "picture", "pre",
    "samp", "small", "span", "strong", "sub", "summary", "sup", "table", "td", "th", "tr", "tt", "ul", "var",
    "video"}


def other_form(text: str) -> str | None:
    """What a text is if not a plain one, with what to do; line ends are newlines."""
    text = text.strip()
    return _markup(text) or _json_form(text)


def loaded(text: str):
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _markup(text: str) -> str | None:
    text = text[_COMMENTS.match(text).end() :]
    if not text.startswith("<"):
        return None
    first = _FIRST_TAG.match(text)
    enclosed = first and first[1].lower() not in _WITHIN_PROSE and text.endswith(f"</{first[1]}>")
    found = _PAGE.match(text) or _WRAPPER.match(text) or enclosed or _is_xml(text)
    return "markup: take the text out first" if found else None


def _is_xml(text: str) -> bool:
    """Whether a text consists of well-formed elements, with nothing outside of them."""
    if not text.endswith(">"):
        return False
    try:
        root = ElementTree.fromstring(f"<x>{text}</x>")
    except (ElementTree.ParseError, RecursionError):
        return False
    return not any((each.tail or "").strip() for each in root)


def _json_form(text: str) -> str | None:
    text = re.sub(r"\A(?:\s*(?:#|//).*(?:\n|\Z))+\s*", "", text)  # comments before it
    if not text.startswith(("{", "[", '"')):
        return None
    if isinstance(loaded(text), (dict, list)):
        return "JSON: name it .json"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(isinstance(loaded(line), dict) for line in lines):
        return "JSON lines: name it .jsonl"
    if _consists_of_json(text) or 2 * sum(map(_consists_of_json, lines)) > len(lines) or _are_strings(lines):
        return ("JSON, not all of it whole or of one form: make it one object a line and name it .jsonl, or one array "
                "and name it .json")
    return None


def _consists_of_json(text: str) -> bool:
    """Whether a text is objects and arrays, one after another, of which the last may be cut off or damaged."""
    decoder, start = json.JSONDecoder(), 0
    while start < len(text):
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            return bool(_JSON_BEGINS.match(text, start))
        if not isinstance(value, (dict, list)):
            return False
        start = _BETWEEN.match(text, start).end()
    return True


def _are_strings(lines: list[str]) -> bool:
    """Whether every line is one string in double quotes, or the last one the beginning of one."""
    lines = [line.rstrip(", ") for line in lines]
    return len(lines) > 1 and all(isinstance(loaded(line), str) for line in lines[:-1]) and (
        isinstance(loaded(lines[-1]), str) or isinstance(loaded(f'{lines[-1]}"'), str))
