"""Which of two models answers better: files of answers in AlpacaEval's form, and a judge that compares them in pairs.

The judge is any language model behind an endpoint that speaks OpenAI's protocol (POST .../chat/completions): a service,
or vLLM, llama.cpp and their like on a machine of one's own. It is shown each pair twice, in both orders, since judges
prefer a place; a pair counts only with both verdicts. The rate is plain, not controlled for length: that takes the
difficulty of each instruction, which AlpacaEval's own package holds, and it reads the files that `write_answers` makes.

Every verdict is kept on disk, so a run that breaks off goes on where it was, and the same question is asked once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from reptrace.records.store import write_atomically

COLUMNS = ("instruction", "output", "generator", "dataset")  # of AlpacaEval's files
LONGEST_WAIT = 60  # seconds before another attempt
QUESTION = """Which of two answers to an instruction is better? Consider whether it does what is asked, and whether \
what it says is right. Neither its length nor its place matters.

<instruction>
{instruction}
</instruction>

<answer_A>
{first}
</answer_A>

<answer_B>
{second}
</answer_B>

Reply with one word: A, B, or TIE if they are equally good."""
VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}  # what the first of the two is given


class JudgeError(RuntimeError):
    """The judge is out of reach, or refuses; the message says which and what to try."""


class _FailureError(Exception):
    """What may be better at the next attempt; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0):
        super().__init__(reason)
        self.wait = wait


def write_answers(path: str | Path, asked: Sequence[Mapping], outputs: Sequence[str], generator: str) -> None:
    """A model's answers as AlpacaEval's package reads them (--model_outputs, --reference_outputs).

    Parameters
    ----------
    asked : rows of AlpacaEval (`published_sets.alpaca_eval`): instruction, dataset
    outputs : the answers, in that order
    generator : name of the model
    """
    rows = [{"instruction": row["instruction"], "output": output, "generator": generator, "dataset": row["dataset"]}
            for row, output in zip(asked, outputs, strict=True)]
    write_atomically(path, json.dumps(rows, indent=2, ensure_ascii=False).encode())


def read_answers(path: str | Path) -> pd.DataFrame:
    """Answers in AlpacaEval's form: instruction, output, generator, and dataset if there is one.

    Raises
    ------
    ValueError
        Not such a file; an instruction twice; answers of several models.
    """
    try:
        rows = json.loads(Path(path).read_text("utf-8"))
        table = pd.DataFrame({name: [row[name] for row in rows] for name in COLUMNS[:3]})
        texts = all(isinstance(each, str) for name in COLUMNS[:3] for each in table[name])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is not a file of answers in AlpacaEval's form, a JSON array of objects with "
                         f"{', '.join(COLUMNS[:3])}: {error!r}") from error
    if not len(table) or not texts or table.instruction.duplicated().any() or table.generator.nunique() != 1:
        raise ValueError(f"{str(path)!r} should hold one model's answers, texts, each instruction once; it has "
                         f"{len(table)} of {table.generator.nunique()} models, "
                         f"{table.instruction.duplicated().sum()} of them again.")
    return table


@dataclass(frozen=True)
class Judge:
    """A language model that says which of two answers is better.

    Parameters
    ----------
    url : str
        Of the endpoint, up to /v1; "/chat/completions" is added.
    model : str, as the endpoint calls it
    cache : folder of the verdicts, a small file each
    key : str, optional; sent, never written
    timeout : float, default 60, seconds
    attempts : int, default 6
        Of a request that fails for short: no connection, no answer in time, codes 408, 409, 429 and from 500 on,
        answers that are none. They wait 1, 2, 4, ... seconds, or as long as the server asks for, up to a minute.
    at_once : int, default 8, requests
    progress : bool, default True
    """

    url: str
    model: str
    cache: str | Path
    key: str | None = field(default=None, repr=False)
    timeout: float = 60
    attempts: int = 6
    at_once: int = 8
    progress: bool = True

    def compare(self, one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
        """Verdicts on two models' answers to the same instructions: a row an instruction.

        Columns: instruction; `first` and `second`, what one's answer was given where it was shown in that place (1,
        0.5, 0; nan: the judge's words held no verdict); `preference`, their mean (nan where either is).

        Raises
        ------
        ValueError
            Their instructions differ.
        JudgeError
            The judge is out of reach, or refuses.
        """
        import httpx2

        if set(one.instruction) != set(other.instruction):
            raise ValueError(f"the two answer {len(one)} and {len(other)} instructions, "
                             f"{len(set(one.instruction) & set(other.instruction))} of them the same: all must be.")
        pairs = list(zip(one.instruction, one.output, other.set_index("instruction").output[one.instruction],
                         strict=True))
        asked = [(instruction, *order) for instruction, *both in pairs for order in (both, both[::-1])]
        headers, ended = {"Authorization": f"Bearer {self.key}"} if self.key else {}, threading.Event()

        def judged(each: tuple[str, str, str]) -> float:
            try:
                return math.nan if ended.is_set() else self._verdict(client, *each)
            except BaseException:
                ended.set()  # nothing more is asked
                raise

        with (httpx2.Client(timeout=self.timeout, headers=headers) as client, ThreadPoolExecutor(self.at_once) as pool,
              tqdm(total=len(asked), desc=f"judged by {self.model}", disable=not self.progress) as bar):
            found = []
            try:
                for each in pool.map(judged, asked):
                    found.append(each)
                    bar.update()
            finally:
                ended.set()  # where it was interrupted, too
        given = np.array(found).reshape(-1, 2) * [1, -1] + [0, 1]  # what the answer shown second is given is the rest
        return pd.DataFrame({"instruction": one.instruction.to_list(), "first": given[:, 0], "second": given[:, 1],
                             "preference": given.mean(1)})

    def _verdict(self, client, instruction: str, first: str, second: str) -> float:
        """What the first answer is given; kept, whatever it is. One answer twice is a tie, and not asked."""
        if first == second:
            return VERDICTS["TIE"]
        content = QUESTION.format(instruction=instruction, first=first, second=second)
        query = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
        digest = hashlib.sha256(json.dumps([self.url, query], sort_keys=True).encode()).hexdigest()
        kept = Path(self.cache) / digest[:2] / f"{digest[2:32]}.json"
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged file is asked for again
            return verdict(json.loads(kept.read_text())["said"])
        said = self._asked(client, query)
        write_atomically(kept, json.dumps({"said": said, "model": self.model}).encode())
        return verdict(said)

    def _asked(self, client, query: Mapping) -> str:
        import httpx2
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        tried = Retrying(retry=retry_if_exception_type((_FailureError, httpx2.RequestError)), wait=_wait,
                         stop=stop_after_attempt(self.attempts), reraise=True)
        try:
            return tried(self._request, client, query)
        except (_FailureError, httpx2.RequestError) as error:
            raise JudgeError(f"the judge at {self.url} failed {self.attempts} times, at last with "
                             f"{type(error).__name__.strip('_')}: {error}. Verdicts so far are kept in "
                             f"{str(self.cache)!r}: run it again later.") from error

    def _request(self, client, query: Mapping) -> str:
        """The judge's words; "" where it said none."""
        response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=dict(query))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        told = answer.get("error") if isinstance(answer, dict) else None
        told = str(told.get("message", told) if isinstance(told, dict) else told or "")[:300]
        if 400 <= response.status_code < 500 and response.status_code not in (408, 409, 429):
            raise JudgeError(f"the judge at {self.url} refuses with code {response.status_code}"
                             f"{f': {told}' if told else ''}. Are the address, the model's name ({self.model!r}) and "
                             "the key right?")
        if told or response.status_code != 200:
            asked_for = response.headers.get("Retry-After", "")
            raise _FailureError(f"code {response.status_code} {told}".strip(),
                                float(asked_for) if asked_for.isdigit() else 0)
        try:
            said = answer["choices"][0]["message"]["content"]
            return "" if said is None else str(said)  # a refusal, or all of its tokens spent on thinking
        except (TypeError, KeyError, IndexError) as error:
            raise _FailureError(f"an answer that is none ({error!r})") from error


def verdict(said: str) -> float:
    """What the first answer is given by the judge's words, 1, 0.5 or 0; nan where they are not one of the three."""
    word = re.sub(r"[\s.*_\"'`():\[\]]+", " ", said).strip().upper()
    return VERDICTS.get(word.removeprefix("ANSWER ").removeprefix("THE ANSWER IS "), math.nan)


class WinRate(NamedTuple):
    """How often one model is preferred, over the pairs that have both verdicts; ties count half.

    `rate` with `stderr` (over instructions), nan of less than two pairs. `pairs` that count; `unparsed`, which don't;
    `ties`; `flipped`, whose verdicts contradict each other; `first`, what answers in the first place are given on
    average: 0.5 of a judge without a bias.
    """

    rate: float
    stderr: float
    pairs: int
    unparsed: int
    ties: int
    flipped: int
    first: float


def win_rate(compared: pd.DataFrame) -> WinRate:
    """Of a table that `Judge.compare` made."""
    good = compared[compared.preference.notna()]
    if good.empty:
        raise ValueError(f"none of the judge's {2 * len(compared)} replies could be read as A, B or TIE: is it a model "
                         "that follows instructions?")
    stderr = good.preference.std(ddof=1) / math.sqrt(len(good))
    return WinRate(float(good.preference.mean()), float(stderr), len(good), len(compared) - len(good),
                   int((good.preference == 0.5).sum()), int((good["first"] - good.second).abs().eq(1).sum()),
                   float((good["first"] + 1 - good.second).mean() / 2))


def _wait(state) -> float:
    """Seconds before the next attempt: 1, 2, 4, ..., or what the server asks for, up to LONGEST_WAIT."""
    asked_for = getattr(state.outcome.exception(), "wait", 0)
    return min(LONGEST_WAIT, max(2.0 ** (state.attempt_number - 1), asked_for))
