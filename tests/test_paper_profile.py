"""The page of Fig 2 with params/paper.yaml, unchanged, over the stand-in hub: the paper's suites by their real names.

Trusted: the names and branches as paper.md states them, the executed notebook's own outputs, and files left on disk.
"""

import math

import nbformat
import papermill
import pytest
import yaml
from standin_hub import fineweb, tiny_model, tiny_tokenizer

from reptrace.profiles import ROOT, Profile

PAPER = yaml.safe_load((ROOT / "notebooks/params/paper.yaml").read_text())
STEPS = (0, 1, 8, 64, 512, 3000, 20000, 143000)
FAULTY = 20000  # of pythia-2.8b


@pytest.fixture
def world(hub):
    """Pythia 1b to 12b and OLMo 2 1B and 7B, tiny and random, at a few of their steps, and a little FineWeb."""
    for number, size in enumerate(("1b", "1.4b", "2.8b", "6.9b", "12b")):
        for step in STEPS:
            hub.put(f"EleutherAI/pythia-{size}", f"step{step}", tiny_model("gpt_neox", 100 * number + step % 97)
                    | tiny_tokenizer(pad=False))
    for name, size, first in (("OLMo-2-0425-1B", 2_097_152, 300), ("OLMo-2-1124-7B", 4_194_304, 150)):
        for step in (0, first, 10000, 100000, 500000):
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
    smaller = {"sequences": 60, "context": 24, "min_length": 8, "alpha_ranks": [2, 8], "checkpoints": 6, "refine": 1,
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
    assert len(records) >= 4 * 6 + 1 + 2 * 5  # four Pythias, the one good checkpoint of 2.8b, two OLMo 2
