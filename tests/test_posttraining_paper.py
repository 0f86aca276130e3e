"""The study of the paper's models after pretraining, on stand-ins: tiny random models of the same classes under the
same names, and small files in each data set's own schema.

Trusted: the stand-in hub's commits and its judge, which prefers the larger number, and what the parts it is made of are
tested for. The parameters are the study's own, with sizes cut.
"""

import gzip
import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from limits import serving
from standin_hub import fineweb, tiny_model, tiny_tokenizer
from standin_judge import StandIn

from reptrace.measures.pass_at_k import unbiased
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.located import Opening
from reptrace.texts.published_sets import HH_PARTS
from reptrace.training import tuning
from reptrace.training.tuning_process import tune

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "studies"))
import posttraining_paper  # noqa: E402

TULU, OLMO = "allenai/Llama-3.1-Tulu-3", "allenai/OLMo-2-0425-1B"
SMALL = {"sequences": 30, "max_length": 12, "min_length": 3}
CHATS = """---
configs:
- config_name: default
  data_files:
  - {split: train_sft, path: data/train_sft-*}
  - {split: test_sft, path: data/test_sft-*}
---
"""
TURNS = "\n\nHuman: {}\n\nAssistant: {}"


def parquet(rows):
    pd.DataFrame(rows).to_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.fixture
def plan():
    return yaml.safe_load(posttraining_paper.PLAN.read_text())


@pytest.fixture
def study(tmp_path):
    return lambda plan: posttraining_paper.Study(plan, tmp_path / "out", Opening("cpu", "float32"),
                                                 Means(progress=False))


def put_tulu(hub, steps=(1920, 40, 200)):
    """The repositories of both suites; a name -> commit."""
    files = {"meta-llama/Llama-3.1-8B": ["main"], f"{TULU}-8B-SFT": ["main"], f"{TULU}-8B-DPO": ["main"],
             f"{TULU}-8B": ["main"], f"{TULU}.1-8B": ["main", *(f"step_{step}" for step in steps)]}
    names = [(repository, branch) for repository, branches in files.items() for branch in branches]
    return {name: hub.put(*name, tiny_model("llama", number) | tiny_tokenizer()) for number, name in enumerate(names)}


def test_every_stage_of_both_tulus_is_traced_in_its_order_on_text_and_on_prompts(hub, plan, study):
    commits = put_tulu(hub)
    words = [f"the quick brown fox {k} jumps over {k * k}" for k in range(60)]
    hub.put("HuggingFaceFW/fineweb", "main", fineweb(words), "datasets")
    chats, others = (parquet([{"prompt": f"why {word}?", "prompt_id": "x", "messages": [{"role": "user"}]}
                              for word in part]) for part in (words, ["other"] * 90))
    hub.put("HuggingFaceH4/ultrachat_200k", "main", {
        "README.md": CHATS.encode(), "data/test_sft-00000.parquet": chats,
        "data/train_sft-00000.parquet": others}, "datasets")
    plan["trace"]["texts"] = [each | SMALL for each in plan["trace"]["texts"]]
    table = study(plan).trace()
    assert (table.status == "measured").all(), table.reason.tolist()
    before = ["meta-llama/Llama-3.1-8B", f"{TULU}-8B-SFT", f"{TULU}-8B-DPO"]
    ends = {"tulu3-8b": [f"{TULU}-8B"], "tulu3.1-8b": [f"{TULU}.1-8B@step_{step}" for step in (40, 200, 1920)]}
    for (suite, _), found in table.groupby(["suite", "probe_fingerprint"], sort=False):
        labels = [f"{row.model}@{row.revision}" if isinstance(row.revision, str) else row.model
                  for row in found.itertuples()]
        assert labels == before + ends[suite]
        assert found.stage.tolist() == ["base", "SFT", "DPO", *["RLVR"] * len(ends[suite])]
        assert found.weights.tolist() == [commits[(*label.split("@"), "main")[:2]] for label in labels]
    probes = table.probe.drop_duplicates().tolist()
    assert len(probes) == 2 and "fineweb" in probes[0] and "ultrachat" in probes[1] and table.rankme.notna().all()


def test_pass_at_k_is_that_of_the_samples_counted_and_compared_with_the_first_model(hub, plan, study, tmp_path):
    put_tulu(hub, steps=(1200, 2400))
    problems = [{"id": k, "answer": float(k), "url": "u", "question": f"{{{k}}} quick?"} for k in range(4)]
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(parquet(problems))
    plan["places"]["amc23"] = str(tmp_path)
    plan["amc"]["writing"] |= {"samples": 6, "tokens": 8, "together": 3, "temperature": 1.0}
    plan["amc"]["k"] = [1, 2, 6]
    table = study(plan).amc()
    counts = pd.read_csv(tmp_path / "out" / "amc_problems.csv")
    assert counts.samples.tolist() == [6] * 16 and table.model.drop_duplicates().tolist() == plan["amc"]["models"]
    for name, found in table.groupby("model"):
        repository, _, branch = name.partition("@")
        own = counts[(counts.model == repository) & (counts.revision.fillna("") == branch)]
        assert found.pass_at_k.tolist() == pytest.approx(unbiased(6, own["right"].to_numpy(), [1, 2, 6]).mean(0))
        assert (found.low <= found.pass_at_k).all() and (found.problems == 4).all()
    assert table["set"].str.startswith(tmp_path.name).all() and (table.temperature == 1.0).all()


@pytest.fixture
def sets(tmp_path, plan):
    """Local copies of the data sets; some held-out prompts are trained on, too."""
    def put(name, content):
        path = tmp_path / "sets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    for split, numbers in (("train", range(8)), ("test", range(6, 14))):
        for part in HH_PARTS:
            put(f"hh/{part}/{split}.jsonl.gz", gzip.compress("".join(json.dumps(
                {"chosen": TURNS.format(f"fox {k} {part[:9]}?", f"dog {k}"), "rejected": "no"}) + "\n"
                for k in numbers).encode()))
    for split, numbers in (("sft", range(16)), ("unlabeled", range(14, 24))):
        put(f"farm/alpaca_instructions/{split}.json", json.dumps(
            [{"instruction": f"brown {k}", "input": "", "output": f"{k} lazy"} for k in numbers]).encode())
    put("eval/alpaca_eval_gpt4_baseline.json", json.dumps(
        [{"instruction": f"jumps {k}", "output": f"{k}", "generator": "g", "dataset": "x"} for k in range(5)]).encode())
    folder = tmp_path / "sets"
    plan["places"] |= {"anthropic_hh": str(folder / "hh"), "alpaca_farm": str(folder / "farm"),
                       "alpaca_eval": str(folder / "eval")}
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"the quick brown fox {k} jumps over {k * k}" for k in range(60)))
    plan["sft"] |= {"checkpoints": 2, "seeds": [7], "geometry": {"text": str(text), **SMALL}}
    plan["sft"]["tuning"] |= {"batch": 8, "accumulation": 2, "processes": 1, "per_device": 8, "max_length": 40,
                              "loss_length": 40, "learning_rate": 1e-2}
    plan["answers"]["writing"] |= {"tokens": 6, "together": 3}
    return folder


def test_checkpoints_are_tuned_answer_and_are_judged(hub, plan, study, sets, tmp_path, monkeypatch):
    for number, branch in enumerate(("stage1-step10000-tokens21B", "stage1-step1907359-tokens4001B")):
        hub.put(OLMO, branch, tiny_model("olmo2", number) | tiny_tokenizer())
    monkeypatch.setattr(tuning, "launch", lambda folder, *_: tune(folder))  # test_tuning.py has the processes
    made = study(plan)
    table = made.sft()
    assert (table.status == "measured").all(), table.reason.tolist()
    assert sorted(zip(table.step, table.tuned_on, strict=True)) == [
        (step, name) for step in (10_000, 1_907_359) for name in ("alpaca_farm", "anthropic_hh")]
    assert table.rankme.notna().all() and table.rankme.nunique() == 2 and table.loss_in.nunique() == 4
    # 32 dialogues are trained on and 16 instructions; 4 x 2 dialogues and 2 instructions are held out and trained on
    assert dict(zip(table.tuned_on, table.loss_in_pairs, strict=True)) == {"anthropic_hh": 24, "alpaca_farm": 8}
    assert dict(zip(table.tuned_on, table.loss_out_pairs, strict=True)) == {"anthropic_hh": 8, "alpaca_farm": 24}
    assert dict(zip(table.tuned_on, table.steps, strict=True)) == {"anthropic_hh": 4, "alpaca_farm": 2}
    sources = json.loads((tmp_path / "out" / "data" / "sources.json").read_text())
    assert [each["pairs"] for each in sources] == [32, 24, 16, 8] and all("@" in each["name"] for each in sources)
    with pytest.raises(FileNotFoundError, match="the part `sft` comes before"):
        made.answers()
    table.to_csv(tmp_path / "out" / "sft.csv", index=False)
    answers = made.answers()
    assert len(answers) == 4 and (answers.status == "measured").all() and answers.generator.is_unique
    for number, row in enumerate(table.itertuples()):
        rows = json.loads(made.answers_of(row.folder).read_text())
        assert [each["instruction"] for each in rows] == [f"jumps {k}" for k in range(5)]
        for each in rows:  # so that the judge can tell: those tuned on dialogues are better, later ones more so
            each["output"] = f"{2 * (row.tuned_on == 'anthropic_hh') + (row.step > 10_000)} {number}"
        made.answers_of(row.folder).write_text(json.dumps(rows))
    judge = StandIn()
    plan["judge"]["url"] = judge.url
    with serving(judge.server):
        rates = study(plan).judge()
    assert rates[["step", "against", "rate"]].values.tolist() == [
        [10_000, "twin", 1.0], [10_000, "last", 0.0], [10_000, "reference", 0.5],  # 2 against 0, 1, 2, 3, 4
        [1_907_359, "twin", 1.0], [1_907_359, "reference", 0.7]]  # 3 against those
    assert (rates.pairs == 5).all() and (rates.seed == 7).all()


def test_the_cost_is_told_as_the_page_tells_it(plan):
    told = posttraining_paper.cost(plan)
    assert [line.partition(":")[0] for line in told.splitlines()] == ["trace", "amc", "sft", "answers", "judge"]
    assert told in (ROOT / "book" / "posttraining_paper.md").read_text()
