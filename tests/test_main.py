"""The command line as a user meets it: exit codes, one-line messages, files left behind. Trusted: the files."""

import json
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from limits import run
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace.__main__ import main
from reptrace.corpora import train_tokenizer
from reptrace.pretrain import publish


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


def test_a_whole_run_in_a_folder_is_one_command_with_a_table_and_a_picture(folder, tmp_path):
    assert trace(folder, tmp_path, "--model", str(folder / "run"), "--tokens-per-step", "100") == 0
    assert pd.read_csv(tmp_path / "table.csv").tokens.tolist() == [0, 800, 6400]
    picture = (tmp_path / "trajectory.svg").read_text()
    assert "training tokens" in picture and "RankMe" in picture


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
