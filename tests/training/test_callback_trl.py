"""The callback in TRL's trainers.

Trusted: a training without the callback, the trainers' own log, PEFT's merged model and transformers' own hidden
states, RankMe by numpy.
"""

import copy
import json
import re

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from test_callback import assert_same_weights, generators, logged, rankme_by_numpy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import reptrace
from reptrace.report.profiles import ROOT

pytestmark = pytest.mark.usefixtures("frozen")
WORDS = ["<pad>", "<end>", "sort", "=", *map(str, range(12))]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 32, "pad_token_id": 0, "eos_token_id": 1,
         "bos_token_id": None}
NUMBERS = [np.random.default_rng(k).integers(0, 12, 3).tolist() for k in range(24)]
SEQUENCES = [np.random.default_rng(k).integers(2, len(WORDS), 4 + k % 5).tolist() for k in range(40)]
STEPS = 4


# With dropout, so that random numbers that measuring used up, or a wrong mode, would show.
MODELS = {"GPT-NeoX": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, hidden_dropout=0.1, attention_dropout=0.1)),
          "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1))}
LORA = {"lora_dropout": 0.1, "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 64}  # strong, so that four steps show
ADAPTERS = {"GPT-NeoX": peft.LoraConfig(target_modules=["query_key_value", "dense_h_to_4h"], **LORA),
            "Llama": peft.LoraConfig(target_modules=["q_proj", "down_proj"], **LORA)}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left")


def text(numbers):
    return " " + " ".join(map(str, numbers))


def share_right(completions, answer, **others):
    """A reward that an untrained model earns now and then."""
    return [len(set(found.split()) & set(right.split())) / 3 for found, right in zip(completions, answer, strict=True)]


PROBLEMS = {"prompt": [f"sort{text(numbers)} =" for numbers in NUMBERS]}
ANSWERS = [text(sorted(numbers)) for numbers in NUMBERS]
TRAINERS = {"SFT": (SFTTrainer, SFTConfig, {"completion": ANSWERS}),
            "DPO": (DPOTrainer, DPOConfig, {"chosen": ANSWERS, "rejected": [text(numbers) for numbers in NUMBERS]}),
            "GRPO": (GRPOTrainer, GRPOConfig, {"answer": ANSWERS})}
# Two steps, each of two small batches, for what is generated once
ONLY = {"GRPO": {"num_generations": 2, "max_completion_length": 4, "num_iterations": 2, "beta": 0.1}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained models, by name: TRL opens the reference model from the policy's folder."""
    found = {}
    for name, make in MODELS.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(found[name])
    return found


def trainer_of(kind, model, out, every=None, peft_config=None, **arguments):
    """Four steps of two batches each; `every`: with the callback."""
    trainer_class, settings, columns = TRAINERS[kind]
    arguments = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
                 "learning_rate": 0.1, "logging_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none",
                 "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
                 "activation_checkpointing": False, **ONLY.get(kind, {}), **arguments}
    rewarded = {"reward_funcs": share_right} if kind == "GRPO" else {}
    trainer = trainer_class(model, args=settings(str(out), **arguments), processing_class=tokenizer(),
                            train_dataset=Dataset.from_dict(PROBLEMS | columns), peft_config=peft_config, **rewarded)
    if every:
        trainer.add_callback(reptrace.GeometryCallback(trainer, SEQUENCES, every=every, ranks=(2, 10)))
    return trainer


def rankme_by_others(model):
    """RankMe by numpy of the last states by transformers, one sequence at a time, with the adapter merged by PEFT."""
    trained = copy.deepcopy(model).merge_and_unload() if isinstance(model, peft.PeftModel) else model
    model = AutoModelForCausalLM.from_config(trained.config).eval()  # the forward of TRL's copies is the original's
    model.load_state_dict(trained.state_dict())
    with torch.inference_mode():
        outputs = [model(torch.tensor([ids]), output_hidden_states=True) for ids in SEQUENCES]
    return rankme_by_numpy(torch.stack([output.hidden_states[-1][0, -1] for output in outputs]))


@pytest.fixture(scope="module", params=[(kind, name, adapted) for kind in TRAINERS for name in MODELS
                                        for adapted in (False, True)],
                ids=lambda case: f"{case[0]}, {case[1]}{', LoRA' * case[2]}")
def trained(request, folders, tmp_path_factory):
    """A training without the callback, one with it, and the states of the random generators after each.

    Llama's with activation checkpointing, as is TRL's own default.
    """
    kind, name, adapted = request.param
    found, states = [], []
    for every in (None, 1):
        trainer = trainer_of(kind, str(folders[name]), tmp_path_factory.mktemp("out"), every,
                             ADAPTERS[name] if adapted else None, activation_checkpointing=name == "Llama")
        trainer.train()
        found.append(trainer)
        states.append(generators())
    return *found, states


def test_training_is_the_same_bit_for_bit(trained):
    plain, measured, states = trained
    assert_same_weights(plain, measured)
    assert states[0] == states[1]


def test_so_are_the_trainer_s_own_rows_with_its_means_over_all_steps(trained):
    rows = [[{name: value for name, value in row.items() if "time" not in name and "per_second" not in name}
             for row in trainer.state.log_history if "geometry/time_share" not in row] for trainer in trained[:2]]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [2, 4, 4]
    assert {"entropy", "num_tokens"} <= set(rows[0][0])


def test_a_row_of_geometry_for_every_update_and_nothing_else_in_it(trained):
    measured = trained[1]
    rows = [row for row in measured.state.log_history if "geometry/time_share" in row]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    names = {"rankme", "rankme_stderr", "alpha", "alpha_stderr", "time_share"}
    adapter = {"adapter/default"} if isinstance(measured.model, peft.PeftModel) else set()
    assert {frozenset(row) for row in rows} == {frozenset(
        {"step", "epoch"} | {f"geometry/{name}" for name in names | adapter})}


def test_what_is_measured_is_the_policy_with_its_adapter_by_others_means(trained):
    measured = trained[1]
    found = logged(measured)
    # float32 of 16 dimensions: merged weights and batches round differently
    assert found[STEPS] == pytest.approx(rankme_by_others(measured.model), rel=1e-4)
    assert abs(found[0] / found[STEPS] - 1) > 1e-3 and measured.model.training


def test_the_reference_model_is_left_alone(trained):
    """It is in its folder what the policy was before training."""
    reference = getattr(trained[1], "ref_model", None)
    if reference is None:
        assert isinstance(trained[1].model, peft.PeftModel) or isinstance(trained[1], SFTTrainer)
        return
    before = AutoModelForCausalLM.from_pretrained(reference.config._name_or_path).state_dict()
    assert all(torch.equal(before[name], value) for name, value in reference.state_dict().items())
    assert not reference.training and not any(module._forward_hooks for module in reference.modules())


def test_an_adapter_that_is_trained_on_is_measured_and_not_the_copy_that_dpo_keeps_of_it(folders, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **LORA)  # that does something already
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folders["Llama"]), config)
    trainer = trainer_of("DPO", model, tmp_path, every=2)
    trainer.train()
    assert set(trainer.model.peft_config) == {"default", "ref"}
    assert list(logged(trainer, "geometry/adapter/default")) == [0, 2, 4]
    assert not logged(trainer, "geometry/adapter/ref")
    assert logged(trainer)[STEPS] == pytest.approx(rankme_by_others(trainer.model), rel=1e-4)  # as above


# After an interruption


def interrupted(kind, name, folders, out, adapter=None):
    """A training to its end, and another of the same that is about to go on from its half."""
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole, second = (trainer_of(kind, str(folders[name]), out / each, 1, adapter, **saving) for each in ("a", "b"))
    whole.train()
    return whole, second, out / "a/checkpoint-2"


def assert_went_on_as_one(whole, second):
    assert_same_weights(whole, second)
    assert list(logged(second)) == [0, 1, 2, 3, 4] and logged(second) == logged(whole)
    assert sum("geometry/rankme" in row for row in second.state.log_history) == STEPS + 1  # none twice


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_resumed_adapter_is_measured_as_if_it_had_never_stopped(kind, folders, tmp_path):
    whole, second, checkpoint = interrupted(kind, "GPT-NeoX", folders, tmp_path, ADAPTERS["GPT-NeoX"])
    second.train(resume_from_checkpoint=checkpoint)
    assert_went_on_as_one(whole, second)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_resumed_gpt_neox_goes_on_as_itself_once_its_unembedding_is_put_in(kind, folders, tmp_path):
    """Without that the head is lost (transformers issue 48805): when the second assertion fails, that was mended."""
    whole, second, checkpoint = interrupted(kind, "GPT-NeoX", folders, tmp_path)
    untrained = second.model.lm_head.weight.clone()
    second._load_from_checkpoint(str(checkpoint))
    assert torch.equal(second.model.lm_head.weight, untrained)
    second.model.load_state_dict(AutoModelForCausalLM.from_pretrained(checkpoint).state_dict())
    second.train(resume_from_checkpoint=checkpoint)
    assert_went_on_as_one(whole, second)


# The book's page


PAGE = (ROOT / "book/own_posttraining.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
ON_A_CPU = "use_cpu=True, bf16=False"  # as the page says
SMALLER = {"max_steps=300": f"max_steps=2, {ON_A_CPU}", "max_steps=600": f"max_steps=4, {ON_A_CPU}",
           "checkpoint-300": "checkpoint-2", "every=50": "every=1", "sequences=2000": "sequences=40",
           '("grpo", ': '("grpo", max_completion_length=4, '}


def smaller(code):
    for given, here in SMALLER.items():
        code = code.replace(given, here)
    return code


def as_lines(columns):
    return "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


@pytest.fixture
def elsewhere(folders, tmp_path, monkeypatch):
    """The files that the page names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(folders["GPT-NeoX"])
    tokenizer().save_pretrained("MODEL")
    numbers = np.random.default_rng(0).integers(0, 12, (40, 32))
    (tmp_path / "held_out.txt").write_text("\n\n".join(map(text, numbers)))
    (tmp_path / "held_out.jsonl").write_text(as_lines({"prompt": [f"sort{text(row[:8])} =" for row in numbers]}))
    for name, kind in (("pairs", "SFT"), ("preferences", "DPO"), ("problems", "GRPO")):
        (tmp_path / f"{name}.jsonl").write_text(as_lines(PROBLEMS | TRAINERS[kind][2]))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_the_page_s_code_runs_and_each_way_takes_six_lines(elsewhere, capsys):
    assert all(given in "".join(BLOCKS) for given in SMALLER) and f"`{ON_A_CPU}`" in PAGE
    names, trained = {}, []
    for block in BLOCKS:
        exec(smaller(block), names)
        if "trainer.train(" in block:
            assert len([line for line in block.splitlines() if line.strip()]) <= 6
            trained.append(names["trainer"])
    assert [type(trainer).__name__ for trainer in trained] == [
        "SFTTrainer", "DPOTrainer", "GRPOTrainer", "SFTTrainer", "SFTTrainer"]
    for trainer, last in zip(trained, (2, 2, 2, 2, 4), strict=True):
        for name in ("geometry/text/rankme", "geometry/prompts/rankme", "geometry/text/alpha"):
            assert list(logged(trainer, name)) == list(range(last + 1))
    assert [bool(logged(trainer, "geometry/adapter/default")) for trainer in trained] == [0, 0, 0, 1, 0]
    assert "geometry/prompts/rankme" in capsys.readouterr().out  # the table


def test_the_page_names_what_a_row_holds(trained):
    rows = [row for row in trained[1].state.log_history if "geometry/time_share" in row]
    named = {name.replace("geometry/", "geometry/text/") if "rankme" in name or "alpha" in name else name
             for row in rows for name in row if not name.endswith("_stderr")}
    assert all(f"`{name}`" in PAGE for name in named - {"epoch"})
