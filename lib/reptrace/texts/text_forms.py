"""What a text is that calls itself plain: JSON or markup, told from prose and code that merely begins or ends like it.

A guess, so it asks for more than a first brace: the whole must be of that form, or most lines, or what only such files
begin with.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from xml.etree import ElementTree

_JSON_BEGINS = re.compile(r'\{\s*"[^"\n]*"\s*:|\[\s*(?:\{\s*"|"[^"\n]*"\s*[,\]])')
_BETWEEN = re.compile(r"[\s,]*")
_COMMENTS = re.compile(r"(?:\s*<!--.*?-->)*\s*", re.DOTALL)
_NOTES = re.compile(r"(?:\s*(?:#|//).*(?:\n|\Z))*\s*")  # comments, or headings, before JSON
_HEADING = re.compile(r"^[ \t]*#.*\n[ \t]*\n", re.MULTILINE)
_OBJECTS_BEGIN = re.compile(r"[\[\s]*\{")
_ASSIGNED = re.compile(r"(window\.[\w.$]+\s*=)\s*(?=[\[{])")  # as archives of social networks have it
_OF_PYTHON = re.compile(r"\[?\{\s*'[^'\n]*'\s*:.*\}\]?,?")
# A page, unless prose speaks of the tag: <html> is a tag
_PAGE = re.compile(r"<(\?xml\b|!doctype\b|(html|head|body)(\s+[^\s<>][^<>]*>|\s*/?>(?![ \t]+[^\s<]|[.,;:!?)])))",
                   re.IGNORECASE)
_PAGE_TAG = re.compile(r"<(html|head|body)\s*>", re.IGNORECASE)
# An element that holds documents or pictures, with attributes, or with nothing but tags behind it on its line
_WRAPPER = re.compile(r"<(add|articles?|atom|corpus|data|dataset|docs?|documents?|feed|gpx|kml|math|mediawiki|pages?|"
                      r"records?|root|rss|svg|tei|teicorpus|texts?|tmx|urlset|xml)"
                      r"(\s+[\w:.-]+\s*=\s*[\"'][^>]*|\s*/?>\s*?(\n|<|$))", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z_]")
_FIRST_TAG = re.compile(r"<([A-Za-z_][\w:.-]*)[^<>]*>")
_CHAT = re.compile(r"<s>\s*\[INST\]")  # <s> begins a text for a model here
# Elements that Markdown puts between and around words
_OF_MARKDOWN = {
    "a", "abbr", "b", "blockquote", "br", "center", "code", "dd", "del", "details", "div", "dl", "dt", "em", "figure",
    "font", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "iframe", "img", "ins", "kbd", "li", "mark", "ol", "p",
    "picture", "pre", "q", "s", "samp", "small", "span", "strong", "sub", "summary", "sup", "table", "td", "th", "tr",
    "tt", "u", "ul", "var", "video"}
_EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def other_form(text: str, markdown: bool = False) -> str | None:
    """What a text is if not a plain one (or, with `markdown`, Markdown), with what to do; line ends are newlines."""
    text = text.strip()
    return _markup(text, markdown) or _json_form(text)


def loaded(text: str):
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _markup(text: str, markdown: bool) -> str | None:
    text = text[_COMMENTS.match(text).end() :]
    if not text.startswith("<") or _CHAT.match(text):
        return None
    first = _FIRST_TAG.match(text)
    name = first[1].lower() if first else ""
    found = _PAGE.match(text) or (_PAGE_TAG.match(text) and "</" in text)
    found = found or (_WRAPPER.match(text) and not _is_but_one(text, name))
    if not (markdown and name in _OF_MARKDOWN):
        enclosed = name and text[-len(name) - 3 :].lower() == f"</{name}>"
        found = found or enclosed or _is_xml(text) or _is_html(text)
    return "markup: take the text out first" if found else None


def _is_but_one(text: str, name: str) -> bool:
    """Whether there is but one element, which may stand before prose: <document>...</document> Summarize this."""
    return f"</{name}>" in text.lower() and len(_TAG.findall(text)) == 2


def _is_xml(text: str) -> bool:
    """Whether a text consists of well-formed elements, with nothing outside of them."""
    if not text.endswith(">"):
        return False
    try:
        root = ElementTree.fromstring(f"<x>{text}</x>")
    except (ElementTree.ParseError, RecursionError):
        return False
    return not any((each.tail or "").strip() for each in root)


class _Elements(HTMLParser):
    """Elements of HTML as browsers take them: which are open, and whether text stands outside of all."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.outside = [], Counter(), False

    def handle_starttag(self, tag, attrs):
        if tag not in _EMPTY:
            self.open.append(tag)
            self.count[tag] += 1

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        last = "" if self.count[tag] else tag
        while last != tag:  # those within it end with it
            last = self.open.pop()
            self.count[last] -= 1

    def handle_data(self, data):
        self.outside |= not self.open and bool(data.strip())


def _is_html(text: str) -> bool:
    """Whether a text consists of elements of HTML, with nothing outside of them, and all of them are closed."""
    if not text.endswith(">"):
        return False
    elements = _Elements()
    try:
        elements.feed(text)
        elements.close()
    except AssertionError:  # how the parser refuses some declarations
        return False
    return not elements.open and not elements.outside


def _json_form(text: str) -> str | None:
    assigned = _ASSIGNED.match(text)
    if assigned and _json_form(text[assigned.end() :].rstrip("; \n")):
        return f'JSON behind "{assigned[1]}": take that out and name it .json'
    notes = _NOTES.match(text)[0]
    text = text[len(notes) :]
    if not text.startswith(("{", "[", '"')) or (_HEADING.search(notes) and not _OBJECTS_BEGIN.match(text)):
        return None
    if isinstance(loaded(text), (dict, list)):
        return "JSON: name it .json"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and all(isinstance(loaded(line), dict) for line in lines):
        return "JSON lines: name it .jsonl"
    if 2 * sum(map(bool, map(_OF_PYTHON.fullmatch, lines))) > len(lines):
        return "objects as Python shows them: write each with json.dumps, one a line, and name it .jsonl"
    strings = _are_strings(lines) and not _are_quotations(text)
    if _consists_of_json(text) or 2 * sum(map(_consists_of_json, lines)) > len(lines) or strings:
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


def _are_quotations(text: str) -> bool:
    """Whether strings are rather quotations: blank lines among them, no commas behind them and no escapes of JSON."""
    return bool(re.search(r"\n[ \t]*\n", text)) and not re.search(r"\\|,[ \t]*$", text, re.MULTILINE)
