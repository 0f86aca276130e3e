"""Other forms under the name of a plain text, and plain texts that begin like them.

Trusted: what each sample here was written as. The two lists stand against each other: whatever refuses more of the
first may not refuse any of the second.
"""

import json

import pytest

from reptrace.text_files import read
from reptrace.text_forms import other_form

ROWS = [{"text": "one two", "id": k, "more": ["a", {"b": None}]} for k in range(3)]
LINES = [json.dumps(row) for row in ROWS]
PRETTY = [json.dumps(row, indent=2) for row in ROWS]
HTML = "<html>\n<head><title>t</title></head>\n\n<body>\n<p>one<br>two\n\n<p>three\n</body>\n</html>"

JSON = {
    "lines": "\n".join(LINES), "lines apart": "\n\n".join(LINES), "one line": LINES[0],
    "pretty array": json.dumps(ROWS, indent=1),
    "one pretty object": PRETTY[0], "pretty objects": "\n".join(PRETTY), "pretty objects apart": "\n\n".join(PRETTY),
    "objects on one line": " ".join(LINES), "strings, a line each": '"one text"\n\n"two \\"text\\""\n',
    "arrays, a line each": '["a", "b"]\n\n["c", "d"]\n', "numbers in arrays": "[1, 2]\n[3, 4]\n",
    "arrays of objects, a line each": f"[{LINES[0]}]\n[{LINES[1]}]\n",
    "commas behind": ",\n".join([*LINES, ""]), "array without its brackets": ",\n".join(PRETTY),
    "array a line each": "[\n" + ",\n".join(LINES) + "\n]",
    "a comma too many": "[" + ",\n".join(LINES) + ",\n]",
    "after a comment": f"# made by hand\n// so\n\n{LINES[0]}\n{LINES[1]}",
    "one after a comment": f"# made by hand\n{LINES[0]}", "pretty after a comment": f"# made by hand\n{PRETTY[0]}",
    "damaged within": "\n".join([LINES[0], LINES[1][:-5], LINES[2]]), "comment within": "\n".join([LINES[0], "# no",
    LINES[1]]),
    "strings and commas": '"one text",\n"two text",\n', "blank": "{}\n{}\n",
    "single quotes in one": "\n".join([*LINES, "{'text': 'a'}"]),
}
CUT = {"lines": "\n".join(LINES), "two lines": "\n".join(LINES[:2]), "lines apart": "\n\n".join(LINES),
       "pretty": "\n".join(PRETTY), "array": json.dumps(ROWS), "pretty array": json.dumps(ROWS, indent=2),
       "array a line each": "[\n" + ",\n".join(LINES), "strings": '"one text"\n"two texts"',
       "array of strings": json.dumps(["one text", "two texts", "three"], indent=1)}
MARKUP = {
    "corpus": '<corpus>\n<doc id="1">a</doc>\n\n<doc id="2">b</doc>\n\n</corpus>', "corpus, cut": "<corpus>\n<doc>a",
    "wiki": '<doc id="12" url="x" title="A">\nText a & b\n</doc>\n\n<doc id="13">\nb\n</doc>', "doc": "<doc>\na & b\n",
    "doc on a line": '<doc id="1">a & b</doc>\n<doc id="2">c', "svg": "<svg>\n\n<a/>\n</svg>",
    "svg with attributes": '<svg xmlns="http://www.w3.org/2000/svg"\n width="4">\n<path d="M 0 0',
    "feed": '<feed xmlns="a">\n',
    "rss": '<rss version="2.0">\n\n<item>a</item>\n\n</rss>', "xml": '<?xml version="1.0"?>\n<a>b</a>', "page": HTML,
    "comment, page": f"<!-- saved\nfrom -->\n{HTML}", "comments, xml": "<!-- a --><!-- b -->\n\n<rss>\n<a/>\n</rss>",
    "doctype": "<!DOCTYPE html>\n<p>a", "body": "<body>\n<p>one",
    "any element around": "<novel>\none & two\n\nthree\n</novel>",
    "any element around, with attributes": '<poem by="me">one & two</poem>', "capitals": "<SVG>\n<A/></SVG>",
    "paragraphs": "<p>one <b>two</b></p>\n\n<p>three</p>", "divisions": '<div class="a"><h1>one</h1></div>',
    "any elements": "<s>one two</s>\n<s>three</s>", "after blanks": f"\n\n  {HTML}",
}
PLAIN = [
    "[1] first\n\n[2] second", "[1] [2] see both", "[1]: https://a.b\n[2]: https://c.d", "{a} is a set\n\n{b}", "{",
    "[", '"',
    "<p> is a tag\n\nand so on", "<doc> is a tag\n\nand </doc> ends it, as one sees", "<alice> hello\n<bob> hi\n",
    "< 5 is small\n> 5 is large", "<3 you\n\nall", "<unk> and <s> stand for words", "<|endoftext|>\none",
    "<think>\nhm\n</think>\n\nThe answer is 4.", "<https://a.b> is a link",
    '"Hello," she said.\n"And you?"\n', '"Hope" is the thing with feathers\nThat perches in the soul', '"Hello."',
    '"Hello."\n"And so on," he said.', '"Stop!"\nHe did not.', '"One"\n"Two"\n\nBuckle my shoe.',
    f"{LINES[0]}\n\nis an object in JSON.", f"{LINES[0]} is an object.\n\nSo it is.",
    f"{LINES[0]} {LINES[1]} are objects.",
    f"An object:\n\n{LINES[0]}\n", f"{LINES[0]}\n\nThat was one.\n\n{LINES[1]}\n\nThat was another.",
    f"# JSON\n\nAn object:\n\n{LINES[0]}\n{LINES[1]}\n", f"```json\n{PRETTY[0]}\n```\n\nis an object",
    f"Pretty:\n\n{PRETTY[0]}\n", '{"a"} is a set of one', '["a"] is a list\n\nso is ["b"]', '[["a"]] is nested\n\nyes',
    "[[Link]] to a page\n\nand more", "[Verse 1]\nla la\n\n[Chorus]\nla", "{{template}} of a page",
    "{% if a %}\nb\n{% endif %}",
    "[x] done\n[ ] to do", "5\n\n6", "null\n\ntrue", "\\documentclass{article}\n\n\\begin{document}a\\end{document}",
    "{\\bf Title}\n\ntext", "% !TeX program\n\n\\section{A}", "{\n  int a;\n}\n\nint main() {}", "[section]\nkey = 1\n",
    '[tool]\na = ["b", "c"]\n', "#include <stdio.h>\n\nint main() { return 0; }", "// a comment\nint main() {}",
    "# a comment\n\nx = {'a': 1}", '# Title\n\n"Quoted," he said.', 'x = {"a": 1}\ny = {"b": 2}\n',
    '@decorator\ndef f(): {"a": 1}',
    "<!-- a comment -->\n# Title\n\ntext",
    "<!-- a\ncomment -->\n\n<p align='center'>\n<img src='a.png'>\n</p>\n\n# Title\n\ntext",
    '<div align="center">\n\n# Title\n\n</div>\n\ntext <b>bold</b>', "<!-- only a comment, never ended",
    "<details>\n<summary>More</summary>\n\n* & that\n\n</details>\n\ntext\n\n<details>\n& more\n</details>",
    '<img src="a.png">\n\n# Title\n\n<br>\n\ntext', "<h1 align=center>Title</h1>\n\ntext\n\n<h2>Part</h2>",
    "# Title\n\n<svg width='1'></svg>\n\n<p>text</p>", "text\n\n<html>\n</html>", "The page:\n\n<!DOCTYPE html>\n<p>a",
    "---\ntitle: a\n---\n\n# Title", "", "\n\n", "- text: a\n\n- text: b", "From: me\n\nHello", "%PS is no header",
]


@pytest.mark.parametrize("name", JSON)
def test_json_under_the_name_of_a_plain_text_is_refused(name):
    assert "JSON" in (other_form(JSON[name]) or "")


@pytest.mark.parametrize("name", CUT)
def test_json_that_is_cut_off_in_its_last_line_is_refused_too(name):
    last = max(CUT[name].rfind("\n"), len(CUT[name]) - 20)
    for length in range(last + 4, len(CUT[name])):
        assert "JSON" in (other_form(CUT[name][:length]) or ""), CUT[name][:length]


@pytest.mark.parametrize("name", MARKUP)
def test_markup_under_the_name_of_a_plain_text_is_refused(name):
    assert other_form(MARKUP[name]) == "markup: take the text out first"


@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_text_may_begin_hold_or_end_with_other_forms(text):
    assert other_form(text) is None


@pytest.mark.parametrize(("text", "advice"), [
    ("\n".join(LINES), "JSON lines: name it .jsonl"), (json.dumps(ROWS), "JSON: name it .json"),
    ("\n".join(PRETTY), "JSON, not all of it whole or of one form: make it one object a line"),
    (",\n".join(LINES), "JSON, not all of it whole or of one form: make it one object a line"),
    ('"one"\n"two"', "JSON, not all of it whole or of one form: make it one object a line")])
def test_it_is_said_what_would_read_it(text, advice, tmp_path):
    for name in ("a.txt", "a.md"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name} holds {advice}"):
            read(path)


def test_large_and_deep_texts_are_no_obstacle():
    assert other_form("[" * 100_000) is None and other_form("<a>" * 10_000) is None
    assert other_form("\n".join(LINES * 5000)).startswith("JSON lines")
    assert other_form('"word" ' * 200_000) is None and other_form("<!-- " * 20_000) is None
