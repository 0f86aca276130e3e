"""Text that checkpoints write, as parts of a sweep: samples whose answers are checked, and answers to instructions.

Either is hours of work on a checkpoint. So it is kept in pieces of minutes (`kept_writing`) in a folder that all
workers see, and a job that was cut off, or a worker that died, goes on from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import pandas as pd

from reptrace.records.store import Store
from reptrace.support.fingerprints import fingerprint
from reptrace.sweeps.evaluation import own_tokenizer
from reptrace.sweeps.jobs import Job, Opened, Part
from reptrace.sweeps.located import identity_of, place
from reptrace.tasks.kept_writing import METHOD, Writing, written
from reptrace.texts.final_answers import final_answer, right


@dataclass(frozen=True, eq=False)
class AnswersPart(Part):
    """What every checkpoint writes after each prompt: a row a text (prompt, sample, text, tokens, ended).

    Parameters
    ----------
    prompts : texts
    writing : Writing
    folder : of the pieces, which every worker sees under this name
    """

    prompts: Sequence[str] = field(repr=False)
    writing: Writing
    folder: str | Path

    head = True
    reads = True
    kept: ClassVar[Callable | None] = None  # of a text; default the text

    def identity(self, job: Job) -> dict:
        return {"writing": self.writing.identity, "writing_method": METHOD, "device": job.opening.device,
                "dtype": job.opening.dtype, "beside": job.at.beside, "kept": self.kept and type(self).__name__,
                "prompts": fingerprint(prompt.encode("utf-8", "surrogatepass") for prompt in self.prompts)}

    def facts(self, job: Job) -> dict:
        return {**place(job.checkpoint), "weights": job.at.weights, "device": job.opening.device,
                "dtype_forward": job.opening.dtype, **self.writing.identity}

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        return self._written(opened, progress).to_dict("records")

    def _written(self, opened: Opened, progress: bool) -> pd.DataFrame:
        job = opened.job
        tokenizer = opened.once("tokenizer", partial(own_tokenizer, job))
        who = {**identity_of(job.checkpoint, job.at, job.opening), "device": job.opening.device,
               "dtype": job.opening.dtype, "beside": job.at.beside}
        return written(lambda: opened.model, tokenizer, self.prompts, self.writing, Store(self.folder), who, self.kept,
                       progress)


@dataclass(frozen=True, eq=False)
class SolvedPart(AnswersPart):
    """How many samples of each problem end with the right number: a row a problem.

    Columns: problem (number), samples, right, distinct (answers among them, none counted as one), cut_off (share).
    `pass_at_k.unbiased` makes pass@k of samples and right. Of a text its final answer alone is kept.

    Parameters
    ----------
    answers : the number that is right, by prompt
    """

    answers: Sequence[str] = field(default=(), repr=False)

    kept = staticmethod(final_answer)

    def __post_init__(self):
        if len(self.answers) != len(self.prompts):
            raise ValueError(f"each problem has an answer: got {len(self.prompts)} and {len(self.answers)}.")
        for answer in self.answers:
            right(None, answer)  # ValueError now, not in hours

    def identity(self, job: Job) -> dict:
        return {**super().identity(job), "answers": fingerprint(answer.encode() for answer in self.answers)}

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        return [{"problem": problem, "samples": len(found), "distinct": found.text.nunique() + found.text.isna().any(),
                 "right": sum(right(each, self.answers[problem]) for each in found.text.dropna()),
                 "cut_off": float(1 - found.ended.mean()), "tokens_written": int(found.tokens.sum())}
                for problem, found in self._written(opened, progress).groupby("prompt")]
