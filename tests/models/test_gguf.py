"""Models out of GGUF files.

Trusted: the package gguf, which writes the files, reads them and turns their blocks back into numbers; the models that
were written, with their matrices quantized and turned back by it; and transformers' own Llama 3 positions.
"""

import json
import re
import shutil
import sys

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_writer import HEADS, KEY_HEADS, TEXTS, gguf_name, tiny_llama, written
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers

import reptrace
from reptrace.__main__ import main
from reptrace.checkpoints import gguf_files
from reptrace.checkpoints.gguf_files import GGUFError
from reptrace.checkpoints.listing import checkpoints
from reptrace.models import gguf_models
from reptrace.models.loading import load, load_tokenizer
from reptrace.records.store import Store
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.sweeps.sweep import trace
from reptrace.sweeps.tokenizers import tokenizer_of
from reptrace.texts.corpora import Corpus, probe, train_tokenizer

MIXTURE = {"token_embd.weight": Type.Q8_0, "output.weight": Type.F16, "blk.0.attn_q.weight": Type.Q4_1,
           "blk.0.ffn_down.weight": Type.Q5_0, "blk.1.attn_k.weight": Type.Q5_1, "blk.1.ffn_up.weight": Type.BF16}
IDS = torch.arange(120).reshape(3, 40)


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture
def file(tmp_path, llama):
    """A model in 4 bits with its tokenizer."""
    return written(tmp_path / "tiny.gguf", *llama, Type.Q4_0)


def quantized(model, kind):
    """The model with its matrices as gguf makes them out of what it quantized; llama.cpp's order of rows changes
    nothing, since blocks lie within a row."""
    weights = {}
    for key, weight in model.state_dict().items():
        one = kind.get(gguf_name(key), Type.F32) if isinstance(kind, dict) else kind
        one = Type.F32 if weight.ndim == 1 else one
        weights[key] = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), one), one).reshape(weight.shape))
    other = type(model)(model.config).eval()
    other.load_state_dict(weights)
    return other


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q5_0, Type.Q4_1, MIXTURE],
                         ids=lambda kind: getattr(kind, "name", "mixture"))
def test_tensors_are_those_that_gguf_makes_of_the_file(tmp_path, llama, kind):
    path = written(tmp_path / "tiny.gguf", *llama, kind)
    opened, stored = load(str(path), device="cpu"), {each.name: each for each in gguf.GGUFReader(path).tensors}
    for key, weight in opened.state_dict().items():
        each = stored.pop(gguf_name(key))
        expected = torch.from_numpy(gguf.dequantize(each.data, each.tensor_type).reshape(weight.shape).copy())
        heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(key.split(".")[-2])
        if heads:  # pairs of neighbours become two halves again
            expected = expected.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        assert weight.dtype == torch.float32 and torch.equal(weight, expected), key
    assert not stored and not opened.training
    # the same products of the same numbers
    torch.testing.assert_close(logits(opened), logits(quantized(llama[0], kind)), rtol=0, atol=0)
    if kind == Type.F32:
        torch.testing.assert_close(logits(opened), logits(llama[0]), rtol=0, atol=0)


def test_an_embedding_that_is_the_head_too_stands_in_the_file_once(tmp_path):
    model, tokenizer = tiny_llama(tie_word_embeddings=True)
    opened = load(str(written(tmp_path / "tiny.gguf", model, tokenizer)), device="cpu", head=True)
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=0)


def test_a_dtype_is_obeyed(file):
    assert {each.dtype for each in load(str(file), device="cpu", dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_the_header_is_what_gguf_reads_of_it(tmp_path, llama):
    path = written(tmp_path / "tiny.gguf", *llama, MIXTURE, facts={"general.alignment": 64, "general.name": "tiny"})
    reader, found = gguf.GGUFReader(path), gguf_files.header(path)
    assert found.facts == {name: len(field.data) if field.types[0] == gguf.GGUFValueType.ARRAY else field.contents()
                           for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert [(each.name, each.shape, each.type, each.offset, each.bytes) for each in found.tensors] == [
        (each.name, tuple(each.shape.tolist())[::-1], each.tensor_type.name, each.data_offset, each.n_bytes)
        for each in reader.tensors]


def test_positions_of_llama_3_are_stretched_as_the_file_says(tmp_path):
    stretched = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    (plain, tokenizer), (model, _) = tiny_llama(), tiny_llama(rope_parameters=stretched)
    factors = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    assert len(factors.unique()) > 2
    opened = load(str(written(tmp_path / "tiny.gguf", model, tokenizer, further={"rope_freqs.weight": factors})),
                  device="cpu")
    # a frequency is divided by a quotient of its own: two roundings, times the place of a token
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=1e-4)
    assert (logits(plain) - logits(model)).abs().max() > 0.1


def test_a_record_says_how_the_weights_are_quantized(tmp_path, llama):
    path = written(tmp_path / "tiny.gguf", *llama, MIXTURE)
    tensors = pd.DataFrame([{"type": each.tensor_type.name, "weights": each.n_elements, "bytes": each.n_bytes}
                            for each in gguf.GGUFReader(path).tensors])
    shares = tensors.groupby("type").weights.sum() / tensors.weights.sum()
    table = traced(path, tmp_path / "records")
    assert set(table.quantization.item().removeprefix("GGUF: ").split(", ")) == {
        f"{name} {100 * share:.3g} %" for name, share in shares.items()}
    assert table.quantization.item().startswith("GGUF: F32")  # the largest part first
    assert table.bits_per_weight.item() == pytest.approx(8 * tensors.bytes.sum() / tensors.weights.sum())
    item = {"passage": "one", "choices": ["two", "five"], "answer": 0}
    (tmp_path / "cloze.jsonl").write_text(json.dumps(item) + "\n")
    rows = evaluate_checkpoints(checkpoints(str(path)), ["loss", "cloze"], Store(tmp_path / "records"), 8,
                                data={"cloze": tmp_path / "cloze.jsonl"}, probe=texts_of(path), progress=False)
    assert {"loss", "cloze"} == set(rows.task) and set(rows.status) == {"measured"}  # read by the file's tokenizer
    assert set(rows.quantization) == {table.quantization.item()}


def texts_of(path):
    return probe(Corpus("texts", TEXTS), tokenizer_of(checkpoints(str(path)), 16), 40, 16, 2)


def traced(path, store):
    return trace(checkpoints(str(path)), texts_of(path), Store(store), ranks=(2, 8), progress=False)


def test_a_record_is_known_by_the_files_content_wherever_it_lies(tmp_path, llama, file, monkeypatch):
    first = traced(file, tmp_path / "records")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(file, tmp_path / "elsewhere")
    with monkeypatch.context() as patched:
        patched.setattr("reptrace.models.loading.load", lambda *a, **k: pytest.fail("measured again"))
        assert traced(moved, tmp_path / "records").rankme.item() == first.rankme.item()
    model, tokenizer = llama
    other = written(tmp_path / "tiny.gguf", quantized(model, Type.Q4_1), tokenizer, Type.Q4_0)
    assert other.stat().st_size == (tmp_path / "elsewhere" / "tiny.gguf").stat().st_size
    assert traced(other, tmp_path / "records").rankme.item() != first.rankme.item()


def test_what_lies_beside_a_file_changes_nothing(tmp_path, llama, file):
    ids, expected = llama[1](TEXTS[:5]).input_ids, logits(load(str(file), device="cpu"))
    assert load_tokenizer(str(file))(TEXTS[:5]).input_ids == ids
    train_tokenizer(["something else entirely"] * 9, 280).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    save_file({"model.norm.weight": torch.zeros(64)}, tmp_path / "model.safetensors")
    assert load_tokenizer(str(file))(TEXTS[:5]).input_ids == ids
    assert torch.equal(logits(load(str(file), device="cpu")), expected)


@pytest.mark.parametrize("named", ["file", "folder"])
def test_the_command_line_and_python_take_a_file_or_the_folder_with_it(tmp_path, file, capsys, named):
    (tmp_path / "only").mkdir()
    model = str(shutil.copy(file, tmp_path / "only" / "model-step100.gguf") if named == "file" else tmp_path / "only")
    if named == "folder":
        shutil.copy(file, tmp_path / "only" / "model-step100.gguf")
    text = tmp_path / "texts.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in TEXTS))
    out = tmp_path / "out"
    assert main(["trace", "--model", model, "--text", str(text), "--max-length", "16", "--min-length", "2",
                 "--sequences", "40", "--ranks", "2", "8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    row = pd.read_csv(out / "table.csv").iloc[0]
    assert f"RankMe {row.rankme:.2f}" in said and "GGUF: Q4_0" in said and row.step == 100
    found = reptrace.measure(model, TEXTS, max_length=16, ranks=(2, 8))
    assert found.rankme == pytest.approx(row.rankme, rel=1e-12)


def cut(share):
    def spoil(path, llama):
        content = written(path, *llama, Type.Q4_0).read_bytes()
        path.write_bytes(content[: round(share * len(content))])

    return spoil


def unknown_type(path, llama):
    content = written(path, *llama).read_bytes()
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    path.write_bytes(content[:at] + (99).to_bytes(4, "little") + content[at + 4 :])


def lacking(path, llama):
    state = {key: weight for key, weight in llama[0].state_dict().items() if "layers.1.mlp.up_proj" not in key}
    fake = type("Fake", (), {"config": llama[0].config, "state_dict": lambda self: state})()
    written(path, fake, llama[1])


SPOILT = {
    "cut within its header": (cut(0.02), r"the header of '.*tiny.gguf' cannot be read: .* bytes, is cut short or dama"),
    "cut within its tensors": (cut(0.6), r"tiny.gguf' is cut short: .* end at byte [\d,]+, and it has [\d,]+\. Fetch"),
    "empty": (cut(0), "is no GGUF file: it begins with b''"),
    "a page": (lambda path, llama: path.write_text("<html>not found"), "is no GGUF file: it begins with b'<htm', a GG"),
    "an old version": (lambda path, llama: path.write_bytes(b"GGUF\1\0\0\0" + bytes(64)), "of version 1; read are"),
    "an alignment to 0 bytes": (lambda path, llama: written(path, *llama, facts={"general.alignment": 0}),
                                r"the header of '.*tiny.gguf' cannot be read: .* or damaged \(.* by zero"),
    "no facts": (lambda path, llama: path.write_bytes(b"GGUF\3\0\0\0" + bytes(64)), "not say of which architecture"),
    "another architecture": (lambda path, llama: written(path, *llama, architecture="gptneox"),
                             r"architecture 'gptneox', which transformers .* does not open .* gemma2, .* llama, .*"),
    "an unknown type": (unknown_type, r"stores token_embd.weight in a type that .* gguf does not know \(number 99"),
    "one part of several": (lambda path, llama: written(path, *llama, facts={"split.count": 3, "split.no": 1}),
                            r"tiny.gguf' is part 2 of 3: merge them \(llama-gguf-split"),
    "tensors without a place": (lambda path, llama: written(path, *llama, further={"blk.0.attn_q.bias": np.ones(64)}),
                                r"holds [\d,]+ weights, LlamaForCausalLM has .* It may be blk\.0\.attn_q\.bias\."),
    "tensors that are missing": (lacking, r"lack 1 tensors \(model.layers.1.mlp.up_proj.weight, "),
    "stretched positions": (lambda path, llama: written(path, *llama, facts={"llama.rope.scaling.type": "yarn"}),
                            r"stretches its positions \(yarn\), which transformers leaves out"),
    "stretched by a factor alone": (lambda path, llama: written(path, *llama, facts={"llama.rope.scaling.factor": 4}),
                                    r"stretches its positions \(linear\), which transformers leaves out"),
    "stretched in an older file": (lambda path, llama: written(path, *llama, facts={"llama.rope.scale_linear": 2}),
                                   r"stretches its positions \(linear\), which transformers leaves out"),
    "factors of other positions": (lambda path, llama: written(path, *llama, further={"rope_freqs.weight": [1., 2.]}),
                                   "divides its rotary frequencies .* has none of that number"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_cannot_be_one_model_is_an_error_that_says_why(tmp_path, llama, case):
    spoil, says = SPOILT[case]
    spoil(tmp_path / "tiny.gguf", llama)
    with pytest.raises(ValueError, match=says):
        load(str(tmp_path / "tiny.gguf"), device="cpu")


def test_a_header_cut_anywhere_is_an_error_of_ours(tmp_path, llama):
    content = written(tmp_path / "tiny.gguf", *llama).read_bytes()
    for end in np.random.default_rng(0).integers(4, len(content) // 9, 20):
        (tmp_path / "cut.gguf").write_bytes(content[:end])
        with pytest.raises(GGUFError, match="cut short"):
            gguf_files.header(tmp_path / "cut.gguf")


def test_a_spoilt_file_is_a_gap_in_a_table_with_the_reason(tmp_path, llama, file):
    texts = texts_of(file)
    file.write_bytes(file.read_bytes()[:-1000])
    table = trace(checkpoints(str(file)), texts, Store(tmp_path / "records"), progress=False)
    assert table.status.item() == "failed" and "is cut short: by its header" in table.reason.item()


def test_a_file_that_is_written_anew_while_it_is_measured_is_a_gap(tmp_path, llama, file, monkeypatch):
    from reptrace.models import hidden_states

    texts, original = texts_of(file), hidden_states.extract

    def slow(*arguments, **options):
        written(file, *llama, Type.Q4_1)
        return original(*arguments, **options)

    monkeypatch.setattr(hidden_states, "extract", slow)
    table = trace(checkpoints(str(file)), texts, Store(tmp_path / "records"), progress=False)
    assert "were written anew while it was measured" in table.reason.item()


def test_a_folder_with_several_and_a_revision_of_a_file_are_errors(tmp_path, file):
    shutil.copy(file, tmp_path / "other.gguf")
    for call in (lambda: load(str(tmp_path)), lambda: checkpoints(str(tmp_path))):
        with pytest.raises(GGUFError, match=r"holds 2 GGUF files \(other.gguf, tiny.gguf\): name the one"):
            call()
    with pytest.raises(ValueError, match=re.escape("is a file and has no revisions: leave revision='step1'")):
        checkpoints(str(file), "step1")


def test_a_file_without_a_tokenizer_says_so(tmp_path, llama):
    path = written(tmp_path / "tiny.gguf", llama[0])
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer in it: name one .*--tokenizer"):
        load_tokenizer(str(path))


def test_a_tokenizer_that_takes_digits_one_by_one_splits_before_them(tmp_path, llama):
    model, tokenizer = llama
    own, text = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), "two  12 three   345\n  6"
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own.pre_tokenizer])
    path = written(tmp_path / "tiny.gguf", model, tokenizer, rule="smollm")
    assert load_tokenizer(str(path))(text).input_ids == own.encode(text).ids != tokenizer(text).input_ids


def test_a_tokenizer_that_splits_by_an_unknown_rule_is_refused(tmp_path, llama):
    path = written(tmp_path / "tiny.gguf", *llama, rule="deepseek-llm")
    with pytest.raises(GGUFError, match=r"splits texts by the rule 'deepseek-llm', which transformers .*--tokenizer"):
        load_tokenizer(str(path))


def test_a_missing_package_is_named(tmp_path, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    gguf_files._header.cache_clear()
    with pytest.raises(ImportError, match=r"read by the package gguf, which is not installed .*: pip install gguf"):
        load(str(file))


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0"])
def test_weights_that_pass_through_blocks_are_those_of_the_file(tmp_path, llama, kind):
    path = written(tmp_path / "tiny.gguf", *llama, Type[kind])
    model, _ = tiny_llama()
    found = gguf_models.quantize(model, kind)
    torch.testing.assert_close(logits(model), logits(load(str(path), device="cpu")), rtol=0, atol=0)
    assert found["bits_per_weight"] == pytest.approx(gguf_files.header(path).quantization["bits_per_weight"])
    before, after = ([weight.flatten() for weight in each.state_dict().values() if weight.ndim > 1]
                     for each in (llama[0], model))
    moved = torch.linalg.norm(torch.cat(after) - torch.cat(before)) / torch.linalg.norm(torch.cat(before))
    assert found["weight_error"] == pytest.approx(moved.item(), rel=1e-5)  # sums in float32


def test_rows_that_are_no_whole_blocks_cannot_be_quantized():
    with pytest.raises(ValueError, match=r"rows of weight have 24 weights, no multiple of the 32 .* Q4_0 holds"):
        gguf_models.quantize(torch.nn.Linear(24, 3), "Q4_0")
