"""Other forms under the name of a plain text, and plain texts that begin like them.

Trusted: what each sample here was written as. The two lists stand against each other: whatever refuses more of the
first may not refuse any of the second.
"""

import gzip
import json
import re

import pytest

from reptrace.texts.text_files import read
from reptrace.texts.text_forms import other_form

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
    "in a script": f"window.YTD.tweets.part0 = {json.dumps(ROWS, indent=2)}",
    "in a script, cut": f"window.YTD.tweet.part0 = {json.dumps(ROWS, indent=2)}"[:-20],
    "in a script, ended": f"window.YTD.tweets.part0 = {json.dumps(ROWS)};",
    "objects as Python shows them": "\n".join(map(str, ROWS)), "one as Python shows it": str(ROWS[0]),
    "array as Python shows it": str(ROWS), "as Python shows them, apart": "\n\n".join(map(str, ROWS)),
    "under a heading": f"# Rows\n\n{LINES[0]}\n{LINES[1]}", "array under a heading": f"# Rows\n\n{json.dumps(ROWS)}",
    "strings after a comment": '# made by hand\n"one text"\n"two"', "strings, commas, apart": '"one",\n\n"two",\n',
    "array after a comment": '// note\n["x"]',
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
    "other capitals": "<novel>one & two</Novel>", "after blanks": f"\n\n  {HTML}",
    "minified": "<html lang=en>one<p>two",
    "page, text at once": "<html>one <p>two", "body, text behind": "<body> one</p> <p>two",
    "parallel": "<source>one</source>\n<target>two</target>",
    "doc, text between": "<doc>\na\n</doc>\nb\n<doc>\nc\n</doc>\nd",
    "corpus, text behind": '<corpus>\n<doc id="1">a</doc>\n</corpus>\nThe end.',
    "xml elements": "<a1>a</a1>\n<a2>b</a2>",
}
# Markup where it calls itself plain text; in Markdown it may stand
HTML_ALONE = {
    "paragraphs": "<p>one <b>two</b></p>\n\n<p>three</p>", "divisions": '<div class="a"><h1>one</h1></div>',
    "struck": "<s>one two</s>\n<s>three</s>", "paragraph": "<p>one\n\ntwo & three</p>",
    "list": "<UL>\n<li>one<br>\n<li>two\n</ul>",
    "divisions, not well-formed": '<div class="post">one<br>two &nbsp;</div>\n<div class="post">three<br>four</div>',
    "tables": "<table><tr><td>one<td>two</table>\n<table><tr><td>a<td>b</table>",
    "title": "<h1>One</h1>\n<p>First<br>para &nbsp;</p>\n<p>second</p>",
    "picture": "<img src=a.png>\n<p>a</p>\n<p>b</p>",
    "details": "<details>\n<summary>one</summary>\ntwo\n</details>",
    "anchors": '<a name="top"></a>\nText\n\n<a href="#top">Up</a>',
    "two details": "<details>\n<summary>More</summary>\n\n* & that\n\n</details>\n\ntext\n\n"
    "<details>\n& more\n</details>",
    "readme": '<p align="center">\n<img src="a.png">\n</p>\n\n# Title\n\nProse.\n\n<p align="center">The end</p>\n',
    "after a comment": "<!-- a -->\n<div>one<br>two</div>",
}
PLAIN = [
    "[1] first\n\n[2] second", "[1] [2] see both", "[1]: https://a.b\n[2]: https://c.d", "{a} is a set\n\n{b}", "{",
    "[", '"',
    "<p> is a tag\n\nand so on", "<doc> is a tag\n\nand </doc> ends it, as one sees", "<alice> hello\n<bob> hi\n",
    "< 5 is small\n> 5 is large", "<3 you\n\nall", "<unk> and <s> stand for words", "<|endoftext|>\none",
    "<think>\nhm\n</think>\n\nThe answer is 4.", "<https://a.b> is a link",
    '"Hello," she said.\n"And you?"\n', '"Hope" is the thing with feathers\nThat perches in the soul', '"Hello."',
    '"Be yourself; everyone else is taken."\n\n"So many books, so little time."\n\n"A room without books."',
    '"One."\n"Two."\n\n"Three."\n"Four."', '# Quotes\n\n"To be."\n"Not to be."\n', "# Title\n\n[1, 2]",
    '# Title\n\n["a", "b"]\n', "# Title\n  \n[1, 2]\n[3, 4]", "<body> is where it goes. Prose.",
    "<html> is a tag. Prose.", "<html> is a tag.\n\n<body> is another.", "<head>, <body>: parts of a page",
    "<s>[INST] Hi [/INST] Hello </s>", "<s> [INST] a < b? [/INST] Yes </s>\n<s>[INST] Hi [/INST] Hello </s>",
    "<document>\nabc\n</document>\nSummarize this document.", '<doc id="1">\na < b\n</doc>\n\nSummarize this.',
    "<name>, thank you.\n\nRegards, <name>", "{'a': 1} is an object.", "{'a': 1}\n\nis an object of Python",
    "window.onload = [1] of them", "<https://a.b>",
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
    '<img src="a.png">\n\n# Title\n\n<br>\n\ntext', "<h1 align=center>Title</h1>\n\ntext\n\n<h2>Part</h2>",
    "# Title\n\n<svg width='1'></svg>\n\n<p>text</p>", "text\n\n<html>\n</html>", "The page:\n\n<!DOCTYPE html>\n<p>a",
    "---\ntitle: a\n---\n\n# Title", "", "\n\n", "- text: a\n\n- text: b", "From: me\n\nHello", "%PS is no header",
]


@pytest.mark.parametrize("name", JSON)
def test_json_under_the_name_of_a_plain_text_is_refused(name):
    assert re.match("JSON|objects as Python", other_form(JSON[name]) or "")


@pytest.mark.parametrize("name", CUT)
def test_json_that_is_cut_off_in_its_last_line_is_refused_too(name):
    last = max(CUT[name].rfind("\n"), len(CUT[name]) - 20)
    for length in range(last + 4, len(CUT[name])):
        assert "JSON" in (other_form(CUT[name][:length]) or ""), CUT[name][:length]


@pytest.mark.parametrize("name", MARKUP)
@pytest.mark.parametrize("markdown", [False, True])
def test_markup_under_the_name_of_a_plain_text_is_refused(name, markdown):
    assert other_form(MARKUP[name], markdown) == "markup: take the text out first"


@pytest.mark.parametrize("name", HTML_ALONE)
def test_elements_of_html_alone_are_refused_as_a_plain_text_and_may_stand_in_markdown(name, tmp_path):
    assert other_form(HTML_ALONE[name]) == "markup: take the text out first"
    for suffix in (".md", ".MD", ".md.gz"):
        path = tmp_path / f"a{suffix}"
        content = HTML_ALONE[name].encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        assert "".join(read(path).documents) in HTML_ALONE[name].replace("\n\n", "")


@pytest.mark.parametrize("markdown", [False, True])
@pytest.mark.parametrize("text", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_text_may_begin_hold_or_end_with_other_forms(text, markdown):
    assert other_form(text, markdown) is None


@pytest.mark.parametrize(("text", "advice"), [
    (HTML, "markup: take the text out first"),
    (f"window.a.b = {LINES[0]}", 'JSON behind "window.a.b =": take that out'),
    (str(ROWS[0]), "objects as Python shows them: write each with json.dumps"),
    ("\n".join(LINES), "JSON lines: name it .jsonl"), (json.dumps(ROWS), "JSON: name it .json"),
    ("\n".join(PRETTY), "JSON, not all of it whole or of one form: make it one object a line"),
    (",\n".join(LINES), "JSON, not all of it whole or of one form: make it one object a line"),
    ('"one"\n"two"', "JSON, not all of it whole or of one form: make it one object a line")])
def test_it_is_said_what_would_read_it(text, advice, tmp_path):
    for name in ("a.txt", "a.md"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=f"{name} holds {advice}.*; or, where it is meant as it stands, put it "
                           r"into \.jsonl\.$"):
            read(path)


def test_large_and_deep_texts_are_no_obstacle():
    assert other_form("[" * 100_000) is None and other_form("<a>" * 10_000) is None
    assert other_form("\n".join(LINES * 5000)).startswith("JSON lines")
    assert other_form('"word" ' * 200_000) is None and other_form("<!-- " * 20_000) is None
    for part in ("<!-- ", "<a>", "<a></b>", "</b>", "<![a", "<!a", "<?a ", "<a b='", "&a", "<a ", "<!--", "<script>"):
        for whole in (part * 20_000 + ">", f"<p>{part * 20_000}</i>", f"<br>a{part * 20_000}>"):
            assert other_form(whole) in (None, "markup: take the text out first")
