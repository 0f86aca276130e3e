"""Win rates by a judge behind an endpoint.

Trusted: a stand-in on loopback that prefers the answer with the larger number in it (standin_judge.py), and scipy's
standard error.
"""

import json

import numpy as np
import pandas as pd
import pytest
from limits import serving
from scipy.stats import sem
from standin_judge import StandIn

from reptrace.tasks.win_rates import Judge, JudgeError, read_answers, verdict, win_rate, write_answers

ASKED = [{"instruction": f"How many of {k}? {{braces}}", "dataset": "d", "output": "x", "generator": "g"}
         for k in range(12)]


@pytest.fixture
def server():
    stand_in = StandIn()
    with serving(stand_in.server):
        yield stand_in


@pytest.fixture
def judge(server, waits, tmp_path):
    def made(**options):
        return Judge(server.url, "judge-1", tmp_path / "kept", **{"progress": False, "at_once": 1} | options)

    return made


def answers(numbers, words="of them"):
    return pd.DataFrame({"instruction": [row["instruction"] for row in ASKED[: len(numbers)]], "generator": "x",
                         "output": ["" if number is None else f"{number} {words}" for number in numbers]})


ONE = answers([5, 1, 3, 3, 0, 9, 2, 7, None, 4, 4, 6])
OTHER = answers([1, 5, 3, 2, 0, 3, 8, 1, None, 4, 9, 1], "pieces")
ASKED_OF = 2 * 11  # requests: the two empty answers are one
TRUTH = np.array([1, 0, .5, 1, .5, 1, 0, 1, .5, .5, 0, 1])


def test_the_rate_is_the_stand_in_s_own_with_scipy_s_standard_error(judge, server):
    compared = judge(at_once=4, key="secret").compare(ONE, OTHER[::-1])
    assert compared.preference.tolist() == TRUTH.tolist()
    assert compared.instruction.tolist() == ONE.instruction.tolist()
    rate = win_rate(compared)
    assert rate.rate == pytest.approx(TRUTH.mean(), rel=1e-12) and rate.stderr == pytest.approx(sem(TRUTH), rel=1e-12)
    assert (rate.pairs, rate.unparsed, rate.ties, rate.flipped, rate.first) == (12, 0, 4, 0, 0.5)
    assert len(server.requests) == ASKED_OF  # each pair in both orders
    for path, key, query in server.requests:
        assert path == "/v1/chat/completions" and key == "Bearer secret"
        assert query["model"] == "judge-1" and query["temperature"] == 0 and query["messages"][0]["role"] == "user"
    back = win_rate(judge().compare(OTHER, ONE))
    assert back.rate == pytest.approx(1 - rate.rate) and len(server.requests) == ASKED_OF  # the same: kept


@pytest.mark.parametrize(("likes", "first"), [(100, 11.5 / 12), (-100, 0.5 / 12)])
def test_a_judge_that_likes_a_place_gives_no_answer_an_advantage_and_is_shown_as_such(judge, server, likes, first):
    server.likes = likes
    rate = win_rate(judge().compare(ONE, OTHER))
    assert (rate.rate, rate.flipped, rate.ties, rate.first) == (0.5, 11, 12, first)


def test_what_fails_for_short_is_asked_again_and_waits_as_long_as_the_server_asks(judge, server, waits):
    faults = ["late", "drop", "error", "a page", "no JSON", "no choices", "error in a good answer", "busy"]
    server.orders.extend(part for fault in faults for part in (fault, "judge"))
    compared = judge(timeout=0.3).compare(ONE, OTHER)
    assert compared.preference.tolist() == TRUTH.tolist()
    assert waits == [1.0] * 7 + [7.0]
    assert len(server.requests) == ASKED_OF + len(faults)


def test_what_fails_for_long_ends_with_advice_and_the_next_call_asks_only_what_is_missing(judge, server, waits):
    server.orders.extend(["judge"] * 5 + ["busy"] * 6)
    with pytest.raises(JudgeError, match=r"failed 6 times, at last with FailureError: code 429 Rate.*kept"):
        judge().compare(ONE, OTHER)
    assert waits == [7.0, 7.0, 7.0, 8.0, 16.0]
    server.requests.clear()
    assert judge().compare(ONE, OTHER).preference.tolist() == TRUTH.tolist()
    assert len(server.requests) == ASKED_OF - 5


def test_a_refusal_is_not_asked_again(judge, server, waits):
    server.orders.append("refuse")
    with pytest.raises(JudgeError, match=r"refuses with code 401: Incorrect API key provided.*'judge-1'"):
        judge().compare(ONE, OTHER)
    assert not waits and len(server.requests) == 1


def test_a_judge_out_of_reach_is_an_error_that_names_it(waits, tmp_path):
    judge = Judge("http://127.0.0.1:9/v1", "judge-1", tmp_path, progress=False, attempts=2)
    with pytest.raises(JudgeError, match=r"http://127.0.0.1:9/v1 failed 2 times, at last with ConnectError"):
        judge.compare(ONE, OTHER)


def test_words_without_a_verdict_are_counted_kept_and_belong_to_no_pair(judge, server):
    server.orders.extend(["say Both have merits. A is longer, B", "judge", "judge", "null", "judge", "say "])
    compared = judge().compare(ONE, OTHER)
    rate = win_rate(compared)
    assert (rate.pairs, rate.unparsed) == (9, 3) and rate.rate == pytest.approx(TRUTH[3:].mean())
    assert rate.stderr == pytest.approx(sem(TRUTH[3:]), rel=1e-12)
    assert compared["first"].isna().tolist()[:3] == [True, False, False]
    asked = len(server.requests)
    assert win_rate(judge().compare(ONE, OTHER)) == rate and len(server.requests) == asked


def test_a_judge_of_nonsense_alone_has_no_rate(judge, server):
    server.orders.extend(["say I cannot compare these."] * 8)
    with pytest.raises(ValueError, match="none of the judge's 8 replies could be read as A, B or TIE"):
        win_rate(judge().compare(ONE[:4], OTHER[:4]))


@pytest.mark.parametrize(("said", "given"), [
    ("A", 1), ("b", 0), ("TIE", .5), (" **B**.\n", 0), ("Answer: A", 1), ("(A)", 1), ("[[B]]", 0),
    ("The answer is B.", 0), ("answer_A", 1), ("AB", None), ("A or B", None), ("A B", None), ("", None),
    ("Neither", None), ("C", None), ("A" * 10**5, None)])
def test_a_verdict_is_one_of_three_words_and_nothing_else(said, given):
    assert verdict(said) == given if given is not None else np.isnan(verdict(said))


def test_a_damaged_file_is_asked_for_again(judge, server, tmp_path):
    judge().compare(ONE, OTHER)
    for path, content in zip(sorted((tmp_path / "kept").rglob("*.json")), ("", "{", "[]", '{"said": 3}'), strict=False):
        path.write_text(content)
    assert judge().compare(ONE, OTHER).preference.tolist() == TRUTH.tolist()
    assert len(server.requests) == ASKED_OF + 4


def test_answers_are_written_in_alpacaeval_s_form(tmp_path):
    write_answers(tmp_path / "one.json", ASKED, [f"{k} é" for k in range(12)], "my-model")
    rows = json.loads((tmp_path / "one.json").read_text("utf-8"))
    assert rows[3] == {"instruction": ASKED[3]["instruction"], "output": "3 é", "generator": "my-model", "dataset": "d"}
    assert read_answers(tmp_path / "one.json").output.tolist() == [f"{k} é" for k in range(12)]
    with pytest.raises(ValueError, match="shorter"):
        write_answers(tmp_path / "two.json", ASKED, ["one"], "my-model")


@pytest.mark.parametrize("content", ["", "[]", "{}", '[{"instruction": "a", "output": "b"}]', "[1]", json.dumps(
    [{"instruction": "a", "output": "b", "generator": "c"}] * 2), json.dumps([
        {"instruction": "a", "output": None, "generator": "c"}])])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "one.json").write_text(content)
    with pytest.raises(ValueError, match=r"one.json' (is not a file of answers|should hold one model's answers)"):
        read_answers(tmp_path / "one.json")


def test_other_instructions_are_refused(judge):
    with pytest.raises(ValueError, match="the two answer 12 and 11 instructions, 11 of them the same"):
        judge().compare(ONE, OTHER[:11])
