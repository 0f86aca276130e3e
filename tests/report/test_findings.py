"""What the book and README say was found, against planted pages and verdicts, and the tracked ones against the tree.

Trusted: the planted verdicts, the notebooks in the tree, and the standard library's reading of HTML and CSV.
"""

import csv
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from reptrace.report import executing, findings, findings_words, making, verdicts
from reptrace.report.making import chapters
from reptrace.report.profiles import ROOT, Profile
from reptrace.support.marked import MARKED, filled, plain

CLAIMS = verdicts.claims()
TRACKED = ROOT / "data/results/verdicts.csv"


def verdict(claim, said=verdicts.REPRODUCED, runs=3, **changed):
    return verdicts.Verdict(claim, said, **{
        "here": f"{claim} & more", "quantity": "ratio", "value": 0.1234567, "low": 0.1, "high": 0.2, "runs": runs,
        "of": 3, "scale": "3 runs of small models"} | changed)


def page(folder, name, concluded):
    """An executed page that concludes what it is given, in place of one that papermill made."""
    notebook, target = folder / f"{name}.ipynb", folder / f"executed/{name}.ipynb"
    cells = [{"cell_type": "markdown", "source": [f"# Is it {name}?\n", "\n", "Yes."]}]
    notebook.write_text(json.dumps({"cells": cells}))
    made = executing.Page(notebook, {}, target, executing.hash_of(notebook))
    data, metadata = concluded._repr_mimebundle_() if concluded else ({"text/plain": "3"}, {})
    executed = {"cells": [{"cell_type": "code", "source": "", "outputs": [{"data": data, "metadata": metadata}]}],
                "metadata": {"reptrace_key": made.key}}
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(executed))
    return made


@pytest.fixture
def claims(monkeypatch):
    """Three claims: two that a page decides each, and one that none does."""
    rows = CLAIMS[CLAIMS.id.isin(["fig02-compression", "fig03-sciq", "fig07-layers"])].reset_index(drop=True)
    rows["page"], rows["undecided"] = ["phases", "tasks", ""], ["", "", "page to come"]
    for module in (verdicts, findings):
        monkeypatch.setattr(module, "claims", lambda: rows)
    return rows


def pages(folder, first=("fig02-compression",), second=("fig03-sciq",)):
    return [page(folder, name, verdicts.conclude(f"{name}.", [verdict(each) for each in those]))
            for name, those in (("phases", first), ("tasks", second))]


def test_verdicts_are_collected_with_what_made_them(tmp_path, claims):
    table = findings.collect(pages(tmp_path)[::-1], "tiny.yaml")
    assert list(table.claim) == ["fig02-compression", "fig03-sciq"], "in the order of the claims"
    row = table.iloc[0]
    assert (row.page, row.parameters, row.value) == ("phases", "tiny.yaml", 0.123457)
    assert row.notebook == findings.source_hash(tmp_path / "phases.ipynb") and "torch" in json.loads(row.packages)


def test_the_hash_of_a_notebook_follows_its_cells_and_not_its_outputs(tmp_path):
    def hashed(source, **more):
        path = tmp_path / "one.ipynb"
        path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": source, **more}]}))
        return findings.source_hash(path)

    assert hashed("a\nb") == hashed(["a\n", "b"]) == hashed("a\nb", outputs=["1"], metadata={"tags": []})
    assert len({hashed("a\nb"), hashed("a"), hashed("a\nB")}) == 3


def test_the_hash_of_a_notebook_follows_the_tables_that_it_names(tmp_path):
    for folder in ("notebooks", "data/results"):
        (tmp_path / folder).mkdir(parents=True)
    table, notebook = tmp_path / "data/results/one.csv", tmp_path / "notebooks/one.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": 'file = "data/results/one.csv"'}]}))
    table.write_text("a\n1\n")
    before = findings.source_hash(notebook)
    table.write_text("a\n2\n")
    assert findings.source_hash(notebook) != before
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": 'files = "data/results/*.csv"'}]}))
    before = findings.source_hash(notebook)
    (tmp_path / "data/results/two.csv").write_text("a\n1\n")
    assert findings.source_hash(notebook) != before, "one more of several"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": 'file = "data/results/none.csv"'}]}))
    with pytest.raises(FileNotFoundError, match=r"one\.ipynb names data/results/none\.csv"):
        findings.source_hash(notebook)


@pytest.mark.parametrize(("changed", "message"), [
    ({"second": ()}, "fig03-sciq: its page, tasks, states no verdict"),
    ({"first": ("fig02-compression", "fig03-sciq")}, "fig03-sciq: phases decides it, but .* says tasks"),
    ({"second": ("fig03-sciq", "fig07-layers")}, "fig07-layers: tasks decides it, .* nothing does")])
def test_what_does_not_fit_the_claims_fails_the_build(tmp_path, claims, changed, message):
    with pytest.raises(ValueError, match=message):
        findings.collect(pages(tmp_path, **changed), "tiny.yaml")


def test_a_page_whose_notebook_has_changed_since_fails_the_build(tmp_path, claims):
    made = pages(tmp_path)
    notebook = made[1].notebook
    notebook.write_text(notebook.read_text().replace("Yes", "No"))
    made[1] = replace(made[1], key=executing.hash_of(notebook))
    with pytest.raises(ValueError, match=r"^tasks: changed since it was executed"):
        findings.collect(made, "tiny.yaml")


def test_a_page_without_an_answer_fails_the_build(tmp_path, claims):
    with pytest.raises(ValueError, match="other has no answer"):
        findings.collect([*pages(tmp_path), page(tmp_path, "other", None)], "tiny.yaml")


def test_a_book_without_the_page_of_a_claim_says_so(tmp_path, claims):
    found = findings.joined(findings.collect(pages(tmp_path)[:1], "tiny.yaml")).set_index("id")
    assert found.verdict["fig03-sciq"] == findings.UNDECIDED
    assert found.undecided["fig03-sciq"] == "its page is not in this book"
    assert found.undecided["fig07-layers"] == claims.undecided[2] != ""


class Rows(HTMLParser):
    """The rows of a page's table by their ids: the words of each cell, and the addresses that it links to."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.row = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr" and "id" in attributes:
            self.row = self.rows.setdefault(attributes["id"], {"words": "", "links": []})
        if tag == "a" and self.row:
            self.row["links"].append(attributes["href"])

    def handle_data(self, data):
        if self.row:
            self.row["words"] += data


def planted():
    """A verdict for every claim that a page decides: the first four differ, the rest is reproduced."""
    said = dict(zip(CLAIMS.id, [(verdicts.NOT, 0), (verdicts.PARTLY, 2), (verdicts.OPEN, 1)], strict=False))
    rows = [vars(verdict(row.id, *said.get(row.id, (verdicts.REPRODUCED, 3)))) | {"page": row.page}
            for row in CLAIMS.itertuples() if row.page]
    return pd.DataFrame(rows, columns=findings.COLUMNS)


def test_findings_has_a_row_a_claim_with_its_address_and_all_of_it_to_download(tmp_path):
    findings.write(tmp_path, "# A\n\n<!-- findings -->\n<!-- /findings -->\n", planted(), b"<svg/>")
    rows = Rows((tmp_path / "findings.md").read_text()).rows
    assert list(rows) == list(CLAIMS.id)
    for row in CLAIMS.itertuples():
        shown = rows[row.id]
        assert row.claim in shown["words"] and row.where in shown["words"] and row.published in shown["words"]
        assert shown["links"] == [f"#{row.id}", *([f"notebooks/{row.page}.html#{row.id}"] if row.page else [])]
        assert (row.undecided or "Ratio: 0.123 (95 % ") in shown["words"]
    first = rows["fig02-loss"]["words"]
    assert "✗ not reproduced" in first and "Fig02-loss & more." in first and "0 of 3 runs" in first
    with (tmp_path / "findings.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == list(CLAIMS.id)


def test_the_opening_page_answers_and_shows_the_most_telling_results(tmp_path):
    findings.write(tmp_path, "# A\n\n<!-- findings -->\n<!-- /findings -->\n\nprose\n", planted(), b"<svg/>")
    text = (tmp_path / "index.md").read_text()
    assert re.findall(r'findings\.html#([\w-]+)', text) == list(findings_words.TELLING)
    assert "**Models:** 3 runs of small models. Those of the paper's Fig 2: 1.01 to 11.8 billion weights." in text
    assert text.startswith("# A\n") and text.endswith("<!-- /findings -->\n\nprose\n")
    assert "images/phases.svg" in text and (tmp_path / "images/phases.svg").read_bytes() == b"<svg/>"
    assert "it falls early (in 2 of 3 runs), then grows" in text
    assert text.count("Fig02-compression & more") == text.count("“2 to 3” is a range over runs") == 1
    assert text.count("Ratio: 0.123 (95 % interval 0.1 to 0.2).") == len(findings_words.TELLING), "what decided each"


def test_claims_are_counted_by_what_they_are_about_and_our_own_tests_apart():
    found = findings.joined(planted())
    found.loc[found.id == "causes-loss", "where"] = "sec. 3.3, our test"
    found.loc[found.id == "fig07-layers", "verdict"] = findings.UNDECIDED
    assert findings_words.counted(found[found.id.isin([
        "fig02-loss", "fig02-collapse", "fig03-sciq", "fig07-layers", "fig12-uniform", "tab07-short", "tab08-keep",
        "tab09-alpha", "theorem-1", "causes-loss"])]) == (
        "**Of 9 claims of the paper,** 6 about language models (Fig 2, 3, Tab 7 to 9): ✓ 4, ◐ 1, ✗ 1; 2 about its toy "
        "model and theorems (Fig 12, Theorem 1): ✓ 2; 1 not decided yet. **1 further test of our own:** ✓ 1.")
    found = findings.joined(planted()).assign(verdict=verdicts.OPEN)
    assert findings_words.counted(found).endswith(" **9 further tests of our own:** none gave a clear result.")


@pytest.mark.parametrize(("said", "expected"), [
    ([verdicts.REPRODUCED] * 3, "Small models do so, too (✓ reproduced: collapse, spreading, gathering)."),
    ([verdicts.REPRODUCED, verdicts.PARTLY, verdicts.REPRODUCED],
     "Small models do so in part (✓ reproduced: collapse, gathering; ◐ partly: spreading)."),
    ([verdicts.NOT] * 3, "Small models do not (✗ not reproduced: collapse, spreading, gathering)."),
    ([verdicts.OPEN, verdicts.NOT, findings.UNDECIDED],
     "Whether small models do so can't be told here (✗ not reproduced: spreading; ? cannot be told here: collapse)."),
    ([findings.UNDECIDED] * 3, "Whether small models do so is not decided. What they learn")])
def test_the_answer_to_a_question_follows_the_verdicts(said, expected):
    found = findings.joined(planted()).set_index("id", drop=False)
    found.loc[["fig02-collapse", "fig02-expansion", "fig02-compression"], "verdict"] = said
    assert expected in findings_words.answer(found)


def test_runs_that_show_what_is_not_reproduced_show_a_part_of_it():
    """"5 of 5 runs show it" beside "partly" would contradict that; starts of the toy model are no runs."""
    found = findings.joined(planted())

    def shown(verdict, runs, **changed):
        return findings_words.shown_in(pd.Series(dict(found.iloc[0], verdict=verdict, runs=runs, **changed)))

    assert shown(verdicts.REPRODUCED, 3) == "3 of 3 runs show it"
    assert shown(verdicts.PARTLY, 3) == "3 of 3 runs show a part of it"
    assert shown(verdicts.PARTLY, 2, scale="toy model: a plane") == "2 of 3 starts show it"


def test_of_a_result_the_opening_page_shows_the_first_sentence_the_number_and_the_last():
    found = findings.joined(planted()[lambda table: table.claim == "fig02-compression"])
    found.loc[found.id == "fig02-compression", "here"] = "a fall of 4.4 % is seen. It is small. Here 1.5 were not tried"
    assert findings_words.results(found, lambda words, claim: words).endswith(
        " A fall of 4.4 % is seen. Ratio: 0.123 (95 % interval 0.1 to 0.2). Here 1.5 were not tried.")


@pytest.mark.parametrize(("changed", "expected"), [
    ({"quantity": "ratio, mean over runs"}, "Mean over runs: 0.123 (0.1 to 0.2)."),
    ({"quantity": "fall (%), mean over runs"}, "Mean over runs: 0.123 % (0.1 to 0.2)."),
    ({"quantity": "share of starts"}, "The share that decides: 12.3 % (10 to 20)."),
    ({"low": 0.1234567, "high": 0.1234567}, ""), ({"value": float("nan"), "low": float("nan")}, "")])
def test_the_number_of_a_result_is_short_and_has_an_interval(changed, expected):
    assert findings_words.number(next(findings.joined(planted()).itertuples())._replace(**changed)) == expected


@pytest.mark.parametrize(("parameters", "trained"), [
    ("tiny.yaml", True), ("paper.yaml", False), ("of_a_stranger.yaml", False), (None, False)])
def test_that_no_published_model_was_traced_is_said_where_it_is_known(parameters, trained):
    said = findings_words.models(findings.joined(planted().assign(parameters=parameters)))
    assert ("None of those was traced here" in said) == trained


def test_a_number_says_whether_it_has_an_interval():
    row = next(findings.joined(planted()).itertuples())
    same = row._replace(quantity="ratio, mean over runs", value=2.0, low=2.0, high=2.0)
    assert findings_words.evidence(row) == "ratio: 0.123 (95 % interval 0.1 to 0.2)"
    assert findings_words.evidence(same) == "ratio: 2 in every run"
    assert findings_words.evidence(row._replace(where="Theorem 1")) == "ratio: 0.123 (95 % of the starts 0.1 to 0.2)"


def test_readme_says_it_in_the_opening_pages_words():
    def words(text):
        kept = re.sub(r"^:::.*|^:\w+:.*|!\[.*?\]\(.*?\)|\[\]\(.*?\) has all claims\.|<.*?>", "", text,
                      flags=re.MULTILINE)
        return sorted(re.findall(r"[^\W_]+", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", html.unescape(kept))))

    found = findings.joined(planted())
    assert words(findings_words.opening(found, True)) == words(findings_words.readme(found))


def test_what_says_the_same_is_not_written_again(tmp_path):
    for _ in range(2):
        findings.write(tmp_path, "# A\n<!-- findings -->\n<!-- /findings -->\n", planted(), b"<svg/>")
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    findings.write(tmp_path, "# A\n<!-- findings -->\n<!-- /findings -->\n", planted(), b"<svg/>")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times


def test_a_verdict_that_is_what_it_was_keeps_its_row():
    known = planted().assign(code="old", notebook="h", parameters="tiny.yaml")
    new = known.assign(code="new")
    assert set(findings.unchanged(new, known).code) == {"old"}
    new.loc[3, "here"] = "otherwise"
    new.loc[4, "notebook"] = "another"
    merged = findings.unchanged(new, known)
    assert list(merged.index[merged.code == "new"]) == [3, 4] and list(merged.claim) == list(known.claim)
    assert list(findings.unchanged(new, known[:0]).code) == ["new"] * len(new)


def test_what_is_tracked_is_written_once(tmp_path):
    marked = [f"<!-- {name} -->\nyesterday\n<!-- /{name} -->\n" for name in ("findings", "bench")]
    (tmp_path / "README.md").write_text("\n".join(["# A\n", *marked]))
    (tmp_path / "data/results").mkdir(parents=True)
    findings.track(planted(), b"<svg/>", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count("yesterday") == 1 and "](book/images/phases.svg)" in text and text.endswith(marked[1])
    assert all(f"](notebooks/{page}.ipynb)" in text
               for page in CLAIMS.set_index("id").page[list(findings_words.TELLING)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    findings.track(planted().assign(code="newer"), b"<svg/>", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_what_is_between_known_marks_is_replaced():
    text = "<!-- a -->\n1\n<!-- /a -->\n<!-- b -->\n2\n<!-- /b -->\n<!-- a -->\n"
    assert filled(text, {"a": "3\n"}) == text.replace("1", "3")


def test_a_plain_text_stays_plain_in_markdown():
    text = r"a*b*, `c`, [d](e), $f_1$ < g > & ~h~ | i\j # k"
    shown = MarkdownIt().enable(["table", "strikethrough"]).renderInline(plain(text))
    assert html.unescape(shown) == text


# The tree


def test_every_claim_is_decided_by_a_page_of_the_book_or_says_why_none_does():
    assert CLAIMS.id.is_unique and CLAIMS.id.str.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+").all()
    assert ((CLAIMS.page == "") != (CLAIMS.undecided == "")).all()
    assert set(CLAIMS.page) - {""} <= {path.stem for path in chapters()}
    decided = CLAIMS[CLAIMS.page != ""]
    assert (decided[["decided_by", "threshold"]] != "").all(axis=None) and (CLAIMS.claim != "").all()
    asked = [claim for claimed, _ in findings_words.QUESTIONS for claim in claimed]
    assert {*findings_words.TELLING, *asked} <= set(decided.id)
    assert all(set(words) == set(findings_words.MARK) for _, words in findings_words.QUESTIONS)


def test_every_figure_and_table_of_the_paper_with_a_claim_is_there():
    places = " ".join(CLAIMS["where"])
    wanted = [*(f"Fig {number}" for number in range(2, 15)), *(f"Tab {number}" for number in (7, 8, 9)),
              "Theorem 1", "Theorem 2"]
    assert [place for place in wanted if not re.search(rf"{place}\b|{place}[A-C]", places)] == []


def test_findings_stands_in_the_contents_and_both_places_for_what_was_found_are_there():
    files = re.findall(r"- file: (\S+)", (ROOT / "book/_toc.yml").read_text())
    assert files[0] == "findings" and yaml.safe_load((ROOT / "book/_toc.yml").read_text())["root"] == "index"
    for name in ("README.md", "book/index.md"):
        assert [mark[1] for mark in MARKED.findall((ROOT / name).read_text())].count("findings") == 1, name


def test_where_to_look_has_the_parts_of_the_contents_in_their_order():
    text = (ROOT / "book/index.md").read_text().partition("## Where to look")[2].partition("\nIn every figure")[0]
    shown = {item.partition(":**")[0].strip("*"): re.findall(r"\[\]\((.+?)\.\w+\)", item)
             for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]}
    parts = yaml.safe_load((ROOT / "book/_toc.yml").read_text())["parts"]
    expected = {part["caption"]: [each["file"] for each in part["chapters"]] for part in parts}
    assert shown == expected and list(shown) == list(expected)


def test_the_tracked_verdicts_are_of_the_notebooks_in_the_tree():
    table = findings.read(TRACKED)
    stale = {row.page for row in table.itertuples()
             if row.notebook != findings.source_hash(ROOT / f"notebooks/{row.page}.ipynb")}
    assert stale == set(), "these notebooks have changed since: make book"
    assert list(zip(table.claim, table.page, strict=True)) == [
        (row.id, row.page) for row in CLAIMS.itertuples() if row.page], "make book writes them anew"
    for row in table.itertuples():  # each still says what its runs allow
        verdicts.Verdict(**{name: getattr(row, name) for name in verdicts.Verdict.__dataclass_fields__})


def test_readme_says_what_the_tracked_verdicts_say_beside_the_tracked_figure():
    text = (ROOT / "README.md").read_text()
    assert findings.rewritten(text, findings.read(TRACKED)) == text, "make book writes it anew"
    assert f"](book/{findings.FIGURE})" in text


def test_the_tracked_figure_is_that_of_the_tracked_records():
    profile = replace(Profile.of(yaml.safe_load(making.DEFAULT.read_text())), archive=str(making.ARCHIVE))
    drawn = making._picture(profile, profile.trace())
    assert (ROOT / "book" / findings.FIGURE).read_bytes() == drawn, "make book draws it anew"
