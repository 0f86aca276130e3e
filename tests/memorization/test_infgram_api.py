"""The infini-gram web API behind the interface of the infinity-gram model.

Trusted: the model over an index of its own (test_infgram.py), which a stand-in server on loopback answers from,
in the form that the API's documentation gives; it can be told to answer late, with errors, with something else, or not
at all. Nothing here asks the real API.
"""

import json
import time
from types import SimpleNamespace

import pytest
from limits import check_resets, serving
from standin_orders import Ordered

from reptrace.memorization.infgram import build_infgram
from reptrace.memorization.infgram_api import ApiError, WebInfinityGram
from reptrace.texts.token_ids import OtherTokenizerError

END = 2
STREAM = [5, 6, 7, END, 5, 6, END, 4, 9, 5, 6, 8, END, 7, 5, END] * 3
CONTEXTS = [[], [5, 6], [4, 9, 5, 6], [3], [7, 5], [5, 6, END, 5], [8] * 40]
TOKENS = [5, 7, 8, 6, END, 6, 9]


class StandIn(Ordered):
    """Answers from an index, where no order says otherwise."""

    def __init__(self, index):
        super().__init__()
        self.index, self.times, self.url = index, [], self.root

    def begun(self):
        self.times.append(time.monotonic())

    def answer(self, query):
        ids = [END if token == 65535 else token for token in query["query_ids"]]
        if query["query_type"] == "infgram_prob":
            found = self.index.next_token([ids[:-1]], ids[-1:])
            counts = {"prompt_cnt": int(found.count[0]), "cont_cnt": int(found.token_count[0])}
            return {**counts, "prob": counts["cont_cnt"] / counts["prompt_cnt"], "suffix_len": int(found.length[0]),
                    "longest_suffix": "", "latency": 0.5, "token_ids": ids, "tokens": []}
        (found,) = self.index.distribution([ids])
        share = {str(token): {"cont_cnt": count, "prob": count / found.count, "token": "?"}
                 for token, count in zip(found.tokens.tolist(), found.token_counts.tolist(), strict=True)}
        return {"prompt_cnt": found.count, "suffix_len": found.length, "result_by_token_id": share,
                "approx": found.count > query["max_support"], "latency": 0.5}

    def carry_out(self, request, order, query):
        status, body, headers = 200, json.dumps(self.answer(query)).encode(), {}
        if order == "drop":
            request.close_connection = True
            return
        if order == "late":
            time.sleep(0.6)
        elif order == "error":  # as the server tells of a failure of its own
            status, body = 500, json.dumps({"error": "[Flask] Internal server error: out of luck"}).encode()
        elif order == "error in a good answer":
            body = json.dumps({**self.answer(query), "error": "overloaded"}).encode()
        elif order == "empty error":
            body = json.dumps({**self.answer(query), "error": ""}).encode()
        elif order == "busy":
            status, body, headers = 429, b"slow down", {"Retry-After": "7"}
        elif order == "a page":
            status, body = 502, b"<html>Bad gateway</html>"
        elif order == "no JSON":
            body = b"<html>maintenance</html>"
        elif order == "too little":
            body = json.dumps({"prompt_cnt": 3}).encode()
        elif order == "nonsense":
            body = json.dumps(self.answer(query) | {"prompt_cnt": 0}).encode()
        elif order == "refuse":
            status, body = 400, json.dumps({"error": "[Flask] Invalid index: nowhere"}).encode()
        elif order == "long":
            body = json.dumps(self.answer(query) | {"suffix_len": 499}).encode()
        self.send(request, status, body, headers)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_infgram(STREAM, tmp_path_factory.mktemp("index") / "i", separator=END, vocabulary=32_000, corpus="c",
                         tokenizer="t", progress=False)


@pytest.fixture
def server(index):
    stand_in = StandIn(index)
    with serving(stand_in.server):
        yield stand_in


@pytest.fixture
def web(server, waits, tmp_path):
    def open_web(**options):
        return WebInfinityGram(tmp_path / "kept", **{"url": server.url, "interval": 0, "progress": False} | options)

    return open_web


def lookups(model):
    return [column.tolist() for column in vars(model.next_token(CONTEXTS, TOKENS)).values()]


def distributions(model):
    return [(one.length, one.count, one.tokens.tolist(), one.token_counts.tolist())
            for one in model.distribution(CONTEXTS)]


def test_the_web_api_answers_as_an_index_of_ones_own(web, index, server):
    model = web()
    assert lookups(model) == lookups(index)
    assert distributions(model) == distributions(index)
    assert all(one.exact for one in model.distribution(CONTEXTS))
    assert [column.tolist() for column in model.longest_suffix(CONTEXTS)] == [
        column.tolist() for column in index.longest_suffix(CONTEXTS)]
    assert server.requests[1] == {"index": "v4_piletrain_llama", "query_type": "infgram_prob", "query_ids": [5, 6, 7]}


def test_an_end_of_a_document_is_asked_for_as_the_server_keeps_it(web, server):
    web().next_token([[7, 5], [5, 6, END, 5]], [END, 6])
    # 65535 stands between documents in the server's index; what precedes an end is no context
    assert [query["query_ids"] for query in server.requests] == [[7, 5, 65535], [5, 6]]


def test_a_drawn_distribution_says_so(web, index, server, monkeypatch):
    monkeypatch.setattr("reptrace.memorization.infgram_api.MOST_SUPPORT", 2)
    found = web().distribution([[5], [4, 9]])
    assert [one.exact for one in found] == [False, False] and server.requests[0]["max_support"] == 2


def test_each_query_is_asked_once_and_then_read(web, server, index):
    expected = lookups(web())
    asked = len(server.requests)
    server.orders.extend(["refuse"] * 100)
    assert lookups(web()) == expected and len(server.requests) == asked
    with pytest.raises(ApiError):
        web(index="another").next_token([[5]], [6])


def test_a_run_that_broke_off_goes_on_where_it_was(web, server):
    server.orders.extend(["answer"] * 3 + ["refuse"])
    with pytest.raises(ApiError):
        lookups(web())
    server.requests.clear()
    lookups(web())
    assert len(server.requests) == len(CONTEXTS) - 3


@pytest.mark.parametrize("content", [b"", b'{"prompt_cnt": 3', b"{}", b"[]", b'{"suffix_len": 1, "prompt_cnt": "x"}'])
def test_a_damaged_kept_answer_is_asked_for_again(web, server, tmp_path, content, index):
    expected = lookups(web())
    for path in (tmp_path / "kept").rglob("*.json"):
        path.write_bytes(content)
    server.requests.clear()
    assert lookups(web()) == expected and len(server.requests) == len(CONTEXTS)


FAILURES = ["drop", "error", "error in a good answer", "empty error", "busy", "a page", "no JSON", "too little",
            "nonsense"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_good_answer_counts_even_at_the_fifth_attempt(web, server, waits, index, failure):
    server.orders.extend([failure] * 4)
    assert lookups(web()) == lookups(index)
    assert len(server.requests) == len(CONTEXTS) + 4
    assert waits == ([7, 7, 7, 8] if failure == "busy" else [1, 2, 4, 8])


@pytest.mark.parametrize(("failure", "told"), [
    ("drop", "cannot be reached"), ("error", "out of luck"), ("error in a good answer", "overloaded"),
    ("empty error", "at last with: "), ("busy", "code 429"), ("a page", "code 502"),
    ("no JSON", "an answer that is none"), ("too little", "expected the fields"),
    ("nonsense", "counts that cannot be")])
def test_after_five_failures_the_error_says_what_came_and_what_is_kept(web, server, tmp_path, failure, told):
    server.orders.extend([failure] * 5)
    with pytest.raises(ApiError, match=told) as caught:
        web().next_token([[5]], [6])
    assert len(server.requests) == 5 and str(tmp_path / "kept") in str(caught.value)
    assert not list((tmp_path / "kept").rglob("*.json"))  # a failure is never kept


def test_a_late_answer_is_not_waited_for_and_asked_again(web, server, index):
    server.orders.append("late")
    assert lookups(web(timeout=0.2)) == lookups(index)
    assert len(server.requests) == len(CONTEXTS) + 1


def test_a_slow_answer_within_the_time_allowed_counts(web, server, index):
    server.orders.append("late")
    assert lookups(web(timeout=5)) == lookups(index) and len(server.requests) == len(CONTEXTS)


def test_out_of_reach_is_an_error_that_says_what_to_try(web, index):
    gone = StandIn(index)
    gone.server.server_close()
    with pytest.raises(ApiError, match=r"cannot be reached .*tried 5 times.*where there is a network.*build_infgram"):
        web(url=gone.url).next_token([[5]], [6])


def test_a_client_that_resets_before_it_is_accepted_does_not_hold_up_the_stand_in(index, web):
    stand_in = StandIn(index)
    check_resets(stand_in.server)
    with serving(stand_in.server):
        assert lookups(web(url=stand_in.url)) == lookups(index)


def test_a_refused_query_is_not_tried_again(web, server):
    server.orders.append("refuse")
    with pytest.raises(ApiError, match=r"code 400: .*Invalid index: nowhere"):
        web().next_token([[5]], [6])
    assert len(server.requests) == 1


def test_requests_keep_their_distance(web, server, monkeypatch):
    """By a clock that only moves while the client waits."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("reptrace.memorization.infgram_api.time", clock)
    web(interval=0.05).next_token(CONTEXTS, TOKENS)
    # rounding of a sum of as many intervals; the first request need not wait
    assert now[0] == pytest.approx(100 + 0.05 * (len(server.requests) - 1), abs=1e-9)


def test_a_context_is_cut_to_what_the_server_takes_and_a_suffix_as_long_is_an_error(web, server):
    web().next_token([[9] * 1000], [5])
    assert len(server.requests[0]["query_ids"]) == 500
    server.orders.append("long")
    with pytest.raises(ApiError, match="a suffix of 499 tokens"):
        web().next_token([[8] * 1000], [5])


@pytest.mark.parametrize(("contexts", "tokens"), [([[32_000]], [5]), ([[5]], [32_000]), ([[-1]], [5])])
def test_ids_outside_of_the_vocabulary_are_refused_before_anything_is_asked(web, server, contexts, tokens):
    with pytest.raises(OtherTokenizerError, match="outside of the vocabulary of 32000"):
        web().next_token(contexts, tokens)
    with pytest.raises(ValueError, match="got 1 contexts and 2 tokens"):
        web().next_token([[5]], [6, 7])
    assert not server.requests


def test_no_queries_ask_nothing(web, server):
    assert web().next_token([], []).log_probability.shape == (0,)
    assert web().distribution([]) == [] and not server.requests
