"""The paper's models after pretraining (Fig 5, 14), as posttraining_paper.yaml says; on GPUs, and with the hub.

    python studies/posttraining_paper.py cost                       what each of the others takes
    python studies/posttraining_paper.py trace --out FOLDER         geometry over the stages of Tulu 3 and 3.1
    python studies/posttraining_paper.py amc --out FOLDER           pass@k on AMC-23
    python studies/posttraining_paper.py sft --out FOLDER           OLMo 2 1B tuned on two sets, from early to late
    python studies/posttraining_paper.py answers --out FOLDER       the tuned models' answers, in AlpacaEval's form
    python studies/posttraining_paper.py judge --out FOLDER         win rates among them

Each writes FOLDER/NAME.csv, and goes on where it was cut off; `answers` follows `sft`, and `judge` follows `answers`.
With --scheduler ADDRESS, the workers of a Dask cluster do the work, which see FOLDER under the same name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from reptrace.checkpoints.listing import Checkpoint, checkpoints
from reptrace.checkpoints.selection import spread
from reptrace.checkpoints.suites import suite
from reptrace.measures import pass_at_k
from reptrace.records.store import Store, write_atomically
from reptrace.support.fingerprints import files_fingerprint
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import GeometryPart, Settings
from reptrace.sweeps.plan import GPUS, estimate
from reptrace.sweeps.sweep import SuiteSpec, in_order, measure_suites
from reptrace.sweeps.tokenizers import tokenizer_of
from reptrace.sweeps.writing import AnswersPart, SolvedPart
from reptrace.tasks.kept_writing import Writing
from reptrace.tasks.win_rates import Judge, read_answers, win_rate, write_answers
from reptrace.texts import published_sets
from reptrace.texts.corpora import ProbeSpec
from reptrace.training.tuning import Tuning, TuningPart

PLAN = Path(__file__).with_suffix(".yaml")
STEP, HELD_OUT_READS = 6, 2  # operations a weight and token, of training and of a loss (Kaplan et al. 2020)


class Study:
    """The parts of the study, each a table, in one folder.

    Parameters
    ----------
    plan : dict, as in posttraining_paper.yaml
    out : folder, which all workers see under this name
    opening, means : how models are opened, and by what means
    """

    def __init__(self, plan: Mapping, out: Path, opening: Opening, means: Means):
        self.plan, self.out, self.opening, self.means = plan, out.resolve(), opening, means
        self.store = Store(self.out / "records")

    def trace(self) -> pd.DataFrame:
        """Geometry of every stage on text and on prompts: a row a checkpoint and probe, stages in their order."""
        plan = self.plan["trace"]
        which = SuiteSpec(plan["suites"], plan["checkpoints"])
        texts = [ProbeSpec(**each) for each in plan["texts"]]
        return measure_suites(which, texts, self.out, None, Settings(batch_size="auto"), self.opening,
                              self.means).geometry

    def amc(self) -> pd.DataFrame:
        """pass@k with its interval over problems by model, and from which k on it is behind the first (see
        `pass_at_k.Crossing`)."""
        plan, asked = self.plan["amc"], published_sets.amc23(self._place("amc23"))
        prompts = [plan["prompt"].replace("{question}", row["question"]) for row in asked.rows]
        points = [_checkpoint(name) for name in plan["models"]]
        answers = [row["answer"] for row in asked.rows]
        part = SolvedPart(prompts, Writing(**plan["writing"]), self.out / "pieces", answers)
        table = self._done(points, part)
        write_atomically(self.out / "amc_problems.csv", table.to_csv(index=False).encode())
        curves, k = {}, np.array(plan["k"])
        for point in points:
            found = table[(table.model == point.model) & (table.revision.eq(point.revision) | (point.revision is None))]
            if (found.status == "measured").all():
                curves[point.label] = pass_at_k.unbiased(part.writing.samples, found["right"].to_numpy(np.int64), k)
        first = curves.get(points[0].label)
        return pd.DataFrame([row for name, passes in curves.items() for row in _curve(name, passes, first, k)]).assign(
            set=asked.name, **part.writing.identity)

    def sft(self) -> pd.DataFrame:
        """Losses of every tuned model, and RankMe and alpha of its base: a row a checkpoint, set and seed."""
        plan, points, files = self.plan["sft"], self.bases(), self.pair_files()
        spec = ProbeSpec(**plan["geometry"])
        probe = spec.probe(spec.corpus(self.out / "corpora"), tokenizer_of(points, spec.max_length))
        tunings = [TuningPart(Tuning(seed=seed, **plan["tuning"]), name, *files[name], self.out / "tuned")
                   for seed in plan["seeds"] for name in plan["sets"]]
        geometry = GeometryPart(probe, Settings(batch_size="auto"))
        done = run([(points, [part]) for part in (geometry, *tunings)], self.store, self.opening, self.means)
        bases, *tuned = (in_order(self._table(part, jobs), points)
                         for part, jobs in zip((geometry, *tunings), done, strict=True))
        columns = ["rankme", "rankme_stderr", "alpha", "alpha_stderr"]
        bases = bases.reindex(columns=["model", "revision", *columns])
        return pd.concat(tuned, ignore_index=True).merge(bases, on=["model", "revision"], how="left")

    def answers(self) -> pd.DataFrame:
        """Every tuned model's answers, as files in FOLDER/answers: a row a model."""
        asked = self._instructions().rows
        tuned = self._tuned()
        part = AnswersPart([row["prompt"] for row in asked], Writing(**self.plan["answers"]["writing"]),
                           self.out / "pieces")
        table, rows = self._done([Checkpoint(folder) for folder in tuned.folder], part), []
        for folder, found in table.groupby("model", sort=False):
            name = Path(folder).parent.name
            rows.append({"generator": name, "model": folder, "status": found.status.iloc[0]})
            if rows[-1]["status"] == "measured":
                outputs = [text.split(published_sets.HUMAN)[0].strip() for text in found.sort_values("prompt").text]
                write_answers(self.answers_of(folder), asked, outputs, name)
                rows[-1] |= {"cut_off": float(1 - found.ended.mean()), "letters": np.mean(list(map(len, outputs)))}
        return pd.DataFrame(rows)

    def judge(self) -> pd.DataFrame:
        """Win rates of models tuned on the first set against their twin tuned on the second, against the same tuning of
        the last checkpoint, and against AlpacaEval's reference: a row a checkpoint, seed and opponent."""
        plan, rows, tuned = self.plan["judge"], [], self._tuned()
        judge = Judge(plan["url"], plan["model"], self.out / "verdicts", os.environ.get(plan["key"]),
                      at_once=plan["at_once"], progress=self.means.progress)
        first, second = self.plan["sft"]["sets"]
        last = self.bases()[-1]
        reference = pd.DataFrame(self._instructions().rows)
        for row in tuned[tuned.tuned_on == first].itertuples():
            of_seed = tuned[tuned.seed == row.seed]
            others = {"twin": of_seed[(of_seed.revision == row.revision) & (of_seed.tuned_on == second)],
                      "last": of_seed[(of_seed.revision == last.revision) & (of_seed.tuned_on == first)]}
            answers = read_answers(self.answers_of(row.folder))
            for name, other in [(name, found.folder) for name, found in others.items()] + [("reference", None)]:
                if other is None or (len(other) == 1 and other.iloc[0] != row.folder):
                    against = reference if other is None else read_answers(self.answers_of(other.iloc[0]))
                    rate = win_rate(judge.compare(answers, against))
                    rows.append({"model": row.model, "revision": row.revision, "step": row.step, "tokens": row.tokens,
                                 "seed": row.seed, "tuned_on": first, "against": name, "judge": plan["model"],
                                 **rate._asdict()})
        return pd.DataFrame(rows)

    def bases(self) -> list[Checkpoint]:
        """The checkpoints to tune, from early to late."""
        plan = self.plan["sft"]
        points = suite(plan["suite"]).of_stages(plan["stages"]).checkpoints()
        return [point for point in spread(points, plan["checkpoints"]) if not point.fault]

    def pair_files(self) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
        """By set, files of its pairs to train on, of its own held-out ones and of the other set's; and fingerprints.

        A held-out prompt that is also trained on, in either set, is left out.
        """
        plan = self.plan["sft"]
        rows = {(name, use): getattr(published_sets, name)(split, self._place(name))
                for name, splits in plan["sets"].items() for use, split in splits.items()}
        trained = {row["prompt"] for (_, use), found in rows.items() if use == "train" for row in found.rows}
        paths, notes = {}, []
        for (name, use), found in rows.items():
            kept = found.rows if use == "train" else [row for row in found.rows if row["prompt"] not in trained]
            kept = kept if use == "train" else replace(found, rows=kept).first(plan["tuning"]["loss_pairs"])
            notes.append({"set": name, "use": use, "name": found.name, "pairs": len(kept), "left_out": found.left_out})
            paths[name, use] = self.out / "data" / f"{name}-{use}.jsonl"
            write_atomically(paths[name, use], "".join(f"{json.dumps(row)}\n" for row in kept).encode())
        write_atomically(self.out / "data" / "sources.json", json.dumps(notes, indent=2).encode())
        first, second = plan["sets"]
        chosen = {name: {"train": paths[name, "train"], "in": paths[name, "held_out"], "out": paths[other, "held_out"]}
                  for name, other in ((first, second), (second, first))}
        return {name: ({use: str(path) for use, path in files.items()},
                       {use: files_fingerprint([(use, path)]) for use, path in files.items()})
                for name, files in chosen.items()}

    def answers_of(self, folder: str) -> Path:
        """The file of a tuned model's answers."""
        return self.out / "answers" / f"{Path(folder).parent.name}.json"

    def _tuned(self) -> pd.DataFrame:
        path = self.out / "sft.csv"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {str(path)!r}: the part `sft` comes before, with the same --out.")
        table = pd.read_csv(path)
        return table[table.status == "measured"]

    def _done(self, points: Sequence[Checkpoint], part) -> pd.DataFrame:
        [jobs] = run([(points, [part])], self.store, self.opening, self.means)
        return self._table(part, jobs)

    def _table(self, part, jobs: Sequence) -> pd.DataFrame:
        """What was found of a part; gaps are told, too."""
        table = self.store.table([job.identity(part) for job in jobs])
        for row in table[table.status == "failed"].itertuples():
            print(f"{row.model}@{row.revision}: {row.reason}", file=sys.stderr)
        return table

    def _instructions(self) -> published_sets.Rows:
        return published_sets.alpaca_eval(self.plan["judge"]["reference"], self._place("alpaca_eval"))

    def _place(self, name: str) -> str | None:
        return self.plan["places"][name]


def _checkpoint(name: str) -> Checkpoint:
    """REPOSITORY[@BRANCH], with its commit."""
    repository, _, branch = name.partition("@")
    [point] = checkpoints(repository, branch or None)
    return point


def _curve(name: str, passes: np.ndarray, first: np.ndarray | None, k: np.ndarray) -> Iterator[dict]:
    """Rows of a model's pass@k, shape (problems, K), compared with the first model's."""
    behind = {}
    if first is not None and passes is not first:
        found = pass_at_k.crossing(first, passes, k)
        behind = {"behind_from": found.k, "behind_low": found.low, "behind_high": found.high}
    for each, values in zip(k.tolist(), passes.T, strict=True):
        yield {"model": name, "k": each, "problems": len(passes), "pass_at_k": (mean := pass_at_k.mean(values)).mean,
               "low": mean.low, "high": mean.high, **behind}


def cost(plan: Mapping) -> str:
    """What each part takes on H100 GPUs, in words: operations counted, speeds assumed."""
    assumed, amc, sft = plan["assumed"], plan["amc"], plan["sft"]
    speed = GPUS["H100"].peak * assumed["share_of_peak"]
    specs = [ProbeSpec(**each) for each in plan["trace"]["texts"]]
    traced = estimate([suite(name) for name in plan["trace"]["suites"]], specs, plan["trace"]["checkpoints"], ask=False)
    writing, answers = Writing(**amc["writing"]), Writing(**plan["answers"]["writing"])
    pieces = 40 * math.ceil(writing.samples / writing.together) * len(amc["models"])
    weights, models = suite(sft["suite"]).shape["parameters"], sft["checkpoints"] * len(sft["seeds"])
    tokens = {name: assumed["pairs"][name] * assumed["tokens_a_pair"][name] * sft["tuning"]["epochs"]
              for name in sft["sets"]}
    read = 2 * sft["tuning"]["loss_pairs"] * sft["tuning"]["loss_length"] * len(sft["sets"])
    trained = models * weights * (STEP * sum(tokens.values()) + HELD_OUT_READS * read) / speed / 3600
    steps = {name: sft["tuning"]["epochs"] * math.ceil(assumed["pairs"][name] / sft["tuning"]["batch"]
                                                       / sft["tuning"]["accumulation"]) for name in tokens}
    written = models * len(sft["sets"]) * math.ceil(805 / answers.together) * answers.tokens
    told = 805 * 2 * (3 * models - len(sft["seeds"]))
    return "\n".join([
        f"trace: {traced.chosen.sum()} checkpoints, {traced.gb_download.sum():,.0f} GB, "
        f"{traced.gpu_hours.sum():.1f} GPU hours",
        f"amc: {len(amc['models'])} models, {pieces:,} pieces of {writing.together} texts, at most "
        f"{pieces * writing.tokens * assumed['seconds_a_token'] / 3600:.0f} GPU hours",
        f"sft: {models * len(sft['sets'])} tunings of {' and '.join(f'{each:,}' for each in steps.values())} steps, "
        f"{trained:.0f} GPU hours, {models * len(sft['sets']) * weights * 4 / 1e9:,.0f} GB of tuned models",
        f"answers: {models * len(sft['sets'])} models, at most {written * assumed['seconds_a_token'] / 3600:.0f} GPU "
        "hours",
        f"judge: {told:,} requests"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cost", "trace", "amc", "sft", "answers", "judge"])
    parser.add_argument("--out", type=Path, help="folder of records, models and tables")
    parser.add_argument("--params", type=Path, default=PLAN)
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine, one a GPU (sft: 1)")
    parser.add_argument("--scheduler", help="of a Dask cluster: tcp://HOST:PORT")
    options = parser.parse_args(arguments)
    plan = yaml.safe_load(options.params.read_text())
    if options.part == "cost":
        return print(cost(plan))
    if options.out is None:
        parser.error("--out FOLDER is needed: where records, models and tables go.")
    from distributed import Client

    with Client(options.scheduler) if options.scheduler else nullcontext() as client:
        study = Study(plan, options.out, Opening(), Means(options.workers, client))
        table = getattr(study, options.part)()
    path = study.out / f"{options.part}.csv"
    write_atomically(path, table.drop(columns="eigenvalues", errors="ignore").to_csv(index=False).encode())
    print(path)


if __name__ == "__main__":
    main()
