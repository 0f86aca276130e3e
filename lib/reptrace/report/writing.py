"""Text that the checkpoints of a suite write, early and late, and how much of it repeats itself: the page of Fig 6."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.selection import spread
from reptrace.measures.echoes import echoes
from reptrace.measures.pass_at_k import difference
from reptrace.measures.phases import phases_of
from reptrace.report.over_runs import mean_over
from reptrace.report.profiles import DEVICE, DTYPE, ROOT, Profile
from reptrace.report.said import side
from reptrace.report.verdicts import NOT, OPEN, Verdict, of_parts, of_runs
from reptrace.training.runs import Run

TABLE = "writing"
BASES = ROOT / "data" / "results" / "posttrain_writing.csv"
COLUMNS = ["model", "revision", "step", "tokens", "way", "prompt", "repeated", "real", "ended", "prompt_text",
           "written", "follows"]
GREEDY, DRAWN = WAYS = ("greedy", "drawn")  # the likeliest token each time, or one drawn at temperature 1
PROMPTS, LENGTH, FURTHER = 32, 16, 48  # held-out texts, tokens of each that the models go on from, and that they write
EXAMPLES = 2  # of them that are kept as text
POINTS = 7  # checkpoints of a run, spread, and that of RankMe's minimum
TOLD = 0.1  # repeated stretches beyond those of real text, as a share of all, from which on a text repeats itself


def written(profile: Profile, early: Mapping[Run, int | None]) -> dict[Run, pd.DataFrame]:
    """What some checkpoints of each run, the `early` step included, write after the first tokens of held-out texts.

    Columns: model, revision, step, tokens, way (of WAYS), prompt (its number), repeated (share of stretches of four
    tokens that stood in the text before; nan where it ended early, as short texts repeat less), real (the same of what
    follows in the held-out text), ended; and of the first EXAMPLES prompts prompt_text, written, follows, else empty.
    """
    return profile.by_run(profile.asked(TABLE, lambda: _written(profile, early)))


def bases() -> dict[tuple[str, int], pd.DataFrame]:
    """What the bases of post-training write, (group, seed) -> `repetition`; tracked, by `make posttrain`."""
    rows = pd.read_csv(BASES, keep_default_na=False, na_values={"repeated": ""})
    return {key: repetition(its) for key, its in rows.groupby(["group", "seed"])}


def minima(curves: Mapping[Run, pd.DataFrame]) -> dict[Run, int | None]:
    """The step at which each run's collapse ends, RankMe's minimum; None where there is none. `curves`: its trace."""
    found = {}
    for run, curve in curves.items():
        end = phases_of(curve).collapse_end
        found[run] = int(curve.step.iloc[end.index]) if end else None
    return found


def _written(profile: Profile, early: Mapping[Run, int | None]) -> pd.DataFrame:
    texts, rows = {}, []
    for run in profile.runs:
        key = run.vocabulary, run.context
        if key not in texts:
            texts[key] = [list(text[: LENGTH + FURTHER]) for text in profile.probe(run).sequences
                          if len(text) >= LENGTH + FURTHER][:PROMPTS]
            if not texts[key]:
                raise ValueError(f"no sequence of the probe has {LENGTH + FURTHER} tokens, {LENGTH} to begin with and "
                                 f"{FURTHER} to compare: take a larger context than {run.context}.")
        points = profile.points(run)
        chosen = {*spread(points, min(POINTS, len(points))), *(point for point in points if point.step == early[run])}
        for point in (each for each in points if each in chosen):
            rows += rows_of(point, profile.suite.tokenizer(run.vocabulary), texts[key])
    return pd.DataFrame(rows, columns=COLUMNS)


def rows_of(point: Checkpoint, tokenizer, texts: list[list[int]]) -> list[dict]:
    """What one checkpoint writes after the first LENGTH tokens of texts, rows of `written`.

    `texts` : token ids, LENGTH + FURTHER of each
    """
    from reptrace.models.generation import write
    from reptrace.models.loading import load

    model = load(point.model, point.revision, point.cache_dir, DEVICE, DTYPE, head=True)
    rows, prompts = [], [text[:LENGTH] for text in texts]
    for way in WAYS:
        made = write(model, tokenizer, prompts, FURTHER, temperature=float(way == DRAWN))
        for k, (text, ended) in enumerate(zip(texts, made.ended[:, 0].tolist(), strict=True)):
            shown = (tokenizer.decode(prompts[k]), made.texts[k][0], tokenizer.decode(text[LENGTH:]))
            rows.append(dict(zip(COLUMNS, (
                point.model, point.revision, point.step, point.tokens, way, k,
                float("nan") if ended else _repeated(made.tokens[k][0]), _repeated(text[LENGTH:]), ended,
                *(shown if k < EXAMPLES else ("", "", ""))), strict=True)))
    return rows


def _repeated(tokens: list[int]) -> float:
    return echoes([], tokens)["repeated"]


def repetition(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one run, a row a way and checkpoint, in order of steps.

    Columns: way, step, tokens, repeated and real (mean shares over the texts that did not end), excess (the mean of
    their difference, with its 95 % interval over texts, paired: low, high; nan of fewer than two), ended (share).
    """
    found = []
    for (way, step), its in rows.groupby(["way", "step"], sort=True):
        whole = its[~its.ended]
        excess = difference(whole.real, whole.repeated) if len(whole) > 1 else (np.nan,) * 3
        found.append({"way": way, "step": step, "tokens": its.tokens.iloc[0], "repeated": whole.repeated.mean(),
                      "real": whole.real.mean(), **dict(zip(("excess", "low", "high"), excess, strict=True)),
                      "ended": its.ended.mean()})
    return pd.DataFrame(found)


def repeats(row: pd.Series) -> str:
    """Whether texts repeat themselves: more than TOLD beyond real ones, by the whole interval; or "undecided"."""
    return side(row.low - TOLD, row.high - TOLD)


def ends(found: Mapping[Run, pd.DataFrame], early: Mapping[Run, int | None], way: str) -> pd.DataFrame:
    """Of each run, how much its texts written in one way repeat at RankMe's minimum and at the end.

    `found` : run -> `repetition`. Columns: early_ and late_ before each of tokens, repeated, real, low, high, says (see
    `repeats`). Of a run without a minimum the early ones are nan, and says "undecided".
    """
    rows = {}
    for run, table in found.items():
        its = table[table.way == way].assign(says=table.apply(repeats, axis=1)).set_index("step")
        its = its[["tokens", "repeated", "real", "low", "high", "says"]]
        first = its.loc[early[run]] if early[run] is not None else pd.Series(np.nan, its.columns, dtype=object)
        if early[run] is None:
            first["says"] = "undecided"
        rows[run] = {**first.add_prefix("early_"), **its.iloc[-1].add_prefix("late_")}
    return pd.DataFrame.from_dict(rows, orient="index")


def echolalia(by_way: Mapping[str, pd.DataFrame], scale: str) -> Verdict:
    """The verdict on Fig 6, from the `ends` of each way: texts repeat themselves early, and at the end they do not.

    Where they do not early, the claim does not hold of that way, whatever comes at the end.
    """
    turned = {"yes": "no", "no": "yes", "undecided": "undecided"}
    says = {way: [list(its.early_says), [turned[each] for each in its.late_says]] for way, its in by_way.items()}
    whole = [set(each) == {"yes"} for each in zip(*(part for its in says.values() for part in its), strict=True)]
    change = by_way[GREEDY].late_repeated - by_way[GREEDY].early_repeated
    shares = "; ".join(f"{way}, {over(100 * its.early_repeated)} % of the stretches of four tokens stood in the same "
                       f"text before at RankMe's minimum, and {over(100 * its.late_repeated)} % at the end"
                       for way, its in by_way.items())
    real = pd.concat([its.late_real for its in by_way.values()])
    counts = [" and ".join(f"{(its[f'{place}_says'] == 'yes').sum()} of {len(its)} ({way})"
                           for way, its in by_way.items()) for place in ("early", "late")]
    return Verdict(
        "fig06-echolalia", of_parts(_of_way(*map(of_runs, its)) for its in says.values()),
        f"{shares[0].upper()}{shares[1:]}; in real text, {over(100 * real)} %. So early text repeats itself in "
        f"{counts[0]} runs, late text in {counts[1]}.",
        "change of the share of repeated stretches from RankMe's minimum to the end, greedy, mean over runs",
        *mean_over(change.astype(float)), sum(whole), len(whole), scale)


def _of_way(early: str, late: str) -> str:
    return early if early in (NOT, OPEN) else of_parts([early, late])


def over(values: pd.Series) -> str:
    """Smallest and largest of some values, without decimals: "27 to 55"; "–" where none is known."""
    known = values.dropna()
    low, high = f"{known.min():.0f}", f"{known.max():.0f}"
    return "–" if known.empty else low if low == high else f"{low} to {high}"
