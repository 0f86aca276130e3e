"""Post-training of small models: SFT, DPO and RLVR in sequence, RLVR straight from the base, SFT along pretraining.

    make posttrain             # 25 minutes on two cores, 3 GB; go on with it at any time
    make posttrain SMOKE=1     # every stage and both arms, in half a minute, into build/posttrain-smoke/tables
    make posttrain TRIALS=1    # other settings of single stages, too
    .venv/bin/python studies/posttrain.py --group gpu    # larger models, on a GPU; a table holds the rows of all groups

Settings: posttrain.yaml. Bases are trained on ordinary text amid problems (texts.problems), as a suite; their
checkpoints are post-trained by `training.posttrain`, stage by stage, and asked held-out problems. Whatever is trained
lies in build/posttrain/hub, so that `python -m reptrace trace --cache-dir build/posttrain/hub --model NAME` traces it
too. What was trained, drawn or measured is kept, so that a study that was cut off goes on. Tables, in data/results:

posttrain_stages.csv      a checkpoint a row: geometry, answers, the trainer's own numbers
posttrain_passes.parquet  log-probability of the right answer, a problem and checkpoint a row
posttrain_sampled.csv     right ones among drawn answers, as a check of these
robustness_tuned.csv      SFT of checkpoints along pretraining: losses and accuracies
robustness_wins.csv       their win rates
posttrain_writing.csv     how much text written along pretraining repeats itself
posttrain_trials.csv      other settings that were tried (--trials)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from reptrace.checkpoints.listing import Checkpoint
from reptrace.records.store import Store, provenance, write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.support.processes import cores
from reptrace.texts import problems
from reptrace.texts.corpora import Corpus, open_text, probe
from reptrace.training.pretrain import Suite
from reptrace.training.runs import Run

PLAN = Path(__file__).with_suffix(".yaml")
ROOT = Path(__file__).parents[1]
RESULTS, BUILD = ROOT / "data" / "results", ROOT / "build" / "posttrain"
SEQUENCE, DIRECT = ARMS = ("sequence", "direct")
SETS = {"A": "sort", "B": "reverse"}  # what SFT along pretraining teaches
OTHERS = [name for name in problems.PHRASINGS if name != problems.QUESTION]
SEED_OF = {"held out": 10_000, "SFT": 20_000, "DPO": 30_000, "RLVR": 40_000, "A": 50_000, "B": 60_000}  # of problems
# Seconds of a core, for the time left alone: a step of each training, and measuring a checkpoint.
COST = {"base": 0.007, "SFT": 0.03, "DPO": 0.06, "RLVR": 0.17, "measured": 4, "tuned": 3, "drawn": 0.0003, "written": 1}
_told = None  # of a process: the queue of seconds that it has worked
JUDGED = 4  # answers drawn to a problem for the likelihood judge


@dataclass(frozen=True)
class Job:
    """A piece of work of one seed, after others."""

    kind: str
    seed: int
    cost: float
    needs: tuple = ()

    @property
    def key(self) -> tuple:
        return self.kind, self.seed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", default="cpu", help="of the plan: cpu, gpu, or smoke (some steps of everything)")
    parser.add_argument("--trials", action="store_true", help="the settings to try, after the study's own")
    parser.add_argument("--workers", type=int, default=cores(), help="processes side by side; default one a core")
    parser.add_argument("--plan", type=Path, default=PLAN, help="another file of settings")
    parser.add_argument("--build", type=Path, help="folder of what is trained")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    parser.add_argument("--prepare", action="store_true", help="make the text alone, for a machine that lacks packages")
    parser.add_argument("--join", type=Path, metavar="FOLDER", help="put the tables of a folder into --out, and end")
    asked = parser.parse_args(arguments)
    if asked.join:
        join(asked.join, asked.out or RESULTS)
        return
    plan = plan_of(yaml.safe_load(asked.plan.read_text()), asked.group)
    build = asked.build or BUILD.with_name(f"posttrain-{asked.group}" if asked.group != "cpu" else "posttrain")
    out = asked.out or (build / "tables" if asked.group == "smoke" else RESULTS)
    started = time.perf_counter()
    study = Study(plan, build)
    study.prepare()
    if asked.prepare:
        return
    run(study, asked.workers, asked.trials)
    study.write(out, asked.trials)
    spent = os.times()
    print(f"{time.perf_counter() - started:.0f} s, processor "
          f"{spent.user + spent.system + spent.children_user + spent.children_system:.0f} s", flush=True)


def plan_of(plan: dict, group: str) -> dict:
    """The plan as a group has it: the common one, with some of its values changed."""
    groups = plan.pop("groups")
    if group not in groups:
        raise SystemExit(f"a group must be one of {', '.join(groups)}, got {group!r}")
    return {"group": group, **changed(plan, groups[group] or {})}


def changed(plan: dict, changes: dict) -> dict:
    """A plan with some of its values replaced, at any depth."""
    return {**plan, **{key: changed(plan.get(key) or {}, value) if isinstance(value, dict) else value
                       for key, value in changes.items()}}


def run(study: Study, workers: int, trials: bool) -> None:
    """Do all jobs, `workers` at a time, each when those that it needs are done; the first failure ends them."""
    left = study.jobs(trials)
    context, done = get_context("spawn"), set()
    told = context.Queue()
    with (tqdm(total=round(sum(job.cost for job in left)), desc="post-training", unit="s", smoothing=0.05,
               bar_format="{l_bar}{bar}| {elapsed} so far, {remaining} left{postfix}") as bar,
          ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(told,)) as pool):
        Thread(target=_advance, args=(told, bar), daemon=True).start()
        running = {}
        try:
            while left or running:
                ready = [job for job in left if set(job.needs) <= done]
                for job in ready[: workers - len(running)]:
                    left.remove(job)
                    running[pool.submit(_work, study.plan, study.build, job)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done.add(running.pop(future).key)
        except BaseException as error:
            for process in list(pool._processes.values()):  # what is trained goes on from its last checkpoint
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise SystemExit("a process was ended from outside, as where memory is short: run it again, with fewer "
                                 "--workers if need be; what is done is kept.") from error
            raise
        told.put(None)


def _advance(told, bar) -> None:
    while (seconds := told.get()) is not None:
        bar.update(seconds)


def _begin(told) -> None:
    """What a process does first: one thread, a way to tell what it has done, and an end with the one that began it."""
    Thread(target=_end_with_parent, daemon=True).start()
    import torch
    import trl.trainer.grpo_trainer  # noqa: F401
    from datasets.utils.logging import disable_progress_bar

    gc.collect()
    gc.freeze()  # what was imported is no garbage: accelerate collects before each of a hundred stages
    disable_progress_bar()  # there is one for all
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    global _told
    _told = told


def _end_with_parent() -> None:
    """A pool's processes wait for work forever where what began them was killed."""
    parent_process().join()
    os._exit(1)


def _work(plan: dict, build: Path, job: Job) -> None:
    study, sent = _study(json.dumps(plan), build), 0.0

    def report(seconds: float) -> None:
        nonlocal sent
        if seconds - sent >= 1:
            _told.put(seconds - sent)
            sent = seconds

    getattr(study, job.kind)(job.seed, Progress(report))
    _told.put(max(0.0, job.cost - sent))


@cache
def _study(plan: str, build: Path) -> Study:
    return Study(json.loads(plan), build)


class Progress:
    """Seconds of a core that a job has done, as COST has it."""

    def __init__(self, report: Callable[[float], None]):
        self.report, self.before = report, 0.0

    def steps(self, kind: str) -> Callable[[int], None]:
        """Of a training, by its step."""
        return lambda step: self.report(self.before + step * COST[kind])

    def add(self, seconds: float) -> None:
        self.before += seconds
        self.report(self.before)


class Study:
    """What a plan asks for, in a folder.

    Parameters
    ----------
    plan : dict, as in posttrain.yaml
    build : Path
        Holds `hub`, `training` and `tokens` of the suite, `text.json`, `work` and `records`.
    """

    def __init__(self, plan: dict, build: Path):
        self.plan, self.build = plan, Path(build)
        self.records = Store(self.build / "records")
        self._pairs: dict[int, pd.DataFrame] = {}  # by seed: asked for once a checkpoint

    def prepare(self) -> None:
        """Read the text, mix and tokenize it, once."""
        if not self._text_file.exists():
            asked = self.plan["text"]
            train, held_out = open_text(asked["ordinary"], cache=self.build / "texts").split()
            mixed = problems.mixed(train, int(asked["characters"]), among=self.grades)
            content = {"mixed": asdict(mixed), "held_out": asdict(held_out)}
            write_atomically(self._text_file, json.dumps(content).encode())
        self.suite.token_file(self.suite.runs[0])

    @property
    def _text_file(self) -> Path:
        """Its name holds a hash of what it hangs on; other packages are not noticed: remove the file."""
        asked = json.dumps([self.plan[key] for key in ("text", "lists", "sums")])
        return self.build / f"text-{fingerprint([asked.encode()])[:12]}.json"

    @cached_property
    def texts(self) -> dict[str, Corpus]:
        return {name: Corpus(**its) for name, its in json.loads(self._text_file.read_text()).items()}

    @property
    def grades(self) -> list[problems.Grade]:
        """Those that are trained on."""
        return self._grades(longer=0)

    @property
    def grades_asked(self) -> list[problems.Grade]:
        """The same, and lists of one digit more."""
        return self._grades(longer=1)

    def _grades(self, longer: int) -> list[problems.Grade]:
        (least, most), (first, last) = self.plan["lists"], self.plan["sums"]
        return problems.grades(range(least, most + 1 + longer), range(first, last + 1))

    @cached_property
    def suite(self) -> Suite:
        return Suite([self._run(seed) for seed in self.plan["seeds"]], self.texts["mixed"], self.build)

    def _run(self, seed: int) -> Run:
        base = {key: value for key, value in self.plan["base"].items() if key != "tokens"}
        return Run(**base, steps=self.base_steps, seed=seed, corpus=self.texts["mixed"].fingerprint, digits=True)

    @property
    def base_steps(self) -> int:
        base = self.plan["base"]
        return int(base["tokens"]) // (base["batch"] * base["context"])

    def run_of(self, seed: int) -> Run:
        return self.suite.runs[self.plan["seeds"].index(seed)]

    @cached_property
    def tokenizer(self):
        return self.suite.tokenizer(self.plan["base"]["vocabulary"])

    @cached_property
    def probes(self) -> dict[str, list[list[int]]]:
        """Sequences whose last tokens are measured: held-out ordinary text, and held-out questions."""
        asked = self.plan["probes"]
        text = probe(self.texts["held_out"], self.tokenizer, asked["sequences"], asked["length"], asked["min_length"])
        drawn = problems.draw(asked["sequences"], True, SEED_OF["held out"] + 1, self.grades_asked)
        return {"text": text.sequences, "prompts": self.tokenizer([each.prompt() for each in drawn])["input_ids"]}

    @cached_property
    def asked(self) -> list[problems.Problem]:
        """Held-out problems, longer lists than were trained on included."""
        return problems.draw(self.plan["asked"]["problems"], True, SEED_OF["held out"], self.grades_asked)

    def bases(self, seed: int) -> list[Checkpoint]:
        """Averaged weights along pretraining."""
        return self.suite.checkpoints(self.run_of(seed), averaged=True)

    def nearest(self, seed: int, tokens: float) -> Checkpoint:
        return min(self.bases(seed), key=lambda point: abs(np.log(point.tokens / tokens)))

    def start(self, seed: int) -> Checkpoint:
        """Where post-training begins: at so many tokens, or at the checkpoint whose pass@1 is the nearest to one.

        Of the two around it when it is first reached; later ones are not asked.
        """
        wanted = self.plan["start"]
        if not isinstance(wanted, dict):
            return self.nearest(seed, wanted)
        before = None
        for point in self.bases(seed):
            apart = self.first_asked(point) - wanted["pass@1"]
            if apart >= 0:
                return point if before is None or apart <= -before[0] else before[1]
            before = apart, point
        raise ValueError(f"seed {seed} never reaches a pass@1 of {wanted['pass@1']}: train it for longer, or ask for "
                         "less.")

    def first_asked(self, point: Checkpoint) -> float:
        """pass@1, of another draw of held-out problems than what is reported; of short ones there are no others."""
        from reptrace.models.generation import log_probability

        identity = {"first asked": 1, "point": point.label, **self.plan["asked"]}
        if not self.records.done(identity):
            some = problems.draw(self.plan["asked"]["problems"], True, SEED_OF["held out"] + 3, self.grades_asked)
            told = log_probability(self.opened(point), self.tokenizer, [each.prompt() for each in some],
                                   [each.answer for each in some])
            self.records.write(identity, [{"accuracy": float(np.exp(told).mean())}])
        return self.records.table([identity]).accuracy.iloc[0]

    def stage(self, name: str, seed: int, **changes):
        from reptrace.training.posttrain import Stage

        section = "robustness" if name in SETS else name
        found = {**self.plan[section]["stage"], **changes}
        return Stage("SFT" if section == "robustness" else name, seed=seed, **found)

    # -- jobs --

    def jobs(self, trials: bool) -> list[Job]:
        """All of them, in the order in which they are to be begun."""
        plan, seeds = self.plan, self.plan["seeds"]
        base = self.base_steps * COST["base"]
        steps = {name: plan[name]["stage"]["steps"] * COST[name] for name in ("SFT", "DPO", "RLVR")}
        kept = {name: plan[name]["stage"]["steps"] // plan[name]["stage"]["every"] for name in steps}
        drawn = plan["DPO"]["asked"] * plan["DPO"]["samples"] * COST["drawn"]
        chain = sum(steps.values()) + drawn + (1 + sum(kept.values())) * COST["measured"]
        direct = steps["RLVR"] + kept["RLVR"] * COST["measured"]
        each = plan["robustness"]["stage"]["steps"] * COST["SFT"]
        robust = len(plan["robustness"]["tokens"]) * (2 * each + 3 * COST["tuned"])
        writing = (len(plan["robustness"]["tokens"]) + 2) * COST["written"]
        found = [Job("base", seed, base) for seed in seeds]
        found += [Job("robustness", seed, robust, (("base", seed), ("base", self.judge_of(seed)))) for seed in seeds]
        found += [Job("sequence", seed, chain, (("base", seed),)) for seed in seeds]
        found += [Job("direct", seed, direct, (("sequence", seed),)) for seed in seeds]
        found += [Job("writing", seed, writing, (("base", seed),)) for seed in seeds]
        if trials:
            found += [Job("trials", seed, sum(each["stage"].get("steps", 100) * COST[each["of"]] + COST["measured"]
                                              for each in plan["trials"]), (("sequence", seed),))
                      for seed in self.trial_seeds]
        return found

    @property
    def trial_seeds(self) -> list[int]:
        """Of those that the plan names, those that a group has."""
        return [seed for seed in self.plan["trial_seeds"] if seed in self.plan["seeds"]]

    def base(self, seed: int, progress: Progress) -> None:
        """Pretraining of one seed."""
        self.suite.train_here(self.run_of(seed), progress.steps("base"), "cpu" if device() == "cpu" else "cuda")

    def sequence(self, seed: int, progress: Progress) -> None:
        """SFT, DPO, RLVR, one after the other, and what their checkpoints answer."""
        self._arm(seed, SEQUENCE, progress)

    def direct(self, seed: int, progress: Progress) -> None:
        """RLVR straight from the base."""
        self._arm(seed, DIRECT, progress)

    def _arm(self, seed: int, arm: str, progress: Progress) -> None:
        for name, start, point in self.points(seed, arm, progress):
            self.measured(seed, point, start)
            if self.is_checked(seed, name, point):
                self.sampled(point)
            progress.add(COST["measured"])

    def is_checked(self, seed: int, name: str, point: Checkpoint) -> bool:
        """Whether drawn answers are counted, too: at the ends of stages."""
        last = name == "base" or point.step == self.plan[name]["stage"]["steps"]
        return last and seed in self.plan["sampled"]["seeds"]

    def points(self, seed: int, arm: str, progress: Progress | None = None
               ) -> Iterator[tuple[str, Checkpoint | None, Checkpoint]]:
        """The checkpoints of an arm, trained where they are missing: stage, where it begins, and the checkpoint."""
        start = self.start(seed)
        if arm == SEQUENCE:
            stages = ("SFT", "DPO", "RLVR")
            for name in stages:  # all of them before any is measured, as pairs of answers are asked of each
                start = self.tuned(name, seed, start, progress)[-1]
            start = self.start(seed)
            yield "base", None, start
        else:
            stages = ("RLVR",)
        for name in stages:
            found = self.tuned(name, seed, start, progress)
            yield from ((name, start, point) for point in found)
            start = found[-1]

    def tuned(self, name: str, seed: int, start: Checkpoint, progress: Progress | None = None, **changes
              ) -> list[Checkpoint]:
        """A stage from a checkpoint, trained where it is missing."""
        from reptrace.training.posttrain import tune

        stage, data = self.stage(name, seed, **changes), self.data(name, seed, start)
        report = progress.steps(stage.kind) if progress else (lambda step: None)
        return tune(start, stage, data, self.suite.hub, self.build / "work", report=report)

    def data(self, name: str, seed: int, start: Checkpoint):
        """What a stage is trained on."""
        from datasets import Dataset

        if name == "DPO":
            rows = self.preferences(seed, start)
            return Dataset.from_dict({key: rows[key].tolist() for key in ("prompt", "chosen", "rejected")})
        drawn = self.drawn(name, seed)
        answer = "answer" if name == "RLVR" else "completion"
        return Dataset.from_dict({"prompt": [each.prompt() for each in drawn],
                                  answer: [each.answer for each in drawn]})

    def drawn(self, name: str, seed: int) -> list[problems.Problem]:
        """Problems to train a stage on: of all grades that are trained on, or of the one task that a set teaches."""
        asked = self.plan["robustness" if name in SETS else name]
        among = [grade for grade in self.grades if name not in SETS or grade[0] == SETS[name]]
        return problems.draw(asked.get("pairs") or asked["asked"], False, SEED_OF[name] + seed, among)

    def preferences(self, seed: int, start: Checkpoint) -> pd.DataFrame:
        """Right and wrong answers of the model that DPO begins from, to problems to train on."""
        from reptrace.training.answering import answers, preferences

        asked = self.plan["DPO"]
        identity = {"preferences": 2, "start": start.label, "seed": seed,
                    **{key: asked[key] for key in ("asked", "samples")}, "tokens": self.plan["asked"]["tokens"]}
        if not self.records.done(identity):
            drawn = self.drawn("DPO", seed)
            said = answers(self.opened(start), self.tokenizer, drawn, self.plan["asked"]["tokens"], asked["samples"],
                           SEED_OF["DPO"] + seed)
            found = preferences(said, drawn, self.tokenizer)
            if not found:
                raise ValueError(f"of {len(drawn)} problems none got both a right and a wrong answer: DPO has nothing "
                                 "to learn from.")
            self.records.write(identity, found)
        return self.records.table([identity])

    def opened(self, point: Checkpoint):
        from reptrace.models.loading import load

        return load(point.model, point.revision, point.cache_dir, dtype="float32", head=True)

    # -- measurements --

    def measured(self, seed: int, point: Checkpoint, start: Checkpoint | None) -> dict:
        """A checkpoint's geometry and answers, against the one that its stage began from."""
        asked = self.plan["asked"]
        identity = {"measured": 1, "point": point.label,
                    "start": start and start.label, **asked, **self.plan["probes"]}
        if not self.records.done(identity):
            self.records.write(identity, [self._measured(point, start)])
        return self.records.table([identity]).iloc[0].to_dict() | self.displaced(seed, point)

    def _measured(self, point: Checkpoint, start: Checkpoint | None) -> dict:
        from reptrace.training.answering import answers, kl, of_drawn

        model, asked = self.opened(point), self.plan["asked"]
        said = answers(model, self.tokenizer, self.asked, asked["tokens"], asked["samples"], SEED_OF["held out"])
        found = {**self.geometry(model, start), "accuracy": said.accuracy, "sampled": said.right.mean(),
                 "flat_groups": said.flat_groups, "entropy": said.entropy, "distinct": said.distinct,
                 "ended": said.written.ended.mean(), "kl": np.nan, "kl_stderr": np.nan}
        if start:
            reference = of_drawn(self.opened(start), self.tokenizer, [each.prompt() for each in self.asked],
                                 said.written)
            found["kl"], found["kl_stderr"] = kl(said, reference)
        return found | {"log_probability": said.log_probability.astype(np.float32).tolist()}

    def displaced(self, seed: int, point: Checkpoint) -> dict[str, float]:
        """Mean log-probability (nats) of the chosen and of the rejected answers of a seed's pairs, which make the
        record: it stands apart, as they hang on SFT's settings and on DPO's."""
        from reptrace.models.generation import log_probability

        pairs, kinds = self.pairs(seed), ["chosen", "rejected"]
        identity = {"displaced": 1, "point": point.label, "pairs": fingerprint(
            json.dumps(row).encode() for row in pairs[["prompt", *kinds]].to_numpy().tolist())}
        if not self.records.done(identity):
            model, asked = self.opened(point), pairs.prompt.tolist()
            self.records.write(identity, [{kind: log_probability(model, self.tokenizer, asked, pairs[kind].tolist())
                                           .mean() for kind in kinds}])
        return self.records.table([identity])[kinds].iloc[0].to_dict()

    def pairs(self, seed: int) -> pd.DataFrame:
        """The pairs that displacement is told by: those of DPO, up to as many as problems are asked."""
        if seed not in self._pairs:
            sft = self.tuned("SFT", seed, self.start(seed))[-1]
            self._pairs[seed] = self.preferences(seed, sft).head(self.plan["asked"]["problems"])
        return self._pairs[seed]

    def geometry(self, model, start: Checkpoint | None = None) -> dict:
        """RankMe and alpha of each probe, and their paired change since another checkpoint."""
        from reptrace.measures.paired import paired_change
        from reptrace.measures.spectra import geometry
        from reptrace.models.hidden_states import FINAL, last_token_states

        found, ranks = {}, tuple(self.plan["probes"]["alpha_ranks"])
        before = start and self.opened(start)
        for name, sequences in self.probes.items():
            states = last_token_states(model, sequences, batch_size=512)[FINAL]
            its = geometry(states, ranks, shorten=True)
            found |= {f"{name}_rankme": its.rankme, f"{name}_rankme_stderr": its.rankme_stderr,
                      f"{name}_alpha": its.alpha.alpha if its.alpha else np.nan,
                      f"{name}_alpha_stderr": its.alpha_stderr}
            if before is not None:
                change = paired_change(last_token_states(before, sequences, batch_size=512)[FINAL], states, ranks)
                found |= {f"{name}_rankme_change": change.rankme, f"{name}_rankme_change_stderr": change.rankme_stderr,
                          f"{name}_alpha_change": change.alpha, f"{name}_alpha_change_stderr": change.alpha_stderr}
        return found

    def robustness(self, seed: int, progress: Progress) -> None:
        """SFT on each set of checkpoints along pretraining."""
        for tokens in self.plan["robustness"]["tokens"]:
            start = self.nearest(seed, tokens)
            for name in ("none", *SETS):
                self.tuned_row(seed, start, name, progress)
                progress.add(COST["tuned"])

    def tuned_row(self, seed: int, start: Checkpoint, name: str, progress: Progress | None = None) -> dict:
        """What a checkpoint can do, as it is ("none") or tuned on a set."""
        identity = {"robustness": 1, "start": start.label, "name": name, "seed": seed,
                    "judge": self.judge_of(seed), "plan": self.plan["robustness"], "probes": self.plan["probes"],
                    "asked": self.plan["asked"]}
        if not self.records.done(identity):
            self.records.write(identity, [self._tuned_row(seed, start, name, progress)])
        return self.records.table([identity]).iloc[0].to_dict()

    def _tuned_row(self, seed: int, start: Checkpoint, name: str, progress: Progress | None) -> dict:
        from reptrace.models.scoring import score
        from reptrace.training.answering import answers, of_drawn

        point = self.tuned(name, seed, start, progress)[-1] if name in SETS else start
        model, found = self.opened(point), {"tokens": start.tokens, "tuned": name, "repository": point.model,
                                            "revision": point.revision}
        found |= self.geometry(model)
        for task in problems.PHRASINGS[problems.QUESTION]:
            asked = self.held_out(task)
            for label, phrasings in ((task, [problems.QUESTION]), (f"{task}_phrasings", OTHERS)):
                loss, right = self._answered(model, asked, phrasings)
                found |= {f"loss_{label}": loss, f"accuracy_{label}": right.mean()}
                if label == task:
                    found[f"right_{task}"] = right.tolist()
        text = self.probes["text"][:512]
        told = score(model, text, [1] * len(text), 512).log_probability
        found["loss_text"] = -told.sum() / sum(len(each) - 1 for each in text)
        judge = self.opened(self.bases(self.judge_of(seed))[-1])
        for task in SETS.values():
            asked = self.held_out(task)
            said = answers(model, self.tokenizer, asked, self.plan["asked"]["tokens"], JUDGED, SEED_OF["held out"])
            judged = of_drawn(judge, self.tokenizer, [each.prompt() for each in asked], said.written)
            found[f"judged_{task}"] = judged.ravel().tolist()
            found[f"said_{task}"] = [text + "." * bool(end) for texts, ends in zip(
                said.written.texts, said.written.ended, strict=True) for text, end in zip(texts, ends, strict=True)]
        return found

    def judge_of(self, seed: int) -> int:
        seeds = self.plan["seeds"]
        return seeds[(seeds.index(seed) + 1) % len(seeds)]

    def held_out(self, task: str) -> list[problems.Problem]:
        """Problems of a task of the grades that were trained on."""
        return problems.draw(self.plan["robustness"]["asked"], True, SEED_OF["held out"] + 2,
                             [grade for grade in self.grades if grade[0] == task])

    def _answered(self, model, asked: list[problems.Problem], phrasings: Sequence[str]) -> tuple[float, np.ndarray]:
        """Loss of the right answer and its end (nats a token), and its probability by problem, mean over phrasings."""
        from reptrace.models.generation import log_probability

        told = np.array([log_probability(model, self.tokenizer, [each.prompt(phrasing) for each in asked],
                                         [each.answer for each in asked]) for phrasing in phrasings])
        tokens = sum(len(each.answer) + 1 for each in asked) * len(phrasings)  # a token a digit
        return float(-told.sum() / tokens), np.exp(told).mean(0)

    def writing(self, seed: int, progress: Progress) -> None:
        """What the base writes along pretraining."""
        for point in self.written_by(seed):
            self.written(point)
            progress.add(COST["written"])

    def written_by(self, seed: int) -> list[Checkpoint]:
        """The checkpoints that are tuned, and earlier ones: the first average, and half way from there."""
        first, *later = self.bases(seed)[0].tokens, *self.plan["robustness"]["tokens"]
        wanted = [first, (first * later[0]) ** 0.5, *later]
        return sorted({self.nearest(seed, tokens) for tokens in wanted}, key=lambda point: point.step)

    def written(self, point: Checkpoint) -> pd.DataFrame:
        """Rows of `report.writing`, without the texts."""
        from reptrace.report.writing import FURTHER, LENGTH, PROMPTS, rows_of

        identity = {"writing": 1, "point": point.label, "probes": self.plan["probes"]}
        if not self.records.done(identity):
            texts = [text for text in self.probes["text"] if len(text) >= LENGTH + FURTHER][:PROMPTS]
            self.records.write(identity, rows_of(point, self.tokenizer, texts))
        kept = ["step", "tokens", "way", "prompt", "repeated", "real", "ended"]
        return self.records.table([identity])[kept]

    def trials(self, seed: int, progress: Progress) -> None:
        """Other settings of single stages."""
        for each in self.plan["trials"]:
            self.trial(seed, each, progress)
            progress.add(COST["measured"])

    def trial(self, seed: int, each: dict, progress: Progress | None = None) -> dict:
        start = self.start(seed)
        for name in ("SFT", "DPO", "RLVR"):
            if name == each["of"] or each.get("arm") == DIRECT:
                break
            start = self.tuned(name, seed, start)[-1]
        last = self.tuned(each["of"], seed, start, progress, **each["stage"])[-1]
        before, after = self.measured(seed, start, None), self.measured(seed, last, start)
        return {"stage": each["of"], "arm": each.get("arm", SEQUENCE), "seed": seed,
                "settings": json.dumps(each["stage"]), "accuracy_before": before["accuracy"],
                **{key: after[key] for key in ("accuracy", "kl", "entropy", "text_rankme_change",
                                               "text_rankme_change_stderr", "prompts_rankme_change",
                                               "prompts_rankme_change_stderr")}}

    # -- tables --

    def write(self, out: Path, trials: bool) -> None:
        """All tables, from what was kept."""
        stages, passes, sampled = [], [], []
        for seed in self.plan["seeds"]:
            for arm in ARMS:
                for name, start, point in self.points(seed, arm):
                    key = {"group": self.plan["group"], "seed": seed, "arm": arm, "stage": name,
                           "step": point.step if start else 0}
                    row = self.measured(seed, point, start)
                    told = row.pop("log_probability")
                    stages.append({**key, "repository": point.model, "revision": point.revision,
                                   "parameters": self.run_of(seed).parameters, "pretraining_tokens": point.tokens,
                                   **_own(row), **_logged(point, start), "device": device(), **_made(row)})
                    passes += [{**key, "problem": k, "task": each.task, "difficulty": each.difficulty,
                                "log_probability": np.float32(value)}
                               for k, (each, value) in enumerate(zip(self.asked, told, strict=True))]
                    if self.is_checked(seed, name, point):
                        sampled += [{**key, **its} for its in self.sampled(point)]
        rows = [self.tuned_row(seed, self.nearest(seed, tokens), name) for seed in self.plan["seeds"]
                for tokens in self.plan["robustness"]["tokens"] for name in ("none", *SETS)]
        seeds = [seed for seed in self.plan["seeds"] for _ in range(len(rows) // len(self.plan["seeds"]))]
        parameters = self.run_of(self.plan["seeds"][0]).parameters
        table(out / "posttrain_stages.csv", stages)
        table(out / "posttrain_passes.parquet", passes)
        table(out / "posttrain_sampled.csv", sampled)
        table(out / "robustness_tuned.csv", [
            {"group": self.plan["group"], "seed": seed, "parameters": parameters, **_own(row), "device": device(),
             **_made(row)}
            for seed, row in zip(seeds, rows, strict=True)])
        table(out / "robustness_wins.csv", [
            {"group": self.plan["group"], "seed": seed, **win} for seed in self.plan["seeds"]
            for win in wins([row for its, row in zip(seeds, rows, strict=True) if its == seed])])
        table(out / "posttrain_writing.csv", [
            {"group": self.plan["group"], "seed": seed, "parameters": parameters, **row}
            for seed in self.plan["seeds"] for point in self.written_by(seed)
            for row in self.written(point).to_dict("records")])
        if trials:
            table(out / "posttrain_trials.csv", [{"group": self.plan["group"], **self.trial(seed, each)}
                                                 for seed in self.trial_seeds for each in self.plan["trials"]])

    def sampled(self, point: Checkpoint) -> list[dict]:
        """Right answers among many drawn, of some problems."""
        from reptrace.models.generation import write
        from reptrace.training.answering import rightly

        asked = self.plan["sampled"]
        identity = {"sampled": 2, "point": point.label, "problems": asked["problems"],
                    "samples": asked["samples"], "tokens": self.plan["asked"]["tokens"]}
        if not self.records.done(identity):
            some = self.asked[: asked["problems"]]
            made = write(self.opened(point), self.tokenizer, [each.prompt() for each in some],
                         self.plan["asked"]["tokens"], asked["samples"], seed=1, batch_size=2048)
            self.records.write(identity, [{"problem": k, "samples": asked["samples"], "right": count}
                                          for k, count in enumerate(rightly(made, some).sum(1).tolist())])
        return self.records.table([identity])[["problem", "samples", "right"]].to_dict("records")


def wins(rows: list[dict]) -> Iterator[dict]:
    """How often a checkpoint tuned on A is preferred to its twin tuned on B, and to the last one tuned on A: of one
    seed, from the rows of `tuned_row`."""
    by_key = {(row["tokens"], row["tuned"]): row for row in rows}
    last = max(row["tokens"] for row in rows)
    for tokens in sorted({row["tokens"] for row in rows}):
        own = by_key[tokens, "A"]
        for against, other in (("twin", by_key[tokens, "B"]), ("final", by_key[last, "A"])):
            if other is own:
                continue
            for task in SETS.values():
                exact = 0.5 + (np.array(own[f"right_{task}"]) - other[f"right_{task}"]) / 2
                likelier = np.sign(np.array(own[f"judged_{task}"]) - other[f"judged_{task}"])
                same = np.array(own[f"said_{task}"]) == np.array(other[f"said_{task}"])
                said = np.where(same, 0.5, 0.5 + likelier / 2).reshape(len(exact), -1).mean(1)
                for judge, values, ties in (("exact", exact, np.nan), ("likelihood", said, same.mean())):
                    yield {"tokens": tokens, "against": against, "prompts": task, "judge": judge,
                           "win_rate": values.mean(),
                           "win_rate_stderr": values.std(ddof=1) / len(values) ** 0.5, "ties": ties}


def _logged(point: Checkpoint, start: Checkpoint | None) -> dict:
    """The trainer's own numbers at a checkpoint."""
    from reptrace.training.posttrain import log

    row = {} if start is None else next(each for each in reversed(log(point)) if "loss" in each)
    return {"reward": row.get("reward", np.nan), "loss": row.get("loss", np.nan)}


def _own(row: dict) -> dict:
    """What was measured, plain numbers and names, of a record."""
    others = {"identity", "status", "reason", *provenance()}
    return {key: value for key, value in row.items() if key not in others and not isinstance(value, (list, np.ndarray))}


def _made(row: dict) -> dict:
    return {key: row[key] for key in provenance()}


@cache
def device() -> str:
    """What trains and measures here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def table(path: Path, rows: list[dict]) -> None:
    """Write a table, whole or not at all; rows of other groups that stand in it are kept."""
    made = pd.DataFrame(rows)
    if path.exists():
        old = read(path)
        made = pd.concat([old[~old.group.isin(made.group)], made]).sort_values("group", kind="stable")
    last = [name for name in made if name in {"device", *provenance()}]
    made = made[[*(name for name in made if name not in last), *last]]
    if path.suffix == ".parquet":
        content = made.to_parquet(index=False, compression="zstd")
    else:
        content = made.to_csv(index=False, float_format="%.6g").encode()
    write_atomically(path, content)
    print(f"{len(rows)} rows: {path.name}", flush=True)


def read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def join(folder: Path, out: Path) -> None:
    """Put the tables that another machine has written into others, where the rows of its groups are replaced."""
    paths = [path for pattern in ("posttrain_*", "robustness_*") for path in sorted(folder.glob(pattern))]
    if not paths:
        raise SystemExit(f"there is no table in {str(folder)!r}.")
    for path in paths:
        table(out / path.name, read(path).to_dict("records"))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
