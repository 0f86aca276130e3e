"""Verdicts: what they may say, given how the runs came out.

Trusted: planted outcomes, scipy's Wilson interval, and a notebook that papermill executed.
"""

import json
import math

import pytest
from scipy.stats import binomtest

from reptrace.report import verdicts
from reptrace.report.executing import execute, page_of
from reptrace.report.verdicts import NOT, OPEN, PARTLY, REPRODUCED, Verdict, of_interval, of_runs, of_share

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def verdict(said=REPRODUCED, runs=3, of=3, **changed):
    planted = {"claim": "fig02-compression", "verdict": said, "here": "it falls", "quantity": "fall", "value": 0.1,
               "low": 0.05, "high": 0.2, "runs": runs, "of": of, "scale": "small"}
    return Verdict(**planted | changed)


@pytest.mark.parametrize(("outcomes", "expected"), [
    (["yes"] * 3, REPRODUCED), (["no"] * 3, NOT), (["yes", "no", "yes"], PARTLY), (["yes", "yes"], OPEN), ([], OPEN),
    (["yes", "yes", "undecided"], OPEN), (["no", "no", "not seen"], OPEN), (["yes", "no", "undecided"], PARTLY)])
def test_runs_decide_only_together(outcomes, expected):
    assert of_runs(outcomes) == expected


@pytest.mark.parametrize(("parts", "expected"), [
    ([NOT, NOT], NOT), ([REPRODUCED], REPRODUCED), ([REPRODUCED, OPEN], PARTLY), ([REPRODUCED, NOT], PARTLY),
    ([PARTLY, NOT], PARTLY), ([NOT, OPEN], OPEN), ([OPEN, OPEN], OPEN)])
def test_a_claim_in_parts_is_reproduced_in_part_where_a_part_is(parts, expected):
    assert verdicts.of_parts(parts) == expected


@pytest.mark.parametrize(("interval", "threshold", "above", "expected"), [
    ((0.6, 0.8), 0.5, True, REPRODUCED), ((0.2, 0.4), 0.5, True, NOT), ((0.4, 0.6), 0.5, True, OPEN),
    ((0.01, 0.04), 0.05, False, REPRODUCED), ((0.06, 0.2), 0.05, False, NOT), ((0.04, 0.06), 0.05, False, OPEN),
    ((0.5, 0.8), 0.5, True, OPEN), ((math.nan, math.nan), 0.5, True, OPEN)])
def test_an_interval_decides_only_as_a_whole(interval, threshold, above, expected):
    assert of_interval(*interval, threshold, above) == expected
    if interval[0] == interval[0]:
        assert of_share(*interval, threshold, above) == expected


def test_intervals_and_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match="lower end first"):
        of_interval(2, 1, 0)
    with pytest.raises(ValueError, match="shares lie in 0 to 1"):
        of_share(40, 60, 50)  # in percent


@pytest.mark.parametrize(("said", "runs", "of", "allowed"), [
    (REPRODUCED, 3, 3, True), (REPRODUCED, 2, 3, False), (REPRODUCED, 2, 2, False), (NOT, 0, 3, True),
    (NOT, 1, 3, False), (NOT, 0, 2, False), (PARTLY, 2, 3, True), (OPEN, 1, 1, True), (OPEN, 0, 0, True),
    (REPRODUCED, 220, 400, True), (REPRODUCED, 219, 400, False), (NOT, 399, 400, True), (NOT, 400, 400, False)])
def test_no_verdict_is_stronger_than_its_runs(said, runs, of, allowed):
    if allowed:
        assert verdict(said, runs, of).verdict == said
    else:
        with pytest.raises(ValueError, match=r"stronger than its runs|decide nothing"):
            verdict(said, runs, of)


@pytest.mark.parametrize("of", [20, 64, 400])
def test_a_share_of_starts_reproduces_where_wilson_s_interval_lies_above_one_half(of):
    for runs in range(of // 2 - 1, of // 2 + of // 3):
        above = binomtest(runs, of).proportion_ci(0.95, method="wilson").low > 0.5
        assert verdicts._allowed(REPRODUCED, runs, of) == above, runs


@pytest.mark.parametrize(("changed", "message"), [
    ({"claim": "fig02-compresion"}, "fig02-compression"), ({"said": "holds"}, "a verdict is one of"),
    ({"runs": 4}, "4 runs of 3"), ({"runs": -1}, "-1 runs of 3"), ({"value": 0.3}, "does not lie in"),
    ({"low": math.nan}, "does not lie in"), ({"high": math.inf}, "finite numbers"),
    ({"value": -math.inf, "low": -math.inf}, "finite numbers")])
def test_faults_of_a_verdict_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        verdict(**changed)


def test_a_claim_without_evidence_is_open_and_says_why():
    found = verdicts.untold("fig03-triviaqa", "No such task was asked.", "small")
    assert (found.verdict, found.here, found.runs, found.of) == (OPEN, "No such task was asked.", 0, 0)


def test_a_page_concludes_once_a_claim_and_has_an_answer():
    with pytest.raises(ValueError, match=r"two verdicts of one claim: fig02-compression"):
        verdicts.conclude("Yes.", [verdict(), verdict(NOT, 0)])
    with pytest.raises(ValueError, match="answer is a sentence"):
        verdicts.conclude(" ")
    first, second = verdicts.conclude("Yes.", [verdict(), verdict(claim="fig02-collapse")]).verdicts
    assert (first.claim, second.claim) == ("fig02-collapse", "fig02-compression"), "in the order of the claims"


def test_a_page_that_concludes_twice_is_refused(tmp_path):
    data, metadata = verdicts.conclude("Yes.", [verdict()])._repr_mimebundle_()
    cell = {"cell_type": "code", "source": "", "outputs": [{"data": data, "metadata": metadata}]}
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert verdicts.of_page(tmp_path / "one.ipynb").answer == "Yes."
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": [cell, cell]}))
    with pytest.raises(ValueError, match=r"one\.ipynb concludes 2 times"):
        verdicts.of_page(tmp_path / "one.ipynb")


def test_an_executed_page_keeps_what_it_concludes_and_has_its_answer_under_the_title(tmp_path):
    said = "It falls by 4 % [3 to 5]: *all* of `3`, $x$ and <b>."
    code = (f"import numpy as np\nfrom reptrace.report import verdicts\nverdicts.conclude({said!r}, [verdicts.Verdict("
            f"'fig02-loss', verdicts.OPEN, 'a < b', 'rise', float('nan'), float('nan'), float('nan'), np.int64(1), 2, "
            f"'small')])")
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Does it fall?\n\n**The claim**"},
             {"cell_type": "code", "id": "b", "metadata": {}, "source": code, "outputs": [], "execution_count": None}]
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}))
    page = page_of(path, {}, tmp_path / "pages/one.ipynb", [])
    list(execute([page]))
    found = verdicts.of_page(page.target)
    (kept,) = found.verdicts
    assert found.answer == said and (kept.verdict, kept.runs, kept.of) == (OPEN, 1, 2) and math.isnan(kept.value)
    assert set(found.made) == {"code", "packages", "python", "machine"}
    first = "".join(json.loads(page.target.read_text())["cells"][0]["source"]).split("\n\n")
    answer = r"It falls by 4 % \[3 to 5\]: \*all\* of \`3\`, \$x\$ and \<b\>."
    assert first == ["# Does it fall?", f":::{{div}} answer\n{answer}\n:::", "**The claim**"]
    shown = json.loads(page.target.read_text())["cells"][1]["outputs"][0]["data"]["text/html"]
    assert '<li id="fig02-loss"><b>? cannot be told here</b>' in "".join(shown) and "a &lt; b" in "".join(shown)
