"""The command line as a user meets it: exit codes, one-line messages, files left behind. Trusted: the files."""

import json
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from limits import run
from test_loading import house
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace import measure
from reptrace.__main__ import _in_words, main
from reptrace.measures.phases import find_phases
from reptrace.measures.registry import REGISTRY
from reptrace.models import batches
from reptrace.models.loading import load, load_tokenizer
from reptrace.texts.corpora import train_tokenizer
from reptrace.training.pretrain import publish


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, a run of three checkpoints in a folder, and the same run as branches of a repository in a cache."""
    root = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["red", "green", "blue", "grey", "."], 30)) for _ in range(50)]
    (root / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = train_tokenizer(texts, 270)
    for step in (0, 8, 64):
        torch.manual_seed(step)
        config = GPTNeoXConfig(vocab_size=270, hidden_size=16, num_hidden_layers=2, num_attention_heads=1,
                               intermediate_size=32, max_position_embeddings=32)
        checkpoint = root / "run" / f"checkpoint-{step}"
        GPTNeoXForCausalLM(config).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        publish(checkpoint, "me/model", f"step{step}", root / "hub")
    return root


def trace(folder, out, *options):
    return main(["trace", "--text", str(folder / "text.jsonl"), "--max-length", "16", "--min-length", "4",
                 "--sequences", "40", "--batch-size", "8", "--ranks", "2", "10", "--out", str(out), *options])


def test_one_checkpoint_gives_a_record_and_a_line(folder, tmp_path, capsys):
    assert trace(folder, tmp_path, "--model", str(folder / "run" / "checkpoint-8")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    (record,) = (tmp_path / "records").glob("*.parquet")
    row = pd.read_parquet(record).iloc[0]
    assert f"RankMe {row.rankme:.2f}" in line and "ranks 2..10" in line and "M = 40, d = 16" in line
    assert json.loads(row.identity)["batch_size"] == 8


def test_a_whole_run_in_a_folder_is_one_command_with_a_table_and_a_picture(folder, tmp_path, capsys):
    assert trace(folder, tmp_path, "--model", str(folder / "run"), "--tokens-per-step", "100") == 0
    assert pd.read_csv(tmp_path / "table.csv").tokens.tolist() == [0, 800, 6400]
    picture = (tmp_path / "trajectory.svg").read_text()
    assert "training tokens" in picture and "RankMe" in picture
    *rows, phases = capsys.readouterr().out.splitlines()
    assert len(rows) == 3 and phases.startswith("phases (RankMe): ")


@pytest.mark.parametrize(("values", "axis", "line"), [
    ([20, 5, 10, 9, 25, 20], "tokens", "collapse x 0.25 to 5.00 at 1,000 tokens, expansion x 5 to 25.00 at 4,000 "
     "tokens, compression x 0.8; 1 wiggle, the largest x 0.9"),
    ([20, 5, 10, 8, 15, 25], "step", "collapse x 0.25 to 5.00 at step 1,000, expansion x 5, compression not seen; "
     "1 wiggle, the largest x 0.8"),
    ([20, 5, 24, 16, 18, 12], "step", "collapse x 0.25 to 5.00 at step 1,000, expansion x 4.8 to 24.00 at step 2,000, "
     "compression x 0.5; 1 wiggle, the largest x 1.12"),
    ([20] * 6, "tokens", "collapse not seen, expansion not seen, compression not seen; 0 wiggles")])
def test_the_phases_of_a_run_are_one_line(values, axis, line):
    assert _in_words(find_phases(1000 * np.arange(6), values, np.full(6, 0.01)), axis) == line


def test_branches_of_a_repository_give_the_same_numbers_as_the_folders(folder, tmp_path):
    assert trace(folder, tmp_path / "a", "--model", str(folder / "run")) == 0
    assert trace(folder, tmp_path / "b", "--model", "me/model", "--revision", "step*", "--cache-dir",
                 str(folder / "hub"), "--layers", "all") == 0
    plain, branches = (pd.read_csv(tmp_path / name / "table.csv") for name in "ab")
    assert branches[branches.layer == "final"].rankme.tolist() == plain.rankme.tolist()  # the same weights and code
    assert branches.layer.tolist() == ["0", "1", "2", "final"] * 3


@pytest.mark.parametrize("options, message", [
    (["--model", "no/such"], "cannot open model 'no/such'"),
    (["--model", "me/model", "--cache-dir", "HUB", "--revision", "step9"], "It has step0, step8, step64"),
    (["--model", "me/model", "--cache-dir", "HUB", "--revision", "ste*9"], "no revision that fits 'ste*9'"),
    (["--model", "RUN/checkpoint-8", "--revision", "step8"], "plain folder and has no revisions"),
    (["--model", "RUN/checkpoint-8", "--text", "none.txt"], "no text file 'none.txt'"),
    (["--model", "RUN/checkpoint-8", "--sequences", "51"], "'text.jsonl' has 50"),
    (["--model", "RUN/checkpoint-8", "--min-length", "16", "--max-length", "16", "--text", "SHORT"], "has 0 among 1"),
    (["--model", "RUN/checkpoint-8", "--text", "EMPTY"], "holds no documents"),
    (["--model", "RUN/checkpoint-8", "--layers", "7"], "layers must be"),
    (["--model", "RUN/checkpoint-8", "--out", "EMPTY/sub"], "cannot write to folder")])
def test_what_a_user_can_mend_is_one_clear_line(folder, tmp_path, capsys, options, message):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "short.txt").write_text("red green")
    names = {"HUB": folder / "hub", "RUN": folder / "run", "EMPTY": tmp_path / "empty.txt",
             "SHORT": tmp_path / "short.txt"}
    for name, path in names.items():
        options = [option.replace(name, str(path)) for option in options]
    assert trace(folder, tmp_path / "out", *options) == 1
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
    assert "Traceback" not in printed.err


def test_a_checkpoint_that_cannot_be_read_is_a_line_and_the_others_are_measured(folder, tmp_path, capsys):
    run = tmp_path / "run"
    for step in (1, 2):
        checkpoint = run / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for path in (folder / "run" / "checkpoint-8").iterdir():
            (checkpoint / path.name).write_bytes(path.read_bytes())
    weights = run / "checkpoint-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert trace(folder, tmp_path / "out", "--model", str(run)) == 1
    failed, measured = capsys.readouterr().out.splitlines()
    assert "checkpoint-1: failed: " in failed and "cannot be read" in failed
    assert "RankMe" in measured


def test_what_one_measure_fails_at_is_a_line_beside_the_others_numbers_and_no_gap_of_the_picture(
        folder, tmp_path, capsys):
    few = [*("--model", str(folder / "run")), "--sequences", "10"]
    assert trace(folder, tmp_path / "plain", *few) == 0
    plain = capsys.readouterr().out.splitlines()
    assert trace(folder, tmp_path / "out", *few, "--measures", "rankme", "alpha", "readout") == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[:6:2] == plain[:3] and lines[6:] == plain[3:] and "no phases" not in printed.err  # the line of phases
    assert all("failed: ValueError: readout: readout compares" in line for line in lines[1:6:2])
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.status.tolist() == ["measured", "failed"] * 3
    pictures = [(tmp_path / name / "trajectory.svg").read_text() for name in ("plain", "out")]
    assert len({picture.count("<use ") for picture in pictures}) == 1  # marks: no crosses


def test_measures_without_errors_have_their_numbers_on_the_line_and_helper_columns_have_not(folder, tmp_path, capsys):
    one = ["--model", str(folder / "run" / "checkpoint-8"), "--measures"]
    assert trace(folder, tmp_path, *one, "rankme", "weights") == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = pd.read_csv(tmp_path / "table.csv").iloc[0]
    shown = dict(re.findall(r"(\w+) ([-.\de+]+), ", line.split("centred), ")[1]))
    assert set(shown) == set(REGISTRY["weights"].returned)
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(row[list(shown)].to_dict(), rel=5e-3)
    assert "influence" not in line and len(line.replace(str(folder), "")) < 420


def test_a_dry_run_of_a_trace_says_what_would_be_measured_and_does_nothing(folder, tmp_path, capsys):
    run = ["--model", str(folder / "run"), "--sequences", "40"]
    asked = [*run, "--measures", "rankme", "anisotropy", "cka", "--layers", "1", "final", "--dry-run"]

    def said():
        lines = capsys.readouterr().out.splitlines()
        first, second = (dict(zip(*(line.split() for line in lines[k : k + 2]), strict=True)) for k in (0, 3))
        costs = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[4:7]}
        return first, list(second), costs, "\n".join(lines)

    assert trace(folder, tmp_path / "out", *asked, "--gpu", "A100-40GB") == 0
    row, columns, costs, text = said()
    assert not (tmp_path / "out").exists() and "A100-40GB" in text and "The text is not read" in text
    assert (row["model"], row["checkpoints"], row["chosen"], row["done"]) == (str(folder / "run"), "3", "3", "0")
    assert columns == ["measure", "petaflop", "extra_passes", "gb_states"]
    # 3 checkpoints at 2 layers of 40 sequences, 16 wide: seven pairs of matrices, two products of M x d x d for each
    assert costs["cka"] == pytest.approx([3 * 2 * 7 * 4 * 40 * 16**2 / 1e15, 1, 3 * 2 * 40 * 16 * 4 / 1e9], rel=5e-3)
    assert costs["rankme"] == [0, 0, 0]
    assert costs["anisotropy"][0] == pytest.approx(3 * 2 * 8 * 40 * 16 / 1e15, rel=5e-3)
    assert trace(folder, tmp_path / "out", "--model", str(folder / "run" / "checkpoint-8"), *asked[2:-1]) == 0
    capsys.readouterr()
    assert trace(folder, tmp_path / "out", *asked) == 0
    assert said()[0]["done"] == "1"


@pytest.mark.parametrize(("options", "message"), [
    (["--model", "RUN", "--gpu", "abacus"], "there is no GPU 'abacus'"),
    (["--model", "RUN", "--max-length", "64"], "the context of RUN/checkpoint-64 is 32"),
    (["--model", "no/such"], "cannot open model 'no/such'"),
    (["--model", "RUN", "--measures", "intrinsic_dimension"], "intrinsic_dimension needs 100 sequences at least")])
def test_a_dry_run_refuses_what_the_trace_itself_would(folder, tmp_path, capsys, options, message):
    options, message = ([each.replace("RUN", str(folder / "run")) for each in text] for text in (options, [message]))
    assert trace(folder, tmp_path / "out", *options, "--dry-run") == 1
    assert message[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_dry_run_says_what_a_configuration_leaves_unknown(folder, own_run, tmp_path, capsys):
    for path in own_run.glob("*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "no such"}))  # no model can be built
    assert trace(folder, tmp_path / "out", "--model", str(own_run), "--dry-run", "--measures", "readout") == 0
    printed = capsys.readouterr().out
    assert "not known" in printed.splitlines()[1] and "not known" not in printed.splitlines()[4]
    assert f"Not known from the configuration of {own_run}: how many weights it has" in printed
    assert "its width" not in printed


def test_help_says_it_all_at_once_without_loading_torch():
    started = time.perf_counter()
    for words in ([], ["trace"], ["report"]):
        done = run([sys.executable, "-X", "importtime", "-m", "reptrace", *words, "--help"])
        assert done.returncode == 0 and "torch" not in done.stderr
    for option in ("--model", "--revision", "--text", "--layers", "--out"):
        assert option in run([sys.executable, "-m", "reptrace", "trace", "--help"]).stdout
    assert time.perf_counter() - started < 60  # not a speed test: a hang would be a network look-up


def test_a_missing_parameters_file_is_named(capsys):
    assert main(["report", "--params", "none.yaml"]) == 1
    assert "no parameters file 'none.yaml'" in capsys.readouterr().err


# Runs as they lie on people's disks


@pytest.fixture
def own_run(folder, tmp_path):
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(folder / "run", tmp_path / "my_run"))


@pytest.fixture(scope="module")
def whole_run(folder, tmp_path_factory):
    """The table of the run as it is, by model."""
    trace(folder, out := tmp_path_factory.mktemp("whole"), "--model", str(folder / "run"))
    return pd.read_csv(out / "table.csv").set_index("model")


def without_a_tokenizer(checkpoint):
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()


def with_half_a_tokenizer(checkpoint):
    text = (checkpoint / "tokenizer.json").read_text()
    (checkpoint / "tokenizer.json").write_text(text[: len(text) // 2])


def with_half_a_configuration(checkpoint):
    (checkpoint / "config.json").write_text('{"model_type": "gpt_')


def emptied(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize(("spoil", "broken"), [
    (without_a_tokenizer, 1), (with_half_a_tokenizer, 1), (with_half_a_configuration, 1), (emptied, 1),
    (with_half_a_tokenizer, 2)])
def test_a_run_whose_last_checkpoints_are_broken_is_measured_with_the_nearest_ones_tokenizer(
        folder, own_run, whole_run, tmp_path, capsys, spoil, broken):
    whole = ["checkpoint-0", "checkpoint-8", "checkpoint-64"][: 3 - broken]
    for name in ["checkpoint-64", "checkpoint-8"][:broken]:
        spoil(own_run / name)
    trace(folder, tmp_path / "out", "--model", str(own_run))
    printed = capsys.readouterr()
    assert f"the tokenizer is that of {own_run / whole[-1]}" in printed.err
    found = pd.read_csv(tmp_path / "out" / "table.csv").set_index("model")
    for name in whole:
        assert found.loc[str(own_run / name), "rankme"] == whole_run.loc[str(folder / "run" / name), "rankme"]


def test_without_any_tokenizer_it_is_said_how_to_name_one_and_one_that_is_named_is_taken(
        folder, own_run, tmp_path, capsys):
    for checkpoint in own_run.iterdir():
        without_a_tokenizer(checkpoint)
    assert trace(folder, tmp_path / "out", "--model", str(own_run)) == 1
    assert re.search("cannot open a tokenizer of .*: it has none. Name one .*--tokenizer", capsys.readouterr().err)
    other = str(folder / "run" / "checkpoint-0")
    assert trace(folder, tmp_path / "out", "--model", str(own_run), "--tokenizer", other) == 0
    assert pd.read_csv(tmp_path / "out" / "table.csv").status.tolist() == ["measured"] * 3


def test_checkpoints_without_a_step_are_measured_and_named_and_the_picture_is_drawn_of_the_others(
        folder, own_run, tmp_path, capsys):
    for name in ("checkpoint-best", "checkpoint-final"):
        shutil.copytree(own_run / "checkpoint-8", own_run / name)
    assert trace(folder, tmp_path / "out", "--model", str(own_run)) == 0
    assert "without a step, so not in the picture: checkpoint-best, checkpoint-final" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table.step.isna().sum() == 2 and table.rankme.notna().all()
    assert "RankMe" in (tmp_path / "out" / "trajectory.svg").read_text()


def test_the_model_that_a_trainer_saves_beside_its_checkpoints_is_measured_without_a_step(folder, own_run, tmp_path,
                                                                                         capsys):
    shutil.copytree(own_run / "checkpoint-64", own_run, dirs_exist_ok=True)
    shutil.copytree(own_run / "checkpoint-8", own_run / "merged")
    assert trace(folder, tmp_path / "out", "--model", str(own_run)) == 0
    assert "without a step, so not in the picture: my_run, merged" in (err := capsys.readouterr().err), err
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    by_name = table.assign(name=table.model.map(lambda path: Path(path).name)).set_index("name").rankme
    assert by_name["my_run"] == by_name["checkpoint-64"] and by_name["merged"] == by_name["checkpoint-8"]


def test_of_two_checkpoints_with_one_step_no_phases_are_made_and_it_is_said(folder, own_run, tmp_path, capsys):
    shutil.copytree(own_run / "checkpoint-8", own_run / "ckpt-8")
    assert trace(folder, tmp_path / "out", "--model", str(own_run)) == 0
    said = capsys.readouterr()
    assert "several checkpoints state the same step: no phases are looked for" in said.err
    assert "phases (RankMe)" not in said.out


@pytest.mark.parametrize("name", ["step_{}", "step{}", "pythia-step{}", "ckpt-{}", "iter_{:07d}", "epoch=1-step={}"])
def test_folders_whose_names_state_a_step_otherwise_are_a_run_too(folder, own_run, tmp_path, name):
    for step in (0, 8, 64):
        (own_run / f"checkpoint-{step}").rename(own_run / name.format(step))
    (own_run / "logs").mkdir()
    assert trace(folder, tmp_path / "out", "--model", str(own_run)) == 0
    assert pd.read_csv(tmp_path / "out" / "table.csv").step.tolist() == [0, 8, 64]


@pytest.mark.parametrize(("name", "says"), [
    ("ROOT/my_rum", "there is no folder 'ROOT/my_rum'. Did you mean ROOT/my_run?"),
    ("ROOT/my_run/checkpoint-65", "Did you mean ROOT/my_run/checkpoint-64"),
    ("ROOT/my_rum/checkpoint-8", "Did you mean ROOT/my_run?"),
    ("./nothing/here", "there is no folder './nothing/here'"), ("../nothing", "there is no folder '../nothing'"),
    ("~/no/such/model", "there is no folder '~/no/such/model'"), ("a/b/c", "there is no folder 'a/b/c'"),
    ("me/", "there is no folder 'me/'"), ("~nosuchuser/x", "there is no folder '~nosuchuser/x'"),
    ("models\\llama", "there is no folder 'models"), ("", "got an empty name"), (" ", "got an empty name"),
    ("ROOT/my_run/checkpoint-8/config.json", "is a file; a model is the folder that holds it"),
])
@pytest.mark.parametrize("command", ["trace", "tasks", "measure", "load", "load_tokenizer"])
def test_a_path_that_is_not_there_is_told_from_a_repository(folder, own_run, tmp_path, capsys, name, says, command):
    name, says = (text.replace("ROOT", str(tmp_path)) for text in (name, says))
    if command in ("trace", "tasks"):
        options = ["--tasks", "cloze"] if command == "tasks" else ["--text", str(folder / "text.jsonl")]
        assert main([command, "--model", name, *options, "--out", str(tmp_path / "out")]) == 1
        assert says in capsys.readouterr().err
    else:
        call = {"measure": lambda name: measure(name, ["one", "two"]), "load": load, "load_tokenizer": load_tokenizer}
        with pytest.raises((FileNotFoundError, ValueError), match=re.escape(says)):
            call[command](name)


def test_a_home_folder_is_found(folder, own_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trace(folder, tmp_path / "out", "--model", "~/my_run/checkpoint-8") == 0


def test_own_code_is_allowed_by_name_on_the_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own, mark = house(tmp_path / "own" / "checkpoint-1", tmp_path / "was here"), tmp_path / "was here"
    given = ["--model", str(own.parent), "--tokenizer", str(folder / "run" / "checkpoint-8")]
    shutil.copytree(own, own.with_name("checkpoint-2"))
    texts = ["a b", "c d", "e f g"]
    tokenizer = load_tokenizer(str(folder / "run" / "checkpoint-8"))
    assert trace(folder, tmp_path / "out", *given) == 1
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        measure(str(own), texts, tokenizer)
    assert main(["tasks", *given, "--tasks", "cloze", "--out", str(tmp_path / "out")]) == 1
    assert f"--trust {own}" in capsys.readouterr().out and not mark.exists()
    # ids of the tokenizer beyond the model's vocabulary are another matter
    assert trace(folder, tmp_path / "out", *given, "--trust", str(own.parent)) == 1
    assert "the model's vocabulary has 97" in capsys.readouterr().out and mark.exists()


def test_a_package_that_is_not_there_is_named(folder, own_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    last = own_run / "checkpoint-64"
    (last / "own.py").write_text("import no_such_package\nclass Own:\n    pass\n")
    (last / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}))
    without = own_run / "checkpoint-0", own_run / "checkpoint-8"
    for checkpoint in without:
        shutil.rmtree(checkpoint)
    assert trace(folder, tmp_path / "out", "--model", str(own_run), "--trust", str(last)) == 1
    assert "needs a package that is not installed" in (err := capsys.readouterr().err) and "no_such_package" in err


def test_progress_within_a_checkpoint_is_shown_with_sequences_tokens_a_second_and_the_time_left(
        folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batches, "tqdm", partial(tqdm, mininterval=0))  # otherwise ten times a second
    assert trace(folder, tmp_path / "out", "--model", str(folder / "run" / "checkpoint-8")) == 0
    shown = capsys.readouterr().err
    assert re.search(r"hidden states: 100%, 40 of 40 sequences .*\[\d\d:\d\d<\d\d:\d\d, +[\d.]+k?tok/s\]", shown)
    assert re.search(r"measuring: 100%, 1 of 1 checkpoints", shown)
