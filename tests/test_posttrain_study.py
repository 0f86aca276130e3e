"""The study of post-training: what it asks and teaches, its tables, and that drawn answers agree with exact ones.

Trusted: win rates counted by hand, scipy's binomial, and sets of problems written down in this file's own way.
"""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import binom

from reptrace.checkpoints.listing import Checkpoint
from reptrace.report.profiles import ROOT
from reptrace.texts import problems
from reptrace.texts.corpora import Corpus
from reptrace.training.posttrain import KINDS, RLVR

sys.path.insert(0, str(ROOT / "studies"))
import posttrain

RESULTS = posttrain.RESULTS
SEEDS = range(5)


def plan(group="cpu"):
    return posttrain.plan_of(yaml.safe_load(posttrain.PLAN.read_text()), group)


@pytest.mark.parametrize("group", yaml.safe_load(posttrain.PLAN.read_text())["groups"])
def test_every_group_trains_every_stage_and_both_arms(group, tmp_path):
    study = posttrain.Study(plan(group), tmp_path)
    for name in (*KINDS, "robustness"):
        stage = study.stage(name, 3)
        assert stage.seed == 3 and stage.checkpoint_steps[-1] == stage.steps
    assert study.stage(RLVR, 0).written >= max(len(each.answer) for each in study.asked) + 1, "no room for the end"
    jobs = study.jobs(trials=True)
    assert {job.kind for job in jobs} == {"base", "sequence", "direct", "robustness", "writing", "trials"}
    assert jobs[: len(study.jobs(trials=False))] == study.jobs(trials=False)
    done = set()
    for job in jobs:  # in an order in which each finds what it needs
        assert set(job.needs) <= done, job
        done.add(job.key)


def test_an_unknown_group_is_refused():
    with pytest.raises(SystemExit, match="cpu, gpu, smoke, got 'tpu'"):
        plan("tpu")


def known(problem):
    """A problem whatever the phrasing and the order of a sum."""
    return problem.task, tuple(sorted(problem.given.split(" ")))


def test_no_problem_is_both_taught_and_asked(tmp_path):
    settings = plan()
    for name, key in (("RLVR", "asked"), ("DPO", "asked"), ("SFT", "pairs"), ("robustness", "pairs")):
        settings[name][key] = 400
    study = posttrain.Study(settings, tmp_path)
    taught = {known(each) for name in (*KINDS, *posttrain.SETS) for seed in SEEDS for each in study.drawn(name, seed)}
    asked = [*study.asked, *(each for task in ("sort", "reverse", "add") for each in study.held_out(task))]
    assert len(taught) > 2000 and len({known(each) for each in asked}) > 300
    assert taught.isdisjoint(map(known, asked))
    text = problems.mixed(Corpus("spoken", ["some words. " * 40] * 400), 100_000, among=study.grades)
    said = "\n".join(text.documents)
    for each in asked:  # short answers stand in other problems too: whole documents are compared
        assert not any(f"\n{each.text(phrasing)}\n" in said for phrasing in problems.PHRASINGS)


def test_sets_teach_one_task_each(tmp_path):
    study = posttrain.Study(plan(), tmp_path)
    assert {each.task for each in study.drawn("A", 0)} == {"sort"}
    assert {each.task for each in study.drawn("B", 0)} == {"reverse"}


def row(tokens, tuned, right, judged, said):
    return {"tokens": tokens, "tuned": tuned, **{f"{key}_{task}": values for task in posttrain.SETS.values() for
            key, values in (("right", right), ("judged", judged), ("said", said))}}


class Looked(Exception):
    """A record was looked for, by this identity."""


def identity(changes, name, *arguments, pairs=()):
    """Of the record that a study with some changed settings looks for."""
    settings = posttrain.changed(plan("smoke"), changes)
    study = posttrain.Study(settings, "nowhere")

    def looked(identity):
        raise Looked(json.dumps(identity, sort_keys=True))

    study.records.done = looked
    study.pairs = lambda seed: pd.DataFrame(pairs, columns=["prompt", "chosen", "rejected"])
    with pytest.raises(Looked) as found:
        getattr(study, name)(*arguments)
    return str(found.value)


POINT = Checkpoint("reptrace/some", "step3", 3, 300, "nowhere")
RECORDS = {"measured": (0, POINT, None), "sampled": (POINT,), "preferences": (0, POINT), "first_asked": (POINT,),
           "tuned_row": (0, POINT, "A"), "written": (POINT,)}


@pytest.mark.parametrize("name, changes", [
    ("sampled", {"sampled": {"problems": 3}}), ("sampled", {"sampled": {"samples": 9}}),
    ("sampled", {"asked": {"tokens": 7}}), ("measured", {"asked": {"problems": 7}}),
    ("measured", {"asked": {"samples": 7}}), ("measured", {"asked": {"tokens": 7}}),
    ("measured", {"probes": {"sequences": 7}}), ("measured", {"probes": {"alpha_ranks": [5, 20]}}),
    ("preferences", {"DPO": {"samples": 7}}), ("preferences", {"DPO": {"asked": 7}}),
    ("preferences", {"asked": {"tokens": 7}}), ("first_asked", {"asked": {"problems": 7}}),
    ("tuned_row", {"robustness": {"pairs": 7}}), ("tuned_row", {"robustness": {"stage": {"steps": 6}}}),
    ("tuned_row", {"probes": {"length": 32}}), ("tuned_row", {"seeds": [0, 5]}),
    ("written", {"probes": {"sequences": 7}})])
def test_what_was_kept_is_not_taken_under_other_settings(name, changes):
    assert identity(changes, name, *RECORDS[name]) != identity({}, name, *RECORDS[name])


def test_other_pairs_are_asked_anew():
    one, other = ([("p", "right", wrong)] for wrong in ("wrong", "worse"))
    assert len({identity({}, "displaced", 0, POINT, pairs=pairs) for pairs in (one, other, [*one, *other])}) == 3


ORPHAN = """
import os, sys
from multiprocessing import get_context
sys.path.insert(0, {studies!r})
import posttrain
child = get_context("spawn").Process(target=posttrain._end_with_parent)  # would wait forever
child.start()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_processes_end_with_the_one_that_was_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text("if __name__ == '__main__':\n" + textwrap.indent(
        ORPHAN.format(studies=str(ROOT / "studies")), "    "))
    # the pipe is the child's output, too: it is at its end when both have ended
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9 and int(done.stdout)


def test_win_rates_by_hand():
    # two problems, four answers each; the judge's log-probabilities, equal answers are half a win
    own = row(1, "A", [0.8, 0.2], [-1.0] * 8, ["12"] * 8)
    twin = row(1, "B", [0.5, 0.5], [-2.0, -2.0, -0.5, -9.0, -2.0, -0.5, -0.5, -9.0], (["21"] * 3 + ["12"]) * 2)
    last = row(2, "A", [1.0, 1.0], [-1.0] * 8, ["12"] * 8)
    found = pd.DataFrame(posttrain.wins([own, twin, last, {**twin, "tokens": 2}]))
    found = found[(found.tokens == 1) & (found.prompts == "sort")].set_index(["against", "judge"])
    assert found.win_rate["twin", "exact"] == pytest.approx(0.5 + (0.3 - 0.3) / 4)
    assert found.win_rate["twin", "likelihood"] == pytest.approx((2 + 0.5 + 1 + 0.5) / 8)  # 2, 0, half; 1, 0, 0, half
    assert found.ties["twin", "likelihood"] == pytest.approx(2 / 8)
    assert found.win_rate["final", "exact"] == pytest.approx((0.4 + 0.1) / 2)
    assert found.win_rate["final", "likelihood"] == 0.5 and found.ties["final", "likelihood"] == 1
    assert found.win_rate_stderr["final", "exact"] == pytest.approx(np.std([0.4, 0.1], ddof=1) / 2**0.5)
    assert not (pd.DataFrame(posttrain.wins([own, twin, last, {**twin, "tokens": 2}]))
                .query("tokens == 2").against == "final").any()  # a checkpoint is not compared with itself


def test_a_table_keeps_the_rows_of_other_groups(tmp_path):
    path, other = tmp_path / "posttrain_stages.csv", tmp_path / "other"
    posttrain.table(path, [{"group": "cpu", "seed": 0, "value": 1.0}])
    posttrain.table(path, [{"group": "gpu", "seed": 0, "value": 2.0}])
    posttrain.table(path, [{"group": "cpu", "seed": 0, "value": 3.0}])
    assert dict(posttrain.read(path).groupby("group").value.sum()) == {"cpu": 3.0, "gpu": 2.0}
    posttrain.table(other / path.name, [{"group": "gpu", "seed": 1, "value": 5.0}])
    posttrain.main(["--join", str(other), "--out", str(tmp_path)])
    assert dict(posttrain.read(path).groupby("group").value.sum()) == {"cpu": 3.0, "gpu": 5.0}
    with pytest.raises(SystemExit, match="no table"):
        posttrain.main(["--join", str(tmp_path / "nothing")])


@pytest.mark.parametrize("group", ["cpu", "gpu"])
def test_the_tracked_tables_are_of_the_plan(group):
    wanted = plan(group)
    stages = pd.read_csv(RESULTS / "posttrain_stages.csv").query("group == @group")
    tuned = pd.read_csv(RESULTS / "robustness_tuned.csv").query("group == @group")
    assert sorted(stages.seed.unique()) == sorted(tuned.seed.unique()) == wanted["seeds"]
    for (_, arm), its in stages.groupby(["seed", "arm"]):
        steps = {name: list(range(found["every"], found["steps"] + 1, found["every"]))
                 for name in ("SFT", "DPO", "RLVR") for found in [wanted[name]["stage"]]}
        expected = [("base", 0), *((name, step) for name in steps for step in steps[name])] \
            if arm == "sequence" else [("RLVR", step) for step in steps["RLVR"]]
        assert list(zip(its.stage, its.step, strict=True)) == expected
    assert len(tuned) == len(wanted["seeds"]) * len(wanted["robustness"]["tokens"]) * 3
    passes = pd.read_parquet(RESULTS / "posttrain_passes.parquet").query("group == @group")
    keys = ["seed", "arm", "stage", "step"]
    told = np.exp(passes.log_probability.astype(float)).groupby([passes[key] for key in keys]).mean()
    # both come from the same numbers, one rounded to single precision, the other to six digits
    assert np.allclose(told.reindex(pd.MultiIndex.from_frame(stages[keys])), stages.accuracy, atol=1e-5)


def test_drawn_answers_are_right_as_often_as_their_probability_says():
    """Of each problem and checkpoint, drawn 512 times: 99.9 % of the counts lie where a binomial has them."""
    sampled = pd.read_csv(RESULTS / "posttrain_sampled.csv")
    keys = ["group", "seed", "arm", "stage", "step", "problem"]
    exact = pd.read_parquet(RESULTS / "posttrain_passes.parquet").set_index(keys).log_probability
    p = np.exp(exact.loc[pd.MultiIndex.from_frame(sampled[keys])].to_numpy(float))
    low, high = (binom.ppf(tail, sampled.samples, p) for tail in (0.0005, 0.9995))
    outside = (sampled.right < low) | (sampled.right > high)
    assert len(sampled) > 250 and outside.sum() <= binom.ppf(0.9999, len(sampled), 0.001)
    # and on the whole: the mean of what differs, against its own standard error (four of them)
    apart = sampled.right / sampled.samples - p
    assert abs(apart.mean()) < 4 * np.sqrt((p * (1 - p) / sampled.samples).sum()) / len(sampled) + 1e-6
