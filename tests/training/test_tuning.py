"""Supervised tuning of checkpoints, from the summed loss to a job of a Dask cluster.

Trusted: torch's gradient of the cross-entropy summed by hand, TRL's own trainer for contrast, transformers' own loss,
and a tuning that nothing cut off. One test starts `accelerate launch`; the others do its work in this process.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from standin_hub import tiny_model, tiny_tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from reptrace.checkpoints.suites import suite
from reptrace.models import loading
from reptrace.records.store import Store
from reptrace.support.fingerprints import files_fingerprint
from reptrace.sweeps import jobs
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import GeometryPart, Settings
from reptrace.texts.corpora import Probe
from reptrace.training import tuning as tuning_module
from reptrace.training import tuning_process
from reptrace.training.tuning import RESULT, Tuning, TuningPart, launch
from reptrace.training.tuning_process import held_out_loss, last_checkpoint, trainer_of, tune

pytestmark = pytest.mark.usefixtures("frozen")
OLMO, BRANCHES = "allenai/OLMo-2-0425-1B", ("stage1-step10000-tokens21B", "stage1-step1907359-tokens4001B")
PAIRS = [{"prompt": f"\n\nHuman: say {k}\n\nAssistant:", "completion": " fox" * (k % 5 + 1)} for k in range(16)]
SMALL = Tuning(max_length=48, batch=4, accumulation=2, learning_rate=1e-2, loss_length=40, processes=1, per_device=4,
               save_steps=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with an untrained OLMo 2 and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    for name, content in (tiny_model("olmo2", 3) | tiny_tokenizer()).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def opened(base):
    return loading.load(str(base), head=True, dtype="float32"), loading.load_tokenizer(str(base))


@pytest.fixture
def pairs(tmp_path):
    """Files of pairs, and their fingerprints."""
    files = {}
    others = [pair | {"completion": " dog"} for pair in PAIRS]
    for name, rows in {"train": PAIRS, "in": PAIRS[::-1], "out": others}.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return ({name: str(path) for name, path in files.items()},
            {name: files_fingerprint([(name, path)]) for name, path in files.items()})


# The summed loss


def by_hand(model, tokenizer, divisor):
    """Weights after a step of plain gradient descent at rate 0.01 on the sum over all answers' tokens and ends."""
    total = 0
    for pair in PAIRS[:8]:
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair.values())
        ids = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        logits = model(ids[None]).logits[0, len(prompt) - 1 : -1]
        total = total + cross_entropy(logits, ids[len(prompt):], reduction="sum")
    (total / divisor).backward()
    return {name: (value - 0.01 * value.grad).detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("per_device", [2, 8])
def test_a_step_follows_the_sum_over_all_tokens_however_the_pairs_are_split(base, opened, tmp_path, per_device):
    expected = by_hand(*opened, divisor=2)
    model, tokenizer = loading.load(str(base), head=True, dtype="float32"), opened[1]
    tuning = Tuning(max_length=48, batch=4, accumulation=2, learning_rate=0.01, warmup=0, epochs=1, processes=1,
                    per_device=per_device)
    trainer_of(model, tokenizer, PAIRS[:8], tuning, tmp_path, optim="sgd", save_strategy="no").train()
    for name, value in model.named_parameters():
        # float32 sums of 8 answers in another order
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-5, atol=1e-6)


def test_trl_s_own_step_is_another(base, opened, tmp_path):
    from datasets import Dataset

    expected, start = by_hand(*opened, divisor=2), load_file(base / "model.safetensors")["lm_head.weight"]
    model = loading.load(str(base), head=True, dtype="float32")
    settings = SFTConfig(str(tmp_path), per_device_train_batch_size=8, learning_rate=0.01, num_train_epochs=1,
                         optim="sgd", use_cpu=True, bf16=False, max_grad_norm=0, report_to="none", disable_tqdm=True,
                         save_strategy="no", activation_checkpointing=False, dataloader_pin_memory=False)
    SFTTrainer(model, settings, processing_class=opened[1], train_dataset=Dataset.from_list(PAIRS[:8])).train()
    moved = (model.lm_head.weight.detach() - start).norm() / (expected["lm_head.weight"] - start).norm()
    tokens = sum(len(opened[1](pair["completion"])["input_ids"]) + 1 for pair in PAIRS[:8])
    assert moved.item() == pytest.approx(2 / tokens, rel=1e-3)  # the mean over the tokens, not their sum over 2


# After an interruption


def ordered(folder, base, pairs, tuning=SMALL):
    folder.mkdir()
    loading.load_tokenizer(str(base)).save_pretrained(folder / "tokenizer")
    (folder / "order.json").write_text(json.dumps({
        "model": str(base), "revision": None, "cache_dir": None, "device": "cpu", "dtype": "float32",
        "tuning": vars(tuning), "pairs": pairs[0]}))
    return folder


def test_a_tuning_that_died_goes_on_from_its_last_whole_checkpoint_to_the_same_weights(
        base, pairs, tmp_path, monkeypatch):
    whole = ordered(tmp_path / "whole", base, pairs)
    tune(whole)
    result = json.loads((whole / RESULT).read_text())
    assert result["steps"] == 4 and result["train_pairs"] == result["loss_in_pairs"] == 16
    cut, step, count = ordered(tmp_path / "cut", base, pairs), tuning_process.SummedTrainer.training_step, []

    def dying(self, *arguments):
        count.append(1)
        if len(count) in (6, 10):  # in the third step of two batches, and, after a resumption, in the fourth
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(tuning_process.SummedTrainer, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        tune(cut)
    assert not (cut / RESULT).exists() and last_checkpoint(cut) == str(cut / "checkpoint-2")
    for number, state in ((3, None), (4, '{"half')):  # as a kill in the middle of a save leaves them
        (cut / f"checkpoint-{number}").mkdir()
        if state:
            (cut / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(cut) == str(cut / "checkpoint-2")
    with pytest.raises(KeyboardInterrupt):
        tune(cut)
    assert last_checkpoint(cut) == str(cut / "checkpoint-3")
    tune(cut)
    assert len(count) == 6 + 4 + 2  # two steps of two batches each, cut off at their end; one more
    assert not list(cut.glob("checkpoint-*"))  # with Adam's state they would fill the disk
    ends = [load_file(folder / "final" / "model.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert json.loads((cut / RESULT).read_text()) == result


def test_the_held_out_loss_is_transformers_own_over_the_answers_tokens(opened):
    model, tokenizer = opened
    long = {"prompt": "the " * 60, "completion": " fox"}
    found = held_out_loss(model, tokenizer, [*PAIRS, long], 40, 4)
    losses, counts = [], []
    for pair in PAIRS:
        start = len(tokenizer(pair["prompt"])["input_ids"])
        text = tokenizer(pair["prompt"] + pair["completion"])["input_ids"]
        ids = torch.tensor([[*text, tokenizer.eos_token_id][:40]])
        labels = ids.clone()
        labels[:, :start] = -100
        counts.append(int((labels != -100).sum()))
        losses.append(model(ids, labels=labels).loss.item() * counts[-1])
    assert found[""] == pytest.approx(sum(losses) / sum(counts), rel=1e-5)
    assert (found["_pairs"], found["_left_out"]) == (16, 1) and found["_stderr"] > 0
    with pytest.raises(ValueError, match="none of 1 held-out pairs has a token of its answer among its first 40"):
        held_out_loss(model, tokenizer, [long], 40, 4)


# As a job


@pytest.mark.timeout(900)  # two processes one after the other import torch, then TRL: half a minute on a quiet machine
def test_checkpoints_are_tuned_by_accelerate_on_a_worker_of_a_cluster_each_once(
        hub, pairs, tmp_path, dask_here, monkeypatch):
    from distributed import Client, LocalCluster

    for number, branch in enumerate(BRANCHES):
        hub.put(OLMO, branch, tiny_model("olmo2", number) | tiny_tokenizer())
    points = suite("olmo2-1b").checkpoints()
    parts = [TuningPart(SMALL, "set", *pairs, tmp_path / "tuned")]
    probe = Probe("made", [[5, 6, k % 9 + 3, k] for k in range(3, 40)], 4, 4)
    real, launched = tuning_module.launch, []

    def launch_once(folder, *arguments):  # starting Python and TRL takes most of the time
        launched.append(folder)
        real(folder, *arguments) if len(launched) == 1 else tune(folder)

    monkeypatch.setattr(tuning_module, "launch", launch_once)
    store = Store(tmp_path / "records")
    with (LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
          Client(cluster) as client):
        geometry, tunings = run([(points, [GeometryPart(probe, Settings(ranks=(2, 8)))]), (points, parts)], store,
                                Opening("cpu", "float32"), Means(client=client, progress=False))
    table = store.table([job.identity(parts[0]) for job in tunings])
    assert table.status.tolist() == ["measured"] * 2, table.reason.tolist()
    assert table.revision.tolist() == list(BRANCHES) and (table.steps == 4).all() and len(launched) == 2
    assert table.loss_in.nunique() == 2 and (table.tuned_on == "set").all()
    for folder in table.folder:
        assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "olmo2"
    [rows] = [store.table([job.identity(GeometryPart(probe, Settings(ranks=(2, 8)))) for job in geometry])]
    assert rows.rankme.notna().all()
    run([(points, parts)], store, Opening("cpu", "float32"), Means(progress=False))
    run([(points, parts)], Store(tmp_path / "other"), Opening("cpu", "float32"), Means(progress=False))
    assert len(launched) == 2  # the record is there, or else the folder's result


def failed(points, part, tmp_path):
    store = Store(tmp_path / "failed")
    [[job]] = run([(points, [part])], store, Opening("cpu", "float32"), Means(progress=False))
    return store.table([job.identity(part)])


def test_what_goes_wrong_is_a_gap_that_says_what(hub, pairs, tmp_path, monkeypatch):
    hub.put(OLMO, BRANCHES[0], tiny_model("olmo2") | tiny_tokenizer())
    points = suite("olmo2-1b").checkpoints()
    monkeypatch.setattr(jobs, "open_at", lambda *_: pytest.fail("the worker itself has no use for the model"))

    def run_out(command, messages, _):
        assert command[1:3] == ["-m", "accelerate.commands.launch"]
        messages.write("Traceback\n  raise Error: x\ntorch.OutOfMemoryError: CUDA out of memory.\nlast\n")
        return 1

    monkeypatch.setattr(tuning_module, "_run", run_out)
    table = failed(points, TuningPart(SMALL, "set", *pairs, tmp_path / "tuned"), tmp_path)
    assert "ended with code 1: torch.OutOfMemoryError: CUDA out of memory. (all of it:" in table.reason[0]
    hub.put(OLMO, BRANCHES[0], tiny_model("olmo2") | tiny_tokenizer(pad=False))
    table = failed(suite("olmo2-1b").checkpoints(), TuningPart(SMALL, "set", *pairs, tmp_path / "tuned"), tmp_path)
    assert "end token is '<|endoftext|>' and its pad token None: tuning needs both" in table.reason[0]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="4 processes were asked for, one a GPU, and this worker sees 1 GPUs"):
        launch(tmp_path, 4, "cuda")


def test_a_step_that_cannot_be_shared_by_the_processes_is_refused():
    with pytest.raises(ValueError, match="3 processes x per_device = 4 pairs must divide the 256 pairs of a step"):
        Tuning(processes=3)
