"""From texts to RankMe: whatever a tokenizer stores, and whatever form the texts come in.

Trusted: each text tokenized whole and alone by transformers, the states of its first tokens by transformers' own
unbatched output, and RankMe of their covariance by numpy.
"""

import copy
import gzip
import itertools
import json

import architectures
import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import reptrace
from reptrace.__main__ import main
from reptrace.models.hidden_states import extract
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.texts.corpora import train_tokenizer

LENGTH = 12


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    words = ["ice", "water", "steam", "heat", "cold", ".", "1.50", "NA", '"so"', "a,b", "\t", "\n\n"]
    return [f"{' '.join(rng.choice(words, 40))}{' the end' * 20}" for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 270)


def tiny(vocabulary):
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=2, num_attention_heads=1,
                           intermediate_size=32, max_position_embeddings=520, initializer_range=0.2)
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny(len(tokenizer))


def rankme_by_numpy(model, tokenizer, texts, length=LENGTH):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:length] for text in texts]
    with torch.no_grad():
        rows = [model(torch.tensor([each]), output_hidden_states=True).hidden_states[-1][0, -1].double().numpy()
                for each in ids]
    values = np.linalg.eigvalsh(np.cov(np.array(rows).T, bias=True))
    p = values[values > 1e-9 * values.max()] / values.sum()  # a layer norm takes away one direction
    return np.exp(-(p * np.log(p)).sum())


def store_all(tokenizer):
    """A copy that stores what another tokenizer's files may: all of it wrong here."""
    own = copy.deepcopy(tokenizer)
    own.truncation_side = own.padding_side = "left"
    own.model_max_length = 5
    own.backend_tokenizer.enable_truncation(4, direction="left")
    own.backend_tokenizer.enable_padding(direction="left", length=30, pad_id=1, pad_token="<|padding|>")
    return own


# float32 states of batches differ from those of single sequences by 1e-6 relative, RankMe by as much
CLOSE = {"rel": 1e-4}


@pytest.mark.parametrize("form", [list, tuple, iter, pd.Series, np.array], ids=str)
def test_measure_takes_the_first_tokens_of_each_text_whatever_the_tokenizer_stores(model, tokenizer, texts, form):
    found = reptrace.measure(model, form(texts), store_all(tokenizer), max_length=LENGTH, ranks=(2, 8))
    assert found.rankme == pytest.approx(rankme_by_numpy(model, tokenizer, texts), **CLOSE)
    last = [tokenizer.decode(tokenizer(text)["input_ids"][-LENGTH:]) for text in texts]
    assert found.rankme != pytest.approx(rankme_by_numpy(model, tokenizer, last), rel=1e-2)  # not of the last ones


def test_tokens_that_stand_for_many_characters_fill_the_whole_length():
    vocabulary = {"<unk>": 0} | {"".join(six): k for k, six in enumerate(itertools.product("ACGT", repeat=6), 1)}
    kmers = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    kmers.pre_tokenizer = pre_tokenizers.Split(Regex(".{1,6}"), "isolated")
    kmers, model = PreTrainedTokenizerFast(tokenizer_object=kmers), tiny(len(vocabulary))
    rng = np.random.default_rng(1)
    genomes = ["".join(rng.choice(list("ACGT"), 6 * 515)) for _ in range(12)]
    found = reptrace.measure(model, genomes, kmers, max_length=512, min_length=500, ranks=(2, 8))
    assert found.rankme == pytest.approx(rankme_by_numpy(model, kmers, genomes, 512), **CLOSE)


@pytest.mark.parametrize(("given", "options", "error", "told"), [
    ("one text", {}, TypeError, r"texts must be a list of strings.*text_file\(path\)"),
    ({"a": "b"}, {}, TypeError, "texts must be a list of strings"), (["a", None], {}, TypeError, r"texts\[1\] is None"),
    ([[1, 2], [3]], {}, TypeError, r"texts\[0\] is list.*last_token_states"),
    (["a", "b\ud800"], {}, ValueError, r"texts\[1\] holds half of a surrogate pair"),
    (["a b", "c d"], {"max_length": 4, "min_length": 5}, ValueError, "cut at 4 tokens and have 5 at least"),
    (["a b", "c d"], {"max_length": 0}, ValueError, "cut at 0 tokens"),
    (["a b"], {}, ValueError, r"^1 of 1 different texts have at least 1 tokens, .* more: bring more text\.$"),
    (["a b", "a"], {"min_length": 2}, ValueError, "bring more text, or lower min_length")])
def test_texts_that_cannot_be_measured_are_refused(model, tokenizer, given, options, error, told):
    with pytest.raises(error, match=told):
        reptrace.measure(model, given, tokenizer, **options)


def test_a_single_layer_or_trusted_repository_counts_as_a_list_of_one():
    assert Settings("final") == Settings(("final",)) and Opening(trust="me/mine") == Opening(trust=("me/mine",))
    assert Settings(3).identity["layers"] == [3] and Settings("all").identity["layers"] == "all"
    assert "me" not in Opening(trust="me/mine").trust
    with pytest.raises(TypeError, match="expected repositories to trust, by name"):
        Opening(trust=True)


# The command line


@pytest.fixture(scope="module")
def home(model, tokenizer, tmp_path_factory):
    """A folder with the model, and its tokenizer with all that it should not obey."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    store_all(tokenizer).save_pretrained(folder)
    return folder


def traced(home, out, text, *options):
    code = main(["trace", "--model", str(home), "--text", str(text), "--max-length", str(LENGTH), "--min-length", "4",
                 "--sequences", "60", "--ranks", "2", "8", "--out", str(out), *options])
    return code or pd.read_csv(out / "table.csv").rankme.item()


def as_lines(texts):
    return "".join(f"{json.dumps({'id': 1, 'body': text})}\n" for text in texts).encode()


WRITTEN = {"a.jsonl": as_lines, "a.JSONL.gz": lambda texts: gzip.compress(as_lines(texts)),
           "a.json": lambda texts: json.dumps([{"body": text} for text in texts]).encode(),
           "a.csv": lambda texts: pd.DataFrame({"id": 1, "body": texts}).to_csv(index=False).encode(),
           "a.tsv": lambda texts: pd.DataFrame({"body": texts, "id": 1}).to_csv(index=False, sep="\t").encode(),
           "a.parquet": lambda texts: pd.DataFrame({"id": 1, "body": texts}).to_parquet()}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_of_a_text_gives_the_same_numbers(home, model, tokenizer, texts, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(WRITTEN[name]([*texts, "", " \n"]))
    found = traced(home, tmp_path / "out", tmp_path / name, "--field", "body")
    assert found == pytest.approx(rankme_by_numpy(model, tokenizer, texts), **CLOSE)
    assert f"{name}: 2 rows without text were passed over, 60 were read" in capsys.readouterr().err
    assert traced(home, tmp_path / "out", tmp_path / name) == 1
    assert "--field" in capsys.readouterr().err


def test_a_folder_whose_files_were_replaced_is_measured_anew(home, model, tokenizer, texts, tmp_path):
    data, halves = tmp_path / "data", (texts, [text[::-1] for text in texts])
    data.mkdir()
    for half in halves:
        (data / "train.jsonl").write_bytes(as_lines(half))
        found = traced(home, tmp_path / "out", f"hub:{data}", "--field", "body")
        assert found == pytest.approx(rankme_by_numpy(model, tokenizer, half), **CLOSE)
    assert rankme_by_numpy(model, tokenizer, halves[0]) != pytest.approx(rankme_by_numpy(model, tokenizer, halves[1]))


@pytest.mark.parametrize(("name", "content", "told"), [
    ("a.xml", "<a>text</a>", "a.xml cannot be read: the suffix '.xml' is not known. Readable are .txt and .md"),
    ("a.txt", "a b c d e f", "in a plain text file blank lines separate the documents"),
    ("a.csv", "text,id\na b,1\nc d e,f,2\n", "a.csv, row 2: the first line names 2 columns, the row has 3 cells"),
    ("a.jsonl", '{"text": "a b"}\n{"text": ["c"]}\n', 'a.jsonl, line 2: expected a JSON object with a field "text"'),
    ("a.jsonl", '{"text": "a b"}\n{"text": "\\ud800"}\n', "line 2 holds half of a surrogate pair"),
    ("", "", "that is a folder")])
def test_a_text_that_cannot_be_read_is_one_clear_line(home, tmp_path, capsys, name, content, told):
    if name:
        (tmp_path / name).write_text(content)
    assert traced(home, tmp_path / "out", tmp_path / name) == 1
    printed = capsys.readouterr().err
    assert told in printed and "Traceback" not in printed


# The same by Python and by the command line


@pytest.fixture(scope="module")
def lines():
    """Texts of many lengths, on either side of 16 tokens, where a small LongRoPE changes its factors."""
    rng = np.random.default_rng(2)
    words = ["ice", "water", "steam", "heat", "cold", "melts", "boils", "."]
    return [" ".join(rng.choice(words, n)) for n in rng.integers(2, 60, 50)]


@pytest.fixture(scope="module")
def small_tokenizer(lines):
    return train_tokenizer(lines, architectures.VOCABULARY - 1)


@pytest.mark.parametrize(("name", "batch_size"), [
    *((name, "auto") for name in architectures.ALL), ("Phi-3 with LongRoPE", "1"), ("Mixtral", "1"), ("Mamba", "1")])
def test_python_and_the_command_line_agree_to_the_last_digit_and_with_numpy(
        name, batch_size, lines, small_tokenizer, tmp_path):
    model, text = architectures.build(name), tmp_path / "text.jsonl"
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    text.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    limits = {"max_length": 40, "min_length": 3}
    kept = [ids for line in lines if len(ids := small_tokenizer(line)["input_ids"][:40]) >= 3]
    assert main(["trace", "--model", str(folder), "--text", str(text), "--max-length", "40", "--min-length", "3",
                 "--sequences", str(len(kept)), "--batch-size", batch_size, "--ranks", "3", "12", "--out",
                 str(tmp_path / "out")]) == 0
    (record,) = (tmp_path / "out" / "records").glob("*.parquet")
    row = pd.read_parquet(record).iloc[0]
    size = batch_size if batch_size == "auto" else int(batch_size)
    found = reptrace.measure(str(folder), lines[::-1], batch_size=size, ranks=(3, 12), **limits)  # in any order
    assert found.eigenvalues.tolist() == row.eigenvalues.tolist() and found.samples == row.sequences == len(kept)
    assert (found.rankme, found.rankme_stderr) == (row.rankme, row.rankme_stderr)
    assert (found.alpha.alpha, found.alpha_stderr) == (row.alpha, row.alpha_stderr)
    states = architectures.received_by_the_head(model, kept).double().numpy()
    expected = np.linalg.eigvalsh(np.cov(states.T, bias=True))[::-1]
    # float32 states of batches differ from those of single sequences by 1e-6 relative
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-4, atol=1e-5 * expected[0])


def test_blank_and_short_texts_are_passed_over_alike_by_python_and_the_command_line(
        home, tokenizer, texts, tmp_path, capsys):
    short = ["ice", "heat"]
    given = ["", *texts[:30], " \n\t", *short, *texts[30:], "\u2003", "ice"]  # an em space is white space, too
    assert all(0 < len(tokenizer(text)["input_ids"]) < 4 for text in short)
    (tmp_path / "a.jsonl").write_bytes(as_lines(given))
    assert traced(home, tmp_path / "out", tmp_path / "a.jsonl", "--field", "body") > 0
    assert "a.jsonl: 3 rows without text were passed over, 63 were read" in capsys.readouterr().err
    row = pd.read_parquet(next((tmp_path / "out" / "records").glob("*.parquet"))).iloc[0]
    found = reptrace.measure(str(home), given, min_length=4, max_length=LENGTH, batch_size=16, ranks=(2, 8))
    assert found.eigenvalues.tolist() == row.eigenvalues.tolist() and found.samples == row.sequences == 60
    assert (found.rankme, found.rankme_stderr) == (row.rankme, row.rankme_stderr)
    printed = capsys.readouterr()
    assert "passed over: 3 blank texts, 1 that stand there before, 2 of fewer than 4 tokens; 60 were" in printed.err
    assert printed.out == ""


def test_nothing_is_said_of_texts_that_were_passed_over_where_none_was(model, tokenizer, texts, capsys):
    reptrace.measure(model, texts, tokenizer, max_length=LENGTH, ranks=(2, 8))
    assert capsys.readouterr().err == ""
    reptrace.measure(model, [*texts, ""], tokenizer, max_length=LENGTH, ranks=(2, 8))
    assert capsys.readouterr().err == ("passed over: 1 blank texts, 0 that stand there before, 0 of fewer than 1 "
                                       "tokens; 60 were measured\n")


def test_a_text_that_stands_there_twice_counts_once(model, tokenizer, texts):
    once, twice = (reptrace.measure(model, given, tokenizer, max_length=LENGTH, ranks=(2, 8))
                   for given in (texts, [*texts, *texts[:20]]))
    assert twice.samples == once.samples and twice.eigenvalues.tolist() == once.eigenvalues.tolist()


def test_it_is_said_when_a_few_texts_make_up_the_variance(model, tokenizer, texts, monkeypatch):
    def with_massive(*arguments):
        found = extract(*arguments)
        found.features["final"][:1] *= 100
        return found

    monkeypatch.setattr("reptrace.models.hidden_states.extract", with_massive)
    with pytest.warns(UserWarning, match=r"RankMe is that of a few sequences \(1 of 60 make up half of the variance"):
        reptrace.measure(model, texts, tokenizer, max_length=LENGTH, ranks=(2, 8))
