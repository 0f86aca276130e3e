"""The page of Fig 2 with params/paper.yaml, unchanged, over the stand-in hub: the paper's suites by their real names.

Trusted: the names and branches as paper.md states them, the executed notebook's own outputs, and files left on disk.
"""

import json
import math
from pathlib import Path

import lm_eval
import nbformat
import papermill
import pytest
import yaml
from standin_hub import fineweb, tiny_model, tiny_tokenizer

from reptrace.memorization.infgram import build_infgram
from reptrace.models.loading import load_tokenizer
from reptrace.report import capabilities
from reptrace.report.profiles import ROOT, Profile
from reptrace.tasks import harness

PAPER = yaml.safe_load((ROOT / "notebooks/params/paper.yaml").read_text())
STEPS = (0, 8, 512, 20000, 143000)
FAULTY = 20000  # of pythia-2.8b


@pytest.fixture
def world(hub):
    """Pythia 1b to 12b and OLMo 2 1B and 7B, tiny and random, at a few of their steps, and a little FineWeb."""
    for number, size in enumerate(("1b", "1.4b", "2.8b", "6.9b", "12b")):
        for step in STEPS:
            hub.put(f"EleutherAI/pythia-{size}", f"step{step}", tiny_model("gpt_neox", 100 * number + step % 97)
                    | tiny_tokenizer(pad=False))
    for name, size, first in (("OLMo-2-0425-1B", 2_097_152, 300), ("OLMo-2-1124-7B", 4_194_304, 150)):
        for step in (0, first, 10000, 500000):
            branch = f"stage1-step{step}-tokens{math.ceil(step * size / 1e9)}B"
            hub.put(f"allenai/{name}", branch, tiny_model("olmo2", step % 89) | tiny_tokenizer())
    words = ["alpha", "beta", "gamma", "delta", "of", "the", "a", "network", "learns"]
    texts = [f"Document {k} " + " ".join(words[(k * j) % 9] for j in range(1, 40)) for k in range(120)]
    hub.put("HuggingFaceFW/fineweb", "main", fineweb(texts), kind="datasets")
    return hub


def test_the_paper_profile_names_the_paper_s_suites():
    assert [run.parameters for run in Profile.of(PAPER).runs] == [
        1011781632, 1414647808, 2775208960, 6857302016, 11846072320, 1484916736, 7298617344]
    assert (PAPER["sequences"], PAPER["context"], PAPER["alpha_ranks"]) == (15000, 512, [12, 100])


def test_fig02_runs_unchanged_over_the_hub(world, tmp_path):
    smaller = {"sequences": 60, "context": 24, "min_length": 8, "alpha_ranks": [2, 8], "checkpoints": 3, "refine": 1,
               "build": str(tmp_path / "build")}
    papermill.execute_notebook(ROOT / "notebooks/fig02_pretraining_phases.ipynb", tmp_path / "out.ipynb",
                               PAPER | smaller, kernel_name="python3", cwd=ROOT / "notebooks", progress_bar=False,
                               log_output=False)
    page = nbformat.read(tmp_path / "out.ipynb", 4)
    shown = "\n".join(str(output.get("data", {}).get("text/html", "")) + str(output.get("data", {}).get(
        "text/markdown", "")) for cell in page.cells for output in cell.get("outputs", []))
    for suite in PAPER["suites"]:
        assert suite in shown
    assert "EleutherAI/pythia issue 205" in shown, "the known fault of 2.8b is named"
    assert not [path for path in world.requests if f"pythia-2.8b/resolve/step{FAULTY}" in path.path]
    records = list((tmp_path / "build/records").glob("*.parquet"))
    assert len(records) >= 4 * 3 + 1 + 2 * 3  # four Pythias, the one good checkpoint of 2.8b, two OLMo 2


QA_CARD = """---
configs:
- config_name: rc.nocontext
  data_files:
  - split: validation
    path: rc.nocontext/*
---
"""


@pytest.fixture
def questions(world, monkeypatch, tmp_path):
    """TriviaQA and SciQ in their own forms, few and short; a tokenizer and, in place of the web API, a local index."""
    pairs = [{"question": f"which {k % 7} fox is number {k}?", "answer": {"value": f"the {k % 5} dog"}}
             for k in range(30)]
    world.put("mandarjoshi/trivia_qa", "main", kind="datasets", files={
        "README.md": QA_CARD.encode(), "rc.nocontext/validation.jsonl": as_lines(pairs)})
    items = [{"question": f"{k}?", "support": "the lazy dog", "correct_answer": "fox", "distractor1": "cat",
              "distractor2": "cow", "distractor3": f"{k}"} for k in range(8)]
    world.put("allenai/sciq", "main", {f"{name}.jsonl": as_lines(items) for name in ("train", "validation", "test")},
              kind="datasets")
    world.put(capabilities.LLAMA2, "main", tiny_tokenizer())
    monkeypatch.setattr(capabilities, "STOCK", ("sciq",))
    stock = Path(lm_eval.__file__).parent / "tasks" / "sciq"
    monkeypatch.setattr(harness, "_with_stock_tasks", lambda folders: lm_eval.tasks.TaskManager(
        include_path=[stock, *folders], include_defaults=False))
    opened = []

    def local(cache, index):
        opened.append(index)
        words = " ".join(f"Answer: the {k} dog" for k in range(5) for _ in range(k + 1))
        tokens = load_tokenizer(capabilities.LLAMA2)(words, add_special_tokens=False)["input_ids"]
        return build_infgram([*tokens, 0], tmp_path / "index", separator=0, vocabulary=2000, corpus="made",
                             tokenizer="made", progress=False)

    monkeypatch.setattr(capabilities, "WebInfinityGram", local)
    return opened


def as_lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def test_published_suites_are_asked_as_the_small_ones_are(questions, tmp_path):
    profile = Profile.of(PAPER | {"suites": ["pythia-1b", "olmo2-1b"], "checkpoints": 3, "context": 24,
                                  "build": str(tmp_path / "build")})
    groups = capabilities.groups(profile, 8)
    assert questions == ["v4_piletrain_llama", "v4_olmo-2-1124-13b-instruct_llama"]
    assert groups[0].questions.prompts[0] == "Question: which 0 fox is number 0? Answer:"
    assert groups[0].questions.answers[0] == " the 0 dog"
    tables = capabilities.evaluate(profile, groups, 8, progress=False)
    for run, table in tables.items():
        assert (table.status == "measured").all(), table.reason.tolist()
        assert set(table.task) == {"sciq", "memorization"} and table.revision.nunique() == 3
        assert run.name.startswith("olmo2") == table.model.iloc[0].startswith("allenai")
        assert len(capabilities.series(table, "sciq")) == 3
