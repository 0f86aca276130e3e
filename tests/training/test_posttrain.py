"""Stages of post-training.

Trusted: transformers' own logits and torch's cross-entropy, the formula of DPO, TRL's own log and defaults, a stage
that was never stopped, huggingface_hub's reading of a cache, and RankMe by numpy.
"""

import json
import os
import shutil
import signal
import time
import warnings
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from datasets.utils import logging as of_datasets
from huggingface_hub import scan_cache_dir
from huggingface_hub.utils import validate_repo_id
from limits import SOON, beside
from test_callback import generators, rankme_by_numpy
from test_callback_trl import MODELS, SIZES, share_right, text, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as of_transformers
from trl import GRPOConfig

from reptrace.__main__ import main
from reptrace.checkpoints.hub import repository_folder
from reptrace.checkpoints.listing import Checkpoint, checkpoints, revisions
from reptrace.texts.corpora import END_OF_TEXT, train_tokenizer
from reptrace.training import posttrain
from reptrace.training.posttrain import DPO, LAST, RLVR, SFT, Stage, along, exactly_right, folder_of, log, tune

pytestmark = pytest.mark.usefixtures("frozen")
NUMBERS = [np.random.default_rng(k).integers(0, 12, 3).tolist() for k in range(10)]
PROMPTS = [f"sort{text(numbers)} =" for numbers in NUMBERS]
RIGHT, WRONG = [text(sorted(each)) for each in NUMBERS], [text([*each[::-1], 0]) for each in NUMBERS]
COLUMNS = {SFT: {"prompt": PROMPTS, "completion": RIGHT}, RLVR: {"prompt": PROMPTS, "answer": RIGHT},
           DPO: {"prompt": PROMPTS, "chosen": RIGHT, "rejected": WRONG}}
DATA = {kind: Dataset.from_dict(columns) for kind, columns in COLUMNS.items()}
# What makes resuming hard: batches in parts of which an epoch has no whole number, and answers used twice.
SETTINGS = {SFT: {}, DPO: {"gradient_accumulation_steps": 2},
            RLVR: {"num_generations": 2, "max_completion_length": 4, "num_iterations": 2, "beta": 0.1}}
CASES = [(SFT, "GPT-NeoX"), (DPO, "GPT-NeoX"), (RLVR, "GPT-NeoX"), (SFT, "Llama")]


def saved(folder, model, words=None):
    torch.manual_seed(0)
    model().save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return Checkpoint(str(folder), tokens=640)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Untrained models with dropout, by name, and "plain", one without."""
    plain = {"plain": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))}
    return {name: saved(tmp_path_factory.mktemp("start") / name, make) for name, make in (MODELS | plain).items()}


def stage(kind, **changes):
    """Eight steps, kept at every second one; an epoch has three, so that it ends within one."""
    settings = SETTINGS[kind] | changes.pop("settings", {})
    return Stage(kind, **{"steps": 8, "every": 2, "batch": 4, "learning_rate": 0.01, "seed": 3, **changes},
                 settings=settings)


def tuned(kind, start, folder, report=lambda step: None, data=None, **changes):
    return tune(start, stage(kind, **changes), DATA[kind] if data is None else data, folder / "hub", folder / "work",
                share_right if kind == RLVR else None, report)


@pytest.fixture(scope="module")
def whole(starts, tmp_path_factory):
    """The checkpoints of a stage that was never stopped, by kind and model."""
    found = {}

    def trained(kind, name):
        if (kind, name) not in found:
            found[kind, name] = tuned(kind, starts[name], tmp_path_factory.mktemp("whole"))
        return found[kind, name]

    return trained


def opened(point):
    return AutoModelForCausalLM.from_pretrained(point.model, revision=point.revision, cache_dir=point.cache_dir).eval()


def weights(point):
    return opened(point).state_dict()


def rows(point):
    """Of the log, without the seconds that a step took."""
    return [{key: value for key, value in row.items() if key != "step_time"} for row in log(point)]


def assert_the_same(found, expected):
    assert [point.step for point in found] == [point.step for point in expected]
    for one, other in zip(found, expected, strict=True):
        one_s, other_s = weights(one), weights(other)
        assert one_s.keys() == other_s.keys() and all(torch.equal(one_s[name], other_s[name]) for name in one_s)
        assert rows(one) == rows(other)


# Interrupted


def killed(function):
    """See that a process kills itself at some moment of a function."""
    process = beside(function)
    process.join(2 * SOON)
    assert process.exitcode == -signal.SIGKILL


def state():
    """Of this process, what a training might change."""
    bars = of_datasets.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
    return generators(), dict(os.environ), torch.get_num_threads(), torch.is_grad_enabled(), warnings.filters[:3], bars


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_a_killed_stage_goes_on_to_the_same_weights_and_log_without_a_word(case, whole, starts, tmp_path, capfd):
    kind, start = case[0], starts[case[1]]
    expected, taken = whole(*case), []
    killed(lambda: tuned(kind, start, tmp_path, lambda step: step == 5 and die()))
    assert [point.step for point in along(expected[0].model, start, tmp_path / "hub")] == [2, 4]
    assert revisions(expected[0].model, str(tmp_path / "hub")) == ["step2", "step4"]
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what pyproject.toml lets pass, a user would see
        found = tuned(kind, start, tmp_path, taken.append)
    assert tuple(capfd.readouterr()) == ("", "") and state() == before
    assert taken == [5, 6, 7, 8]
    assert_the_same(found, expected)
    assert [row["step"] for row in log(found[-1])] == [2, 4, 6, 8]
    assert not torch.equal(*(weights(point)["lm_head.weight"] for point in found[2:]))


def while_saving():
    save = torch.save

    def cut(content, file, *arguments):
        if str(file).endswith("optimizer.pt"):
            with open(file, "wb") as begun:
                begun.write(b"PK")
            die()
        save(content, file, *arguments)

    torch.save = cut


def before_a_checkpoint_is_published():
    posttrain.publish = die


def before_it_is_marked():
    posttrain.write_atomically = die


def while_the_one_before_is_removed():
    remove = shutil.rmtree

    def cut(path, *arguments, **options):
        if os.path.basename(path).startswith("checkpoint-"):
            os.unlink(os.path.join(path, "optimizer.pt"))
            die()
        remove(path, *arguments, **options)

    shutil.rmtree = cut


def before_the_end_is_marked():
    write = posttrain.write_atomically
    posttrain.write_atomically = lambda path, content: die() if path.name == "main" else write(path, content)


def before_what_is_left_over_is_removed():
    remove = shutil.rmtree
    shutil.rmtree = lambda path, **options: die() if "after-sft" in os.path.basename(path) else remove(path, **options)


def test_a_stage_that_is_killed_at_one_bad_moment_after_another_ends_as_if_it_had_not_been(whole, starts, tmp_path):
    start, expected = starts["GPT-NeoX"], whole(SFT, "GPT-NeoX")
    work = tmp_path / "work" / expected[0].model.split("/")[1]
    for moment, left in ((while_saving, []), (before_a_checkpoint_is_published, []), (before_it_is_marked, ["step2"]),
                         (while_the_one_before_is_removed, ["step2", "step4"]),
                         (before_the_end_is_marked, ["step2", "step4", "step6", "step8"]),
                         (before_what_is_left_over_is_removed, ["main", "step2", "step4", "step6", "step8"])):
        killed(lambda moment=moment: moment() or tuned(SFT, start, tmp_path))
        assert sorted(revisions(expected[0].model, str(tmp_path / "hub"))) == left
        if moment is while_the_one_before_is_removed:
            assert (work / LAST).read_text() == "checkpoint-4"
    found = tuned(SFT, start, tmp_path, lambda step: pytest.fail("it had come to its end"))
    assert_the_same(found, expected)
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".lock"]
    assert not scan_cache_dir(tmp_path / "hub").warnings


def test_a_stage_whose_work_was_removed_begins_anew(whole, starts, tmp_path):
    killed(lambda: tuned(SFT, starts["Llama"], tmp_path, lambda step: step == 3 and die()))
    shutil.rmtree(tmp_path / "work")
    taken = []
    found = tuned(SFT, starts["Llama"], tmp_path, taken.append)
    assert taken == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_the_same(found, whole(SFT, "Llama"))


def test_another_process_on_the_same_stage_waits_and_then_finds_it_done(whole, starts, tmp_path):
    begun, here = tmp_path / "begun", tmp_path / "here"

    def wait(step):
        begun.touch()
        until(here.exists)
        time.sleep(0.3)  # in which the other comes to the lock

    child = beside(lambda: tuned(SFT, starts["GPT-NeoX"], tmp_path, wait))
    until(begun.exists)
    here.touch()
    found = tuned(SFT, starts["GPT-NeoX"], tmp_path, lambda step: pytest.fail("it was trained twice"))
    child.join(SOON)
    assert child.exitcode == 0
    assert_the_same(found, whole(SFT, "GPT-NeoX"))


def until(true):
    stop = time.monotonic() + 2 * SOON
    while not true():
        assert time.monotonic() < stop, "waited in vain"
        time.sleep(0.01)


# What is learned from: rows of TRL's log against transformers' own logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("first")


EVERYTHING = {"batch": len(PROMPTS), "steps": 2, "every": 1}  # so that the order of the data does not matter


def log_probabilities(model, answers):
    """Of each answer's tokens and the end, one sequence at a time."""
    words, found = tokenizer(), []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        asked, ids = (words(each)["input_ids"] for each in (prompt, prompt + answer + "<end>"))
        ids = torch.tensor([*asked, *ids[len(asked):]])
        with torch.inference_mode():
            told = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        found.append(told[len(asked) - 1:])
    return found


def test_the_loss_of_sft_is_transformers_cross_entropy_over_completion_and_end_alone(starts, folder):
    first, second = tuned(SFT, starts["plain"], folder, **EVERYTHING)
    for row, model in ((log(first)[0], opened(starts["plain"])), (log(second)[1], opened(first))):
        told = torch.cat(log_probabilities(model, RIGHT))
        assert len(told) == 4 * len(PROMPTS)
        assert row["loss"] == pytest.approx(float(-told.mean()), rel=1e-5)  # float32, in other batches


def test_the_loss_of_dpo_is_the_formula_s_and_the_cross_entropy_of_two_candidates(starts, folder):
    first, second = tuned(DPO, starts["plain"], folder, settings={"gradient_accumulation_steps": 1, "beta": 0.3},
                          **EVERYTHING)
    assert log(first)[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)  # at first, policy and reference are the same
    policy, reference = opened(first), opened(starts["plain"])
    chosen, rejected = (0.3 * torch.stack([torch.stack([told.sum() for told in log_probabilities(model, answers)])
                                           for model in (policy, reference)]).diff(dim=0)[0].neg()
                        for answers in (RIGHT, WRONG))
    row = log(second)[1]
    # float32, in other batches; a loss that was ln 2 again would be 1e-3 away and more
    assert row["loss"] == pytest.approx(float(-logsigmoid(chosen - rejected).mean()), rel=1e-5)
    infonce = cross_entropy(torch.stack([chosen, rejected], 1), torch.zeros(len(PROMPTS), dtype=torch.long))
    assert row["loss"] == pytest.approx(float(infonce), rel=1e-5) and abs(row["loss"] - np.log(2)) > 1e-3
    assert row["rewards/margins"] == pytest.approx(float((chosen - rejected).mean()), rel=1e-3)


def test_the_reward_is_the_share_of_drawn_answers_that_are_right_and_the_next_stage_begins_there(
        starts, folder, monkeypatch):
    taught = tuned(SFT, starts["plain"], folder, batch=10, steps=60, every=60, learning_rate=0.03)[-1]
    drawn, make = [], exactly_right

    def watched(words):
        def reward(completion_ids, answer, **others):
            drawn.extend(zip(completion_ids, answer, strict=True))
            return make(words)(completion_ids=completion_ids, answer=answer, **others)

        return reward

    monkeypatch.setattr(posttrain, "exactly_right", watched)
    answers = {"num_generations": 8, "max_completion_length": 5}
    given = tune(taught, stage(RLVR, batch=80, steps=1, every=1, settings={**answers, "num_iterations": 1}), DATA[RLVR],
                 folder / "hub", folder / "work")[-1]
    right = [ids == [*tokenizer()(answer)["input_ids"], 1] for ids, answer in drawn]
    assert len(right) == 80 and 0 < sum(right) < 80
    assert log(given)[0]["reward"] == pytest.approx(np.mean(right), rel=1e-6)  # a mean in single precision
    assert given.model.startswith("reptrace/plain-after-rlvr-") and given.tokens == taught.tokens == 640


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_reward_that_is_always_the_same_is_warned_of_and_teaches_nothing(value, starts, tmp_path):
    def fixed(completions, **others):
        return [value] * len(completions)

    still = stage(RLVR, steps=2, settings={"beta": 0.0, "num_iterations": 1})
    with pytest.warns(UserWarning, match=rf"up to step 2, all answers .* \(mean reward {value:g}\): there is nothing"):
        found = tune(starts["plain"], still, DATA[RLVR], tmp_path / "hub", tmp_path / "work", fixed)
    before, after = weights(starts["plain"]), weights(found[-1])
    assert all(torch.equal(before[name], after[name]) for name in before)


# What is right


@pytest.fixture(scope="module")
def bytewise():
    return train_tokenizer(["sort 7 12 = 7 12 abc abc"] * 9, 280)


def spelled(words, letters):
    return [token for letter in letters for token in words(letter)["input_ids"]]


@pytest.mark.parametrize(("written", "right"), [
    ("7", 1), (" 7", 0), ("7 ", 0), ("07", 0), ("7.0", 0), ("7 7", 0), ("8 7", 0), ("8, no: 7", 0), ("", 0), ("\n7", 0),
    ("7" * 5000, 0), ("７", 0), (END_OF_TEXT + "7", 0), ("7<|padding|>", 0)])
def test_an_answer_is_right_to_the_letter_and_ended_or_it_is_not(written, right, bytewise):
    ids, end = bytewise(written)["input_ids"], bytewise.eos_token_id
    reward = exactly_right(bytewise)
    asked = {"answer": ["7"], "prompts": ["sort 7 ="], "log_extra": None}
    assert reward(completion_ids=[[*ids, end]], **asked) == [right]
    assert reward(completion_ids=[ids], **asked) == [0]  # without an end
    assert reward(completion_ids=[ids + spelled(bytewise, END_OF_TEXT)], **asked) == [0]  # spelled in letters
    assert reward(completion_ids=[[*ids, end, end]], **asked) == [0]
    assert reward([[*ids, end]], ["7"]) == [right]


def test_other_tokens_of_the_same_text_are_right_and_so_are_an_empty_answer_and_one_given_with_its_end(bytewise):
    reward, end = exactly_right(bytewise), bytewise.eos_token_id
    assert len(bytewise("abc")["input_ids"]) < 3
    assert reward([[*spelled(bytewise, "abc"), end], [end], [*bytewise("7")["input_ids"], end], []],
                  ["abc", "", "7" + END_OF_TEXT, ""], prompts=["sort"] * 4) == [1, 1, 1, 0]


def test_a_first_space_counts_with_a_tokenizer_that_leaves_it_out_when_it_reads_a_text():
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "▁Q": 2, "▁7": 3, "7": 4}, unk_token="<pad>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    assert words.decode([3]) == "7" and words("Q 7")["input_ids"] == [2, 3]
    assert exactly_right(words)([[3, 1], [4, 1], [0, 1]], [" 7"] * 3, prompts=["Q"] * 3) == [1, 0, 0]


# What there is then


def test_revisions_are_opened_and_listed_like_any_other_s_with_the_tokenizer_of_the_start(whole, starts, tmp_path):
    found = whole(RLVR, "GPT-NeoX")
    listed = checkpoints(found[0].model, "step*", found[0].cache_dir)
    assert [(point.revision, point.step) for point in listed] == [(f"step{k}", k) for k in (2, 4, 6, 8)]
    main_weights = weights(replace(found[-1], revision="main"))
    assert all(torch.equal(main_weights[name], value) for name, value in weights(found[-1]).items())
    start, here = folder_of(starts["GPT-NeoX"]), folder_of(found[-1])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        given, kept = (json.loads((folder / name).read_text()) for folder in (start, here))
        assert kept | given == kept and set(kept) - set(given) <= {"is_local", "local_files_only"}  # transformers' own
    words = AutoTokenizer.from_pretrained(found[-1].model, revision="step2", cache_dir=found[-1].cache_dir)
    assert words(PROMPTS)["input_ids"] == tokenizer()(PROMPTS)["input_ids"]
    names = {path.suffix for path in here.iterdir()}
    assert names == {".json", ".safetensors"}  # no optimizer


def test_a_sweep_traces_them(whole, tmp_path):
    found = whole(SFT, "GPT-NeoX")
    texts = [text(np.random.default_rng(k).integers(0, 12, 8)).strip() for k in range(40)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in texts))
    assert main(["trace", "--model", found[0].model, "--revision", "step*", "--cache-dir", found[0].cache_dir, "--text",
                 str(tmp_path / "text.jsonl"), "--max-length", "8", "--min-length", "4", "--sequences", "40", "--ranks",
                 "2", "10", "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.step.tolist() == [2, 4, 6, 8]
    model, words = opened(found[-1]), tokenizer()
    with torch.inference_mode():
        states = torch.stack([model(**words(each, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][
            0, -1] for each in texts])
    assert table.rankme.iloc[-1] == pytest.approx(rankme_by_numpy(states), rel=1e-4)  # float32 of 16 dimensions


def test_a_stage_is_named_by_all_that_makes_it_and_by_the_files_it_begins_from(starts, tmp_path):
    start = starts["plain"]
    base = stage(RLVR).repository(start, DATA[RLVR])
    copy = Checkpoint(str(shutil.copytree(start.model, tmp_path / "a" / "plain")))
    assert stage(RLVR).repository(copy, DATA[RLVR]) == base  # the same files elsewhere
    (tmp_path / "a/plain/trainer_state.json").write_text("{}")
    assert stage(RLVR).repository(copy, DATA[RLVR]) == base
    changes = ({}, {"steps": 6}, {"every": 8}, {"batch": 8}, {"learning_rate": 0.02}, {"seed": 4},
               {"settings": {"beta": 0.0}})
    names = {stage(RLVR, **change).repository(start, DATA[RLVR]) for change in changes}
    names |= {stage(RLVR).repository(start, data) for data in (
        DATA[RLVR].select(range(9)), DATA[RLVR].add_column("level", [1] * 10),
        Dataset.from_dict(COLUMNS[RLVR] | {"answer": RIGHT[::-1]}))}
    names.add(stage(RLVR).repository(start, DATA[RLVR], share_right))
    assert len(names) == 11 and base in names
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        changed = Checkpoint(str(shutil.copytree(start.model, tmp_path / name / "plain")))
        with open(tmp_path / name / "plain" / name, "ab") as file:
            file.write(b" ")
        names.add(stage(RLVR).repository(changed, DATA[RLVR]))
    assert len(names) == 14


@pytest.mark.parametrize("name", ["my model (é)", "a..b--c", "日本", "x" * 200, "-checkpoint-500"])
def test_a_folder_of_any_name_gives_a_repository_that_a_hub_would_allow(name, starts, tmp_path):
    copy = Checkpoint(str(shutil.copytree(starts["plain"].model, tmp_path / name)))
    found = stage(SFT).repository(copy, DATA[SFT])
    validate_repo_id(found)
    assert found.startswith("reptrace/") and "-after-sft-" in found


def test_a_stage_of_a_repository_trained_here_keeps_its_name_wherever_that_lies():
    start = Checkpoint("reptrace/neox-d32-seed0-73b67011-averaged", "step100", cache_dir="a")
    found = {stage(SFT).repository(replace(start, **change), DATA[SFT]) for change in ({}, {"cache_dir": "b"})}
    other = stage(SFT).repository(replace(start, revision="step50"), DATA[SFT])
    assert len(found) == 1 and other not in found and other.startswith(f"{start.model}-after-sft-")


# What can't be done


@pytest.mark.parametrize(("kind", "change", "error", "message"), [
    ("PPO", {}, ValueError, "SFT, DPO, RLVR, got 'PPO'"), (SFT, {"steps": 5}, ValueError, "5 is none of 2"),
    (SFT, {"steps": 0}, ValueError, "steps must be 1 or more"), (SFT, {"every": 0}, ValueError, "every must be 1"),
    (SFT, {"batch": -1}, ValueError, "batch must be 1"), (SFT, {"steps": 6.0}, TypeError, "steps must be a whole"),
    (SFT, {"seed": -1}, ValueError, "seed must be 0"), (SFT, {"learning_rate": 0}, ValueError, "must be positive"),
    (SFT, {"learning_rate": np.nan}, ValueError, "must be positive"),
    (SFT, {"settings": {"dtype": torch.float32}}, ValueError, "plain values"),
    (SFT, {"settings": {"max_steps": 3}}, ValueError, "max_steps can't be"),
    (SFT, {"settings": {"save_only_model": True}}, ValueError, "save_only_model can't be"),
    (SFT, {"settings": {"logging_steps": 4}}, ValueError, "would span a checkpoint"),
    (SFT, {"settings": {"logging_steps": 0.5}}, TypeError, "logging_steps must be a whole"),
    (DPO, {"settings": {"gradient_accumulation_steps": 3}}, ValueError, "no 3 equal parts"),
    (DPO, {"settings": {"sync_ref_model": True}}, ValueError, "no checkpoint holds"),
    (RLVR, {"batch": 3}, ValueError, "3 is no multiple of num_generations, 2"),
    (RLVR, {"settings": {"num_generations": 1}}, ValueError, "two answers or more"),
    (RLVR, {"settings": {"num_iterations": 3}}, ValueError, "used for 3 steps"),
    (RLVR, {"settings": {"steps_per_generation": 2}}, ValueError, "used for 4 steps"),
    (RLVR, {"settings": {"generation_batch_size": 12}}, ValueError, "used for 6 steps")])
def test_impossible_stages_are_refused(kind, change, error, message):
    with pytest.raises(error, match=message):
        stage(kind, **change) if kind in SETTINGS else Stage(kind, 2, 2, 2, 0.1)


def test_what_is_not_set_is_taken_to_be_trl_s_own_default():
    plain, defaults = Stage(RLVR, 2, 2, 8, 0.1), {each.name: each.default for each in fields(GRPOConfig)}
    assert (plain.group, plain.written) == (defaults["num_generations"], defaults["max_completion_length"])
    assert (plain.parts, plain.drawn, plain.used) == (1, 8, 1) and defaults["num_iterations"] == 1


def test_settings_are_copied(starts):
    mine = {"beta": 0.2}
    made = Stage(DPO, 2, 2, 2, 0.1, settings=mine)
    mine["beta"] = 0.3
    assert made.settings == {"beta": 0.2}


@pytest.mark.parametrize(("kind", "columns", "message"), [
    (SFT, {"completion": None}, "needs the columns prompt, completion; completion is missing among prompt"),
    (DPO, {"rejected": None}, "rejected is missing among prompt, chosen"),
    (RLVR, {"answer": None}, "answer is missing"),
    (SFT, {"prompt": [], "completion": []}, "no rows"),
    (SFT, {"completion": [*RIGHT[:9], None]}, "completion of row 9 is no text but NoneType"),
    (RLVR, {"prompt": [[{"role": "user", "content": each}] for each in PROMPTS]}, "row 0 is no text but list"),
    (RLVR, {"prompt": [*PROMPTS[:4], "", *PROMPTS[5:]]}, "the prompt of row 4 has no tokens"),
    (DPO, {"rejected": [*WRONG[:7], *RIGHT[7:]]}, "equal in 3 of 10 rows, the first is row 7"),
    (DPO, {"rejected": [*WRONG[:9], f"{RIGHT[9]}<end>"]}, "equal in 1 of 10 rows, the first is row 9"),
    (SFT, {"completion": [*RIGHT[:9], text([1] * 27)]}, "row 9 has 33 tokens: it does not fit .* context of 32"),
    (DPO, {"chosen": [text([1] * 40), *RIGHT[1:]]}, "row 0 has 46 tokens"),
    (RLVR, {"prompt": [*PROMPTS[:9], "sort" + text([1] * 27) + " ="]}, "row 9 has 29 tokens, and with 4 more it does"),
    (RLVR, {"prompt": PROMPTS[:1], "answer": RIGHT[:1]}, "drawn to 2 prompts at a time, and there are 1 rows")])
def test_data_that_teaches_nothing_is_refused_and_leaves_nothing(kind, columns, message, starts, tmp_path):
    given = {key: value for key, value in {**COLUMNS[kind], **columns}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        tuned(kind, starts["plain"], tmp_path, data=Dataset.from_dict(given))
    assert not (tmp_path / "hub").exists() and not list((tmp_path / "work").glob("plain*/"))


def test_rows_that_just_fit_are_taken_and_no_other_column_counts(starts, tmp_path):
    """Of a column "text" TRL would take its end token, in place of the completion's."""
    longest = Dataset.from_dict({"prompt": PROMPTS, "completion": [*RIGHT[:9], text([1] * 26)]})  # 32 with the end
    found = [tuned(SFT, starts["plain"], tmp_path, data=data, steps=2, batch=10)
             for data in (longest, longest.add_column("text", RIGHT))]
    assert found[0] != found[1] and len(found[0]) == 1
    assert_the_same(*found)


def test_other_things_than_data_and_a_reward_where_none_is_earned_are_refused(starts, tmp_path):
    with pytest.raises(TypeError, match=r"must be a datasets.Dataset, got list"):
        tuned(SFT, starts["plain"], tmp_path, data=[{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError, match="a reward belongs to RLVR: SFT earns none"):
        tune(starts["plain"], stage(SFT), DATA[SFT], tmp_path / "hub", tmp_path / "work", share_right)


def words_with(**tokens):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, **tokens)


def ending():
    """A tokenizer that ends each text."""
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    return words


def without(name):
    return lambda folder: (folder / name).unlink()


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("make", "words", "spoil", "error", "message"), [
    (None, words_with(pad_token="<pad>"), None, ValueError, "no end token"),
    (None, words_with(eos_token="<end>"), None, ValueError, "no pad token"),
    (None, words_with(eos_token="<end>", pad_token="<end>"), None, ValueError, "pads with its end token"),
    (None, ending(), None, ValueError, "puts its end token after every text"),
    (lambda: GPTNeoXModel(GPTNeoXConfig(**SIZES)), None, None, ValueError, "saved without its LM head"),
    (lambda: BertModel(BertConfig(**SIZES)), None, None, ValueError, "LM head|can't write"),
    (None, None, cut_short, ValueError, "damaged|incomplete"),
    (None, None, without("model.safetensors"), FileNotFoundError, "can't begin from .* has no weights"),
    (None, None, without("config.json"), OSError, "config"),
    (None, None, without("tokenizer.json"), Exception, "tokenizer")], ids=[
    "no end", "no pad", "pad is end", "ends by itself", "no head", "an encoder", "cut short", "no weights", "no config",
    "no tokenizer"])
def test_a_model_that_can_t_begin_a_stage_is_refused(make, words, spoil, error, message, tmp_path):
    start = saved(tmp_path / "start", make or (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))), words)
    if spoil:
        spoil(tmp_path / "start")
    with pytest.raises(error, match=message):
        tuned(RLVR, start, tmp_path)
    assert not (tmp_path / "hub").exists()


def test_a_start_that_is_not_there_is_told_with_what_there_is(whole, tmp_path):
    there = whole(SFT, "GPT-NeoX")[0]
    with pytest.raises(FileNotFoundError, match=r"no .*@step3 in .*; of that model there is step2, .*, step8, main"):
        folder_of(replace(there, revision="step3"))
    with pytest.raises(FileNotFoundError, match="there is nothing"):
        folder_of(Checkpoint("some/model", "step3", cache_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="plain folder and has no revisions"):
        folder_of(Checkpoint(str(tmp_path), "step3"))


def test_a_model_in_a_folder_of_a_repository_is_found(hub_cache):
    cache = hub_cache("some/model", {"main": {"step-20/config.json": b"{}"}})
    found = folder_of(Checkpoint("some/model", "main:step-20", cache_dir=str(cache)))
    assert [path.name for path in found.iterdir()] == ["config.json"]
    assert found.parent.parent.parent == repository_folder(cache, "some/model")
