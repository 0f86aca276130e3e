"""The public infini-gram web API, behind the interface of `reptrace.memorization.infgram.InfinityGram`.

Its indexes hold what no laptop can: the Pile for Pythia, and OLMo 2's training data; all with Llama 2's tokenizer, so
prompts and answers are tokenized with that for it, whatever model they are compared with. Documented at
https://infini-gram.readthedocs.io/en/latest/api.html; limits of a request are those of the server's published source.

Every good answer is kept on disk, so a run that breaks off goes on where it was, and the same question is asked once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reptrace.memorization.infgram import Distribution, Lookups
from reptrace.records.store import write_atomically
from reptrace.texts.token_ids import aligned, checked_ids

URL = "https://api.infini-gram.io/"
LLAMA2_VOCABULARY, LLAMA2_END = 32_000, 2
MOST_TOKENS = 500  # of a request
MOST_SUPPORT = 1000  # occurrences that the server counts a distribution from; of more it draws a sample
DOCUMENT_END = 2**16 - 1  # what stands between documents in the server's 16-bit indexes
LONGEST_WAIT = 60  # seconds before another attempt


class ApiError(RuntimeError):
    """The web API is out of reach, or refuses a query; the message says which and what to try."""


class _FailureError(Exception):
    """An answer that may be better at the next attempt; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0):
        super().__init__(reason)
        self.wait = wait


class WebInfinityGram:
    """An infinity-gram model that the web API answers for.

    Parameters
    ----------
    cache : str or Path
        Folder of the answers, one small file a query.
    index : str, default the training part of the Pile
        Name of the API's index.
    separator, vocabulary : int, default those of Llama 2's tokenizer, which every `*_llama` index has
    interval : float, default 0.1
        Least seconds between two requests, which are sent one at a time.
    timeout : float, default 30
        Seconds to wait for an answer.
    attempts : int, default 5
        Of a request that fails for short: lost connections, server errors, answers that hold an error or no JSON.
        They wait 1, 2, 4, ... seconds, or as long as the server asks for, up to a minute.
    url : str
    progress : bool, default True

    A context is cut to the last 499 tokens, the server's limit; a suffix as long as that is an error, since it might
    go on. Methods raise ApiError, and OtherTokenizerError for ids outside of the vocabulary.
    """

    def __init__(self, cache: str | Path, index: str = "v4_piletrain_llama", *, separator: int = LLAMA2_END,
                 vocabulary: int = LLAMA2_VOCABULARY, interval: float = 0.1, timeout: float = 30, attempts: int = 5,
                 url: str = URL, progress: bool = True):
        self.cache, self.index, self.url = Path(cache), index, url
        self.separator, self.vocabulary = separator, vocabulary
        self.interval, self.timeout, self.attempts, self.progress = interval, timeout, attempts, progress
        self._last_request = -np.inf

    def next_token(self, contexts, tokens) -> Lookups:
        """As `InfinityGram.next_token`."""
        tokens = checked_ids(tokens, self.vocabulary)
        if len(tokens) != len(contexts):
            raise ValueError(f"one token for each context: got {len(contexts)} contexts and {len(tokens)} tokens.")
        last = np.where(tokens == self.separator, DOCUMENT_END, tokens).tolist()
        queries = [self._query("infgram_prob", [*context, token])
                   for context, token in zip(self._contexts(contexts), last, strict=True)]
        answers = self._ask_all(queries, ("suffix_len", "prompt_cnt", "cont_cnt"))
        columns = [[answer[name] for answer in answers] for name in ("suffix_len", "prompt_cnt", "cont_cnt")]
        return Lookups(*np.array(columns, np.int64).reshape(3, -1))

    def longest_suffix(self, contexts) -> tuple[np.ndarray, np.ndarray]:
        """As `InfinityGram.longest_suffix`."""
        # The suffix is the same however few occurrences its distribution is drawn from.
        answers = self._ask_all([self._query("infgram_ntd", context, max_support=1)
                                 for context in self._contexts(contexts)], ("suffix_len", "prompt_cnt"))
        lengths, counts = ([answer[name] for answer in answers] for name in ("suffix_len", "prompt_cnt"))
        return np.array(lengths, np.int64), np.array(counts, np.int64)

    def distribution(self, contexts) -> list[Distribution]:
        """As `InfinityGram.distribution`; drawn from 1000 occurrences, and not `exact`, where there are more."""
        answers = self._ask_all([self._query("infgram_ntd", context, max_support=MOST_SUPPORT)
                                 for context in self._contexts(contexts)],
                                ("suffix_len", "prompt_cnt", "result_by_token_id", "approx"))
        return [_distribution(answer) for answer in answers]

    def _contexts(self, contexts) -> list[list[int]]:
        if not len(contexts):
            return []
        ids, lengths = aligned(contexts, self.vocabulary, self.separator)
        kept = np.minimum(lengths, MOST_TOKENS - 1)
        return [row[len(row) - count :].tolist() for row, count in zip(ids, kept, strict=True)]

    def _query(self, kind: str, ids: Sequence[int], **options) -> dict:
        return {"index": self.index, "query_type": kind, "query_ids": list(ids), **options}

    def _ask_all(self, queries: Sequence[Mapping], fields: Sequence[str]) -> list[dict]:
        import httpx2

        with httpx2.Client(timeout=self.timeout) as client:
            bar = tqdm(queries, desc=self.index, unit="query", leave=False,
                       disable=not self.progress or len(queries) < 2)
            return [self._ask(client, query, fields) for query in bar]

    def _ask(self, client, query: Mapping, fields: Sequence[str]) -> dict:
        """The answer that is kept, or the server's, which then is."""
        digest = hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()
        kept = self.cache / digest[:2] / f"{digest[2:32]}.json"
        with suppress(FileNotFoundError, ValueError):  # a damaged file is asked for again
            return _checked(json.loads(kept.read_text()), fields)
        answer = self._asked(client, query, fields)
        write_atomically(kept, json.dumps({name: answer[name] for name in fields}).encode())
        return answer

    def _asked(self, client, query: Mapping, fields: Sequence[str]) -> dict:
        import httpx2
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        tried = Retrying(retry=retry_if_exception_type((_FailureError, httpx2.RequestError)), wait=_wait,
                         stop=stop_after_attempt(self.attempts), reraise=True)
        try:
            return tried(self._request, client, query, fields)
        except _FailureError as error:
            raise ApiError(f"{self.url} failed {self.attempts} times, at last with: {error}. Answers so far are kept "
                           f"in {str(self.cache)!r}: run it again later.") from error
        except httpx2.RequestError as error:
            raise ApiError(f"{self.url} cannot be reached ({type(error).__name__}: {error}), tried {self.attempts} "
                           f"times. Answers so far are kept in {str(self.cache)!r}: run it again where there is a "
                           "network, or index a text of your own (build_infgram of "
                             "reptrace.memorization.infgram).") from error

    def _request(self, client, query: Mapping, fields: Sequence[str]) -> dict:
        time.sleep(max(0, self._last_request + self.interval - time.monotonic()))
        self._last_request = time.monotonic()
        response = client.post(self.url, json=dict(query))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        told = str(answer["error"]) if isinstance(answer, dict) and "error" in answer else None
        if 400 <= response.status_code < 500 and response.status_code not in (408, 429):
            raise ApiError(f"{self.url} refuses a query to index {self.index!r} with code {response.status_code}"
                           f"{f': {told}' if told else ''}.")
        if told is not None or response.status_code != 200:
            stated = response.headers.get("Retry-After", "")
            raise _FailureError(told or f"code {response.status_code}", float(stated) if stated.isdigit() else 0)
        try:
            checked = _checked(answer, fields)
        except ValueError as error:
            raise _FailureError(f"an answer that is none ({error})") from error
        if checked["suffix_len"] >= MOST_TOKENS - 1:
            raise ApiError(f"a suffix of {checked['suffix_len']} tokens occurs in {self.index!r}: longer ones cannot "
                           f"be asked for, since the API takes {MOST_TOKENS} tokens at most.")
        return checked


def _wait(state) -> float:
    """Seconds before the next attempt: 1, 2, 4, ..., or what the server asks for, up to LONGEST_WAIT."""
    asked_for = getattr(state.outcome.exception(), "wait", 0)
    return min(LONGEST_WAIT, max(2.0 ** (state.attempt_number - 1), asked_for))


def _checked(answer, fields: Sequence[str]) -> dict:
    """ValueError unless it is an answer with these fields, and counts that can be."""
    if not isinstance(answer, dict) or not set(fields) <= set(answer):
        raise ValueError(f"expected the fields {', '.join(fields)}")
    counts = [answer[name] for name in ("suffix_len", "prompt_cnt", "cont_cnt") if name in fields]
    if not all(type(count) is int and count >= 0 for count in counts) or not answer["prompt_cnt"]:
        raise ValueError(f"counts that cannot be: {counts}")
    return answer


def _distribution(answer: Mapping) -> Distribution:
    counts = {int(token): result["cont_cnt"] for token, result in answer["result_by_token_id"].items()}
    tokens = np.array(sorted(counts), np.int64)
    return Distribution(answer["suffix_len"], answer["prompt_cnt"], tokens,
                        np.array([counts[token] for token in tokens.tolist()], np.int64), not answer["approx"])
