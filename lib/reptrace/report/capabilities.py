"""What Fig 3 and Tables 7 to 9 ask of a profile: its tasks, its questions with what its training text says of their
answers, on all of its checkpoints, and on the last ones with directions removed or kept.

A suite trained here is asked items made from its own held-out text (`items`), and its training text is indexed whole.
Suites of the hub are asked lm-eval's tasks and TriviaQA, and the public infini-gram index of their training text.
What a suite trained here answered is kept for the archive, and read from one where the profile is an archive's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from reptrace.checkpoints import suites
from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.selection import spread
from reptrace.measures.phases import Phases
from reptrace.memorization.infgram import build_infgram
from reptrace.memorization.infgram_api import WebInfinityGram
from reptrace.memorization.questions import Answers, Peak, Questions, encoded, infgram_answers, peak
from reptrace.models import loading
from reptrace.models.eigendirections import Projection
from reptrace.report.profiles import DEVICE, DTYPE, HubProfile, Profile
from reptrace.support.processes import cores
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.tasks import evaluation
from reptrace.texts import items
from reptrace.texts.frequencies import NATURAL
from reptrace.texts.ngrams import NgramModel

MEMORIZATION = "memorization"
BATCH_SIZE = 32  # sequences: small enough that a batch's logits stay in the cache
STOCK = ("sciq", "triviaqa", "lambada_openai")
# The web API's index of a suite's training text, all in Llama 2's tokens, and a repository of that tokenizer that
# needs no permission.
INDEXES = {"pythia": "v4_piletrain_llama", "olmo2": "v4_olmo-2-1124-13b-instruct_llama"}
LLAMA2 = "hf-internal-testing/llama-tokenizer"
METRICS = ("acc", "exact_match", "spearman")  # the one that is shown, of those that a task has
QUESTIONS_EACH = 8  # questions for each item of a task: one answer to score, not choices, and a weaker signal
CHANCE = {**dict.fromkeys(("continuation", *items.NEAR, *items.NEAR.values()), 0.25), "sciq": 0.25}
KS, RANDOM_SEEDS = (1, 2, 5, 10, 50), 3
PEAK = ["model", *(each.name for each in fields(Peak))]


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are asked the same questions.

    `checkpoints`: run -> its checkpoints; `tasks`: names; `data`: their files, see `evaluation.evaluate`; `suffixes`:
    the infinity-gram model's look-ups of the questions' answers; `source`: which infinity-gram model; `tokens`: how
    many its text has, if it was read here. An archive has no data, questions and tokenizer.
    """

    checkpoints: Mapping[object, list[Checkpoint]]
    tasks: tuple[str, ...]
    suffixes: Answers
    source: str
    tokens: int | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    questions: Questions | None = None
    tokenizer: object = field(default=None, repr=False)


def groups(profile: Profile | HubProfile, count: int, progress: bool = True) -> list[Group]:
    """The runs of a profile by what they are asked; `count` items of a task at most, and some questions for each."""
    if isinstance(profile, HubProfile):
        return [_of_hub(profile, run, count) for run in profile.runs]
    asked = list(dict.fromkeys((run.vocabulary, run.context) for run in profile.runs))
    found = [] if profile.archive else [_of_suite(profile, key, count, progress) for key in asked]
    table = profile.asked(f"suffixes_{count}", lambda: pd.concat(map(_suffixes, range(len(found)), found)))
    return found or [_of_archive(profile, key, table[table.group == number]) for number, key in enumerate(asked)]


def evaluate(profile: Profile | HubProfile, found: Sequence[Group], count: int, progress: bool = True
             ) -> dict[object, pd.DataFrame]:
    """Tasks and memorization on every checkpoint: run -> table of `evaluation.evaluate_checkpoints`.

    From an archive, memorization comes without the values of its items: see `peaks`.
    """
    if isinstance(profile, HubProfile):
        return _evaluated(profile, found, count, progress)
    tables = {} if profile.archive else _evaluated(profile, found, count, progress)
    kept = profile.asked(f"tasks_{count}", lambda: _without_scores(pd.concat(tables.values())))
    return tables or profile.by_run(kept)


def _evaluated(profile: Profile | HubProfile, found: Sequence[Group], count: int, progress: bool
               ) -> dict[object, pd.DataFrame]:
    tables = {}
    for group in found:
        points = [point for each in group.checkpoints.values() for point in each]
        table = evaluate_checkpoints(points, [*group.tasks, group.questions], profile.store, BATCH_SIZE, count,
                                     group.data, progress=progress, **_placement(profile))
        tables |= {run: table[[key in {(p.model, p.revision) for p in each}
                               for key in zip(table.model, table.revision, strict=True)]].reset_index(drop=True)
                   for run, each in group.checkpoints.items()}
    return {run: tables[run] for run in profile.runs}


def project(profile: Profile, found: Sequence[Group], count: int, ks: Sequence[int] = KS, progress: bool = True
            ) -> dict[object, pd.DataFrame]:
    """The first task, and the loss, on the last checkpoint of every first seed, with directions removed or kept.

    For every k below the width, see `projections`; the runs of a group have one probe.
    """
    if isinstance(profile, HubProfile):
        return _projected(profile, found, count, ks, progress)
    return profile.by_run(profile.asked(f"projections_{count}", lambda: pd.concat(
        _projected(profile, found, count, ks, progress).values())))


def _projected(profile: Profile | HubProfile, found: Sequence[Group], count: int, ks: Sequence[int], progress: bool
               ) -> dict[object, pd.DataFrame]:
    firsts = {runs[0]: tuple(k for k in ks if k < runs[0].width) for runs in profile.sizes_of_runs}
    tables = {}
    for group in found:
        for usable in dict.fromkeys(firsts.values()):  # at once for all that differ by nothing but their weights
            runs = [run for run, its in firsts.items() if run in group.checkpoints and its == usable]
            if runs:
                table = evaluate_checkpoints(
                    [group.checkpoints[run][-1] for run in runs], [group.tasks[0], "loss"], profile.store, BATCH_SIZE,
                    count, group.data, probe=profile.probe(runs[0]), projections=[None, *projections(usable)],
                    progress=progress, **_placement(profile))
                tables |= {run: table[table.model == group.checkpoints[run][-1].model].reset_index(drop=True)
                           for run in runs}
    return {run: tables[run] for run in firsts}


def projections(ks: Sequence[int]) -> list[Projection]:
    """Leading directions about the mean and about the origin, and random ones about the mean, removed and kept."""
    asked = []
    for k, kind in product(ks, ("remove", "keep")):
        asked += [Projection(k, kind, about) for about in ("mean", "origin")]
        asked += [Projection(k, kind, chosen="random", seed=seed) for seed in range(RANDOM_SEEDS)]
    return asked


def series(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """One run's values of a task by training tokens, gaps included.

    Columns: model, revision, tokens, status, the task's name and, with `_stderr`, its standard error (for memorization,
    a quarter of the 95 % interval, roughly), items (the value of each; see `evaluate`).
    """
    rows = table[table.task == task]
    first = rows[rows.metric.isin(METRICS)] if "metric" in rows else rows
    rows = rows[(rows.status != "measured") | rows.index.isin(first.index)]
    rows = rows.drop_duplicates(["model", "revision"]).sort_values("tokens")
    stderr = (rows.high - rows.low) / 3.92 if "high" in rows and task == MEMORIZATION else rows.get("stderr", np.nan)
    return pd.DataFrame({"model": rows.model, "revision": rows.revision, "tokens": rows.tokens, "status": rows.status,
                         task: rows.get("value", np.nan), f"{task}_stderr": stderr, "items": rows.get("items")}
                        ).reset_index(drop=True)


def gain(far: pd.DataFrame, near: pd.DataFrame, name: str) -> pd.DataFrame:
    """What a task's answers gain over those of its control (`items.NEAR`), item by item; as of `series`, under a name.

    `far`, `near`: of `series`. A gap in either is one.
    """
    joined = far[["model", "revision", "tokens", "status", "items"]].merge(
        near[["model", "revision", "status", "items"]], on=["model", "revision"], suffixes=("", "_near"))
    there = (joined.status == "measured") & (joined.status_near == "measured")
    each = [np.subtract(row.items, row.items_near, dtype=float) if measured else None
            for measured, row in zip(there, joined.itertuples(), strict=True)]
    return pd.DataFrame({
        "model": joined.model, "revision": joined.revision, "tokens": joined.tokens,
        "status": joined.status.where(there | (joined.status != "measured"), joined.status_near),
        name: [np.nan if item is None else item.mean() for item in each],
        f"{name}_stderr": [np.nan if item is None else item.std(ddof=1) / np.sqrt(len(item)) for item in each],
        "items": pd.Series(each, dtype=object)})


def differences(values: pd.DataFrame, found: Phases) -> dict[str, np.ndarray]:
    """How much a task's answers changed in each phase, item by item: phase -> value after less value before, (items,).

    `values`: of `series`; `found`: spans that are indices into it (`phases.elsewhere`). Phases with a gap at an end are
    left out.
    """
    changed = {}
    for name, first, last in found.spans:
        before, after = values["items"].iloc[first], values["items"].iloc[last]
        if before is not None and after is not None:
            changed[name] = np.asarray(after, float) - np.asarray(before, float)
    return changed


def beside(values: pd.DataFrame, task: str, traced: pd.DataFrame) -> pd.DataFrame:
    """A task's values with RankMe and alpha of the same checkpoints: what `correlations.table` takes."""
    columns = ["model", "revision", "rankme", "alpha"]
    joined = values.drop(columns="items").merge(traced[columns], on=["model", "revision"], how="inner")
    return joined.rename(columns={task: "accuracy"}).dropna(subset=["accuracy", "rankme", "alpha"])


def ngram_baseline(profile: Profile, group: Group, count: int) -> list[dict]:
    """Rows of `evaluation.evaluate` for the n-gram model of the training text, on a suite trained here."""
    def evaluated() -> pd.DataFrame:
        run = next(iter(group.checkpoints))
        ids = np.fromfile(profile.suite.tokens(run.vocabulary), dtype=np.uint16)
        return pd.DataFrame(evaluation.evaluate(NgramModel(ids, len(group.tokenizer)), group.tokenizer, group.tasks,
                                                BATCH_SIZE, count, group.data))

    return profile.asked(f"ngram_{count}", evaluated).to_dict("records")


def peaks(profile: Profile | HubProfile, found: Sequence[Group], asked: Mapping[object, pd.DataFrame], count: int
          ) -> dict[object, Peak]:
    """Where the memorization of each run is highest, of those with two measured checkpoints; see `questions.peak`.

    `asked`: of `evaluate`.
    """
    def of_all() -> dict[object, Peak]:
        peaked = {}
        for group in found:
            for run in group.checkpoints:
                known = series(asked[run], MEMORIZATION).query("status == 'measured'")
                if len(known) > 1:
                    peaked[run] = peak(known.tokens, np.stack(known["items"]), group.questions.reference)
        return peaked

    if isinstance(profile, HubProfile):
        return of_all()
    table = profile.asked(f"peaks_{count}", lambda: pd.DataFrame(
        [{"model": run.repository, **asdict(each)} for run, each in of_all().items()], columns=PEAK))
    return {run: Peak(**{name: value for name, value in rows.iloc[0].items() if name != "model"})
            for run, rows in profile.by_run(table).items()}


def _of_suite(profile: Profile, key: tuple[int, int], count: int, progress: bool) -> Group:
    vocabulary, context = key
    runs = [run for run in profile.runs if (run.vocabulary, run.context) == key]
    if any(run.frequencies != NATURAL for run in runs):
        raise ValueError("runs whose token ids were remapped cannot be asked in the tokenizer's own ids: leave those "
                         "with other frequencies out of the sizes.")
    tokenizer, tokens = profile.suite.tokenizer(vocabulary), profile.suite.tokens(vocabulary)
    training, held_out = profile.texts
    data = items.make(training, held_out, tokenizer, tokens, context, profile.folder / "items")
    ids = np.fromfile(tokens, dtype=np.uint16)
    index = build_infgram(ids, profile.folder / "infgram" / f"{training.fingerprint}-{vocabulary}",
                          separator=tokenizer.eos_token_id, vocabulary=len(tokenizer), corpus=training.fingerprint,
                          tokenizer=tokenizer, progress=progress)
    asked = [json.loads(line) for line in data[items.QUESTIONS].read_text().splitlines()][: QUESTIONS_EACH * count]
    prompts = [item["passage"] for item in asked]
    answers = [f" {item['choices'][item['answer']]}" for item in asked]
    suffixes = infgram_answers(index, *encoded(tokenizer, prompts, answers))
    source = f"training text {training.fingerprint}, vocabulary {vocabulary}"
    questions = Questions(MEMORIZATION, prompts, answers, suffixes.log_probability, source)
    far = next((name for name in items.NEAR if name in data), None)
    tasks = ("continuation", *((far, items.NEAR[far]) if far else ()))
    return Group({run: profile.points(run) for run in runs}, tasks, suffixes, source, len(ids), data,
                 questions, tokenizer)


def _of_archive(profile: Profile, key: tuple[int, int], table: pd.DataFrame) -> Group:
    """A group from its rows of `_suffixes`."""
    item, each = table.item.to_numpy(), table.token_log_probability.to_numpy()
    joint = np.zeros(item.max() + 1)
    np.add.at(joint, item, each)
    return Group({run: profile.points(run) for run in profile.runs if (run.vocabulary, run.context) == key},
                 tuple(table.tasks.iloc[0].split()), Answers(joint, item, table.length.to_numpy(), each),
                 table.source.iloc[0], int(table.tokens.iloc[0]))


def _suffixes(number: int, group: Group) -> pd.DataFrame:
    """What notebooks read of a group, a row for each token of an answer."""
    found = group.suffixes
    return pd.DataFrame({"group": number, "source": group.source, "tokens": group.tokens,
                         "tasks": " ".join(group.tasks), "item": found.item, "length": found.length,
                         "token_log_probability": found.token_log_probability})


def _without_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Without ln P of each answer of memorization, ten times as many numbers as all else: `peaks` tells what they say.
    """
    return table.assign(items=table["items"].where(table.task != MEMORIZATION, None)) if "items" in table else table


def _of_hub(profile: HubProfile, run, count: int) -> Group:
    suite = suites.suite(run.name)
    points = [point for point in suite.checkpoints() if point.stage == profile.STAGE]
    prompts, answers = trivia(count)
    tokenizer = loading.load_tokenizer(LLAMA2)
    index = INDEXES.get(run.name.split("-")[0])
    if index is None:
        raise ValueError(f"no public infini-gram index is known of the training text of {run.name!r}; there are those "
                         f"of {', '.join(INDEXES)}.")
    web = WebInfinityGram(profile.folder / "infgram", index)
    suffixes = infgram_answers(web, *encoded(tokenizer, prompts, answers))
    questions = Questions(MEMORIZATION, prompts, answers, suffixes.log_probability, index)
    return Group({run: spread(points, profile.checkpoints)}, STOCK, suffixes, index, None, {}, questions, tokenizer)


def trivia(count: int) -> tuple[list[str], list[str]]:
    """Prompts and answers of TriviaQA's first validation questions, as the paper words them."""
    from datasets import load_dataset

    rows = load_dataset("mandarjoshi/trivia_qa", "rc.nocontext", split="validation", streaming=True).take(count)
    pairs = [(row["question"].strip().rstrip("?"), row["answer"]["value"]) for row in rows]
    return [f"Question: {question}? Answer:" for question, _ in pairs], [f" {answer}" for _, answer in pairs]


def _placement(profile: Profile | HubProfile) -> dict:
    return {} if isinstance(profile, HubProfile) else {"device": DEVICE, "dtype": DTYPE, "workers": cores()}
