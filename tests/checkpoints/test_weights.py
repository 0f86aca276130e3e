"""Which files a model's numbers depend on, and whether all that is in them was taken.

Trusted: transformers, opening the folder after one of its files was changed: what then opens otherwise, or not at all,
is what it reads; its own states of each sequence alone, and numpy, for the numbers of a record; and dequantization
written out with numpy.
"""

import json
import os
import shutil

import architectures
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from standin_hub import tiny_tokenizer
from test_loading import house
from test_sweep import VOCABULARY, eigenvalues_by_numpy, probe, save_model  # noqa: F401  a fixture
from transformers import AutoModel, AutoModelForCausalLM, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from reptrace.checkpoints import hub as library
from reptrace.checkpoints.listing import Checkpoint, checkpoints
from reptrace.checkpoints.weights import WeightsError, fingerprint, stamp, weight_files, weight_paths
from reptrace.models.hidden_states import extract
from reptrace.models.loading import load, load_tokenizer
from reptrace.records.store import Store
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.sweeps.sweep import sweep, trace
from reptrace.tasks import evaluation
from reptrace.texts import corpora

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def in_parts(folder, names, suffix="safetensors", index=INDEX):
    """Take a folder's weights apart into files of these names, with an index."""
    state = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    parts = {name: {key: state[key] for key in list(state)[k :: len(names)]} for k, name in enumerate(names)}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"}) if suffix == "safetensors" else torch.save(part, folder / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def rewritten(path):
    """Other weights in the same file."""
    bins = path.suffix == ".bin"
    state = torch.load(path) if bins else load_file(path)
    changed = {key: tensor + 0.05 * torch.randn_like(tensor) for key, tensor in state.items()}
    torch.save(changed, path) if bins else save_file(changed, path, {"format": "pt"})


def plain(folder):
    return folder


def odd_names(folder):
    return in_parts(folder, ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"])


def bloom(folder):
    return in_parts(folder, ["model_00001-of-00002.safetensors", "model_00002-of-00002.safetensors"])


def in_a_subfolder(folder):
    (folder / "parts").mkdir()
    return in_parts(folder, ["parts/a.safetensors", "parts/b.safetensors"])


def bins(folder):
    return in_parts(folder, ["one.bin", "two.bin"], "bin", "pytorch_model.bin.index.json")


def named_in_the_configuration(folder):
    shutil.copy(folder / WHOLE, folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    return folder


LAYOUTS = [plain, odd_names, bloom, in_a_subfolder, bins, named_in_the_configuration]


@pytest.fixture
def folder(tmp_path):
    """A model with more beside it that is not opened."""
    folder = save_model(tmp_path / "checkpoint-1", 0)
    (folder / "optimizer.pt").write_bytes(b"0")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_found_are_those_that_transformers_opens(layout, folder):
    layout(folder)
    save_file({"x": torch.zeros(1)}, folder / "other.safetensors", {"format": "pt"})
    torch.save({"x": torch.zeros(1)}, folder / "training_args.bin")
    found = weight_paths(folder)
    # copies: transformers maps files into memory, so that tensors change with them
    before = {key: tensor.clone() for key, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()}
    for path in [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]:
        kept = path.read_bytes()
        rewritten(path)
        after = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert any(not torch.equal(after[key], before[key]) for key in before) == (path in found), path.name
        path.write_bytes(kept)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_record_is_not_reused_once_any_file_behind_it_was_written_anew(layout, folder, probe, tmp_path):
    layout(folder)
    store, points = Store(tmp_path / "records"), checkpoints(str(folder))
    for changed in [None, *weight_paths(folder)]:
        if changed:
            rewritten(changed)
        table = trace(points, probe, store, ranks=(2, 10), progress=False)
        expected = eigenvalues_by_numpy(folder, probe.sequences)
        # float32 forward passes in other batches differ by 1e-6 relative to the largest eigenvalue
        np.testing.assert_allclose(table.eigenvalues[0], expected, atol=1e-5 * expected[0])


def test_a_configuration_for_newer_versions_counts(folder):
    """transformers reads the one that the plain file names for its version."""
    before = fingerprint(folder), stamp(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.4.0.0.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))
    (folder / "config.json").write_text(json.dumps(config | {"configuration_files": ["config.4.0.0.json"]}))
    named = fingerprint(folder)
    (folder / "config.4.0.0.json").write_text(json.dumps(config | {"layer_norm_eps": 0.25}))
    assert AutoModel.from_pretrained(folder).config.layer_norm_eps == 0.25
    assert len({*before[:1], named, fingerprint(folder)}) == 3


def in_place(path, content):
    with open(path, "r+b") as file:
        file.write(content)


def renamed(path, content):
    path.with_name("new").write_bytes(content)
    path.with_name("new").rename(path)


@pytest.mark.parametrize("write", [in_place, renamed])
def test_weights_written_anew_show_though_their_size_and_time_are_the_same(write, folder):
    path = folder / WHOLE
    times, before = path.stat(), stamp(folder)
    rewritten(path)
    write(path, path.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    assert stamp(folder) != before
    assert stamp(folder) == stamp(folder)


def test_parts_in_a_folder_that_is_a_link_are_the_models(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "parts").symlink_to(tmp_path / "elsewhere")
    in_parts(folder, ["parts/a.safetensors", "parts/b.safetensors"])
    before = fingerprint(folder), stamp(folder)
    rewritten(folder / "parts/a.safetensors")
    assert fingerprint(folder) != before[0] and stamp(folder) != before[1]


def test_git_lfs_pointers_are_no_weights(folder):
    (folder / WHOLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for opener in (weight_paths, fingerprint, lambda folder: load(str(folder))):
        with pytest.raises(WeightsError, match=r"Git LFS's pointer .*git lfs pull"):
            opener(folder)


def test_another_runs_checkpoint_of_the_same_name_and_configuration_has_its_own_record(probe, tmp_path):
    store = Store(tmp_path / "records")
    for run in ("one", "two"):
        folder = odd_names(save_model(tmp_path / run / "checkpoint-500", len(run) + (run == "two")))
        table = trace(checkpoints(str(folder.parent)), probe, store, ranks=(2, 10), progress=False)
        expected = eigenvalues_by_numpy(folder, probe.sequences)
        np.testing.assert_allclose(table.eigenvalues[0], expected, atol=1e-5 * expected[0])  # float32, as above


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loss_is_not_reused_once_the_weights_were_written_anew(layout, folder, probe, tmp_path):
    layout(folder)
    for changed in (None, weight_paths(folder)[-1]):
        if changed:
            rewritten(changed)
        table = evaluate_checkpoints([Checkpoint(str(folder))], ["loss"], Store(tmp_path / "records"), 8, probe=probe,
                                     progress=False)
        model = GPTNeoXForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            sums = [model(torch.tensor([s]), labels=torch.tensor([s])).loss.item() * (len(s) - 1)
                    for s in probe.sequences]
        tokens = sum(len(s) - 1 for s in probe.sequences)
        assert table.value[0] == pytest.approx(sum(sums) / tokens, rel=1e-5)  # float32, in batches


def test_a_folders_own_code_counts_where_it_may_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = house(tmp_path / "house", tmp_path / "was here")
    before = fingerprint(own, code=True), fingerprint(own), stamp(own, code=True)
    (own / "house.py").write_text((own / "house.py").read_text() + "\n# another\n")
    assert fingerprint(own, code=True) != before[0] and stamp(own, code=True) != before[2]
    assert fingerprint(own) == before[1]  # where it may not run it decides nothing


def test_code_changed_between_two_calls_is_measured_anew(probe, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = house(tmp_path / "house", tmp_path / "was here")
    store, options = Store(tmp_path / "records"), {"ranks": (2, 10), "progress": False, "trust": [str(own)]}
    sequences = [[token % 97 for token in sequence] for sequence in probe.sequences]
    small = type(probe)("small", sequences, 20, 3)
    first = trace(checkpoints(str(own)), small, store, **options)
    (own / "house.py").write_text((own / "house.py").read_text().replace("class HouseModel(LlamaModel):", """
class HouseModel(LlamaModel):
    def __init__(self, config):
        super().__init__(config)
        self.norm.variance_epsilon = 1.0
"""))
    again = trace(checkpoints(str(own)), small, store, **options)
    model = AutoModel.from_pretrained(own, trust_remote_code=True)
    assert model.norm.variance_epsilon == 1.0
    with torch.no_grad():
        rows = np.array([model(input_ids=torch.tensor([s])).last_hidden_state[0, -1].numpy() for s in sequences])
    expected = np.linalg.eigvalsh(np.cov(rows.astype(float).T, bias=True))[::-1]
    np.testing.assert_allclose(again.eigenvalues[0], expected, atol=1e-5 * expected[0])  # float32, as above
    assert again.rankme[0] != first.rankme[0]


@pytest.mark.parametrize("moment", ["reptrace.models.loading.load", "reptrace.models.hidden_states.extract"])
def test_weights_written_anew_while_a_checkpoint_is_measured_are_a_gap(moment, folder, probe, tmp_path,
                                                                       monkeypatch):
    original = load if moment.endswith("load") else extract

    def slow(*arguments, **options):
        rewritten(folder / WHOLE)
        return original(*arguments, **options)

    monkeypatch.setattr(moment, slow)
    table = trace(checkpoints(str(folder)), probe, Store(tmp_path / "records"), ranks=(2, 10), progress=False)
    assert table.status[0] == "failed" and "written anew while it was measured" in table.reason[0]


def test_weights_written_anew_while_a_loss_is_taken_are_a_gap(folder, probe, tmp_path, monkeypatch):
    def slow(*arguments, **options):
        rewritten(folder / WHOLE)
        return tasks_loss(*arguments, **options)

    tasks_loss = evaluation.loss
    monkeypatch.setattr("reptrace.tasks.evaluation.loss", slow)
    table = evaluate_checkpoints([Checkpoint(str(folder))], ["loss"], Store(tmp_path / "records"), 8, probe=probe,
                                 progress=False)
    assert table.status[0] == "failed" and "written anew while it was measured" in table.reason[0]


def test_a_tokenizer_written_anew_while_a_task_runs_is_a_gap(folder, probe, tmp_path, monkeypatch):
    for name, content in tiny_tokenizer().items():
        (folder / name).write_bytes(content)

    def slow(*arguments, **options):
        (folder / "tokenizer_config.json").write_text("{}")
        return [evaluation.loss(arguments[0], probe.sequences, 8)]

    monkeypatch.setattr("reptrace.tasks.evaluation.evaluate", slow)
    data = {"cloze": tmp_path / "items.jsonl"}
    data["cloze"].write_text('{"passage": "one", "choices": ["two", "three"], "answer": 0}\n')
    table = evaluate_checkpoints([Checkpoint(str(folder))], ["cloze"], Store(tmp_path / "records"), 8, data=data,
                                 progress=False)
    assert table.status[0] == "failed" and "tokenizer's files in" in table.reason[0]


@pytest.mark.parametrize("layout", [odd_names, bloom, in_a_subfolder, bins])
def test_on_the_hub_such_a_repository_gives_what_the_folder_gives(layout, folder, hub, tmp_path):
    layout(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    commit = hub.put("me/odd", "step1", files | tiny_tokenizer())
    assert library.files("me/odd", commit).weight_names == {str(p.relative_to(folder)) for p in weight_paths(folder)}
    (tmp_path / "suite.yaml").write_text('odd: {repository: me/odd, branch: "step{step}"}')
    (tmp_path / "text.txt").write_text("\n\n".join(f"{k} one two three {k * k} four {k % 7} five" for k in range(60)))
    table = sweep("odd", corpora.ProbeSpec(tmp_path / "text.txt", 60, 16, 2), tmp_path / "out",
                  suite_files=[tmp_path / "suite.yaml"], ranks=(2, 10), progress=False)
    assert table.status.tolist() == ["measured"]
    for name, content in tiny_tokenizer().items():
        (folder / name).write_bytes(content)
    text = corpora.open_text(str(tmp_path / "text.txt"))
    sequences = corpora.probe(text, load_tokenizer(str(folder)), 60, 16, 2).sequences
    expected = eigenvalues_by_numpy(folder, sequences)
    np.testing.assert_allclose(table.eigenvalues[0], expected, atol=1e-5 * expected[0])  # float32, as above


# What cannot be opened as one plain model


@pytest.mark.parametrize(("names", "says"), [
    (["config.json", "adapter_config.json", "adapter_model.safetensors"], "adapter.*merge"),
    (["config.json", WHOLE, "adapter_config.json"], "adapter.*merge"),
    (["config.json", ".metadata", "__0_0.distcp"], "distributed format.*save_pretrained"),
    (["config.json", "weights.pth"], "no weights under a name.*it has config.json, weights.pth"),
    ([], "it has no files"),
])
def test_files_that_are_not_one_plain_model_are_refused(names, says):
    with pytest.raises((WeightsError, FileNotFoundError), match=says):
        weight_files(names, lambda name: {})


@pytest.mark.parametrize(("index", "says"), [
    ('{"weight_map": {"a": "gone.safetensors"}}', "1 are missing: gone.safetensors"),
    ('{"weight_map": {"a": "../outside.safetensors"}}', "names files outside of its folder"),
    ('{"weight_map": {}}', "no weight_map"), ("[1]", "no JSON object"), ('{"weight_map": {"a"', "cannot be read"),
])
def test_an_index_that_cannot_be_followed_is_refused_by_the_folder_and_on_the_hub(index, says, folder, hub, tmp_path,
                                                                                  probe):
    (folder / WHOLE).unlink()
    (folder / INDEX).write_text(index)
    save_file({}, tmp_path / "outside.safetensors")
    for opener in (weight_paths, fingerprint, lambda folder: load(str(folder))):
        with pytest.raises((WeightsError, FileNotFoundError), match=says):
            opener(folder)
    commit = hub.put("me/model", "main", {"config.json": b"{}", INDEX: index.encode()})
    with pytest.raises(library.HubError, match=says):
        library.files("me/model", commit)
    table = trace(checkpoints(str(folder)), probe, Store(tmp_path / "records"), progress=False)
    assert table.status[0] == "failed" and str(folder) in table.reason[0]


# What the model did not take


def llama(folder):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=256, max_position_embeddings=64))
    model.save_pretrained(folder)
    return model


def coded(folder, kind, scales=True, quantization=None):
    """A Llama whose projections are stored in a code with scales. Returns what they stand for, by numpy."""
    model = llama(folder)
    state, meant = load_file(folder / WHOLE), {}
    for name in [name for name in state if name.endswith("proj.weight")]:
        weight = state[name]
        if kind == "int8":
            scale = weight.abs().max(1, keepdim=True).values / 127
            state[name] = (weight / scale).round().to(torch.int8)
        else:
            blocks = -(-len(weight) // 128), -(-weight.shape[1] // 128)
            scale = torch.full(blocks, weight.abs().max() / 448)  # the same for all of a weight's blocks
            state[name] = (weight / scale[0, 0]).to(torch.float8_e4m3fn)
        full = scale.numpy() if kind == "int8" else scale.numpy()[0, 0]
        meant[name] = state[name].float().numpy() * full
        if scales:
            state[f"{name}_scale_inv" if kind == "fp8" else name.replace("weight", "SCB")] = scale
    save_file(state, folder / WHOLE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | ({"quantization_config": quantization} if quantization
                                                             else {})))
    return model, meant


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("quantization", [None, {"quant_method": "homemade"}], ids=["none", "unknown method"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_that_nobody_reads_are_refused_by_name(kind, quantization, head, tmp_path):
    coded(tmp_path, kind, quantization=quantization)
    with pytest.raises(WeightsError, match=r"14 tensors in its files are not taken by .*(scale_inv|SCB).*Dequantize"):
        load(str(tmp_path), device="cpu", head=head)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool], ids=str)
def test_weights_stored_as_whole_numbers_are_refused(kind, tmp_path):
    llama(tmp_path)
    state = load_file(tmp_path / WHOLE)
    save_file({name: (100 * weight).to(kind) if "q_proj" in name else weight for name, weight in state.items()},
              tmp_path / WHOLE, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"2 weights in its files are stored as {str(kind).split('.')[1]}"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize(("kind", "stored"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_codes_without_any_scale_are_refused_too(kind, stored, tmp_path):
    coded(tmp_path, kind, scales=False)
    with pytest.raises(WeightsError, match=rf"14 weights in its files are stored as {stored}"):
        load(str(tmp_path), device="cpu")


def test_a_code_that_transformers_reads_gives_what_the_weights_stand_for(tmp_path):
    _, meant = coded(tmp_path, "fp8", quantization=FP8)
    state = load(str(tmp_path), device="cpu", dtype="float32", head=True).state_dict()
    for name, weight in meant.items():
        np.testing.assert_allclose(state[name].numpy(), weight, rtol=1e-6)  # one product in float32


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_decoded_weights_are_in_the_dtype_asked_for(dtype, tmp_path):
    coded(tmp_path, "fp8", quantization=FP8)
    kinds = {parameter.dtype for parameter in load(str(tmp_path), device="cpu", dtype=dtype).parameters()}
    assert kinds == {getattr(torch, dtype)}


def test_a_scale_that_is_lost_is_missed_by_the_name_of_its_weight(tmp_path):
    coded(tmp_path, "fp8", quantization=FP8)
    state = load_file(tmp_path / WHOLE)
    del state["model.layers.1.self_attn.q_proj.weight_scale_inv"]
    save_file(state, tmp_path / WHOLE, {"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj"):
        load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight",
                                  "model.layers.0.input_layernorm.weight"])
def test_a_code_where_transformers_expects_none_is_refused_though_it_decodes_others(name, kind, tmp_path):
    coded(tmp_path, "fp8", quantization=FP8)
    state = load_file(tmp_path / WHOLE)
    state[name] = (state[name] / state[name].abs().max() * 100).to(kind)
    save_file(state, tmp_path / WHOLE, {"format": "pt"})
    for head in (False, True):
        with pytest.raises(ValueError, match=f"stored as (float8_e4m3fn|int8) .{name}|cannot be read"):
            load(str(tmp_path), device="cpu", head=head)


def test_scales_that_are_powers_of_two_are_read_or_refused(tmp_path):
    _, meant = coded(tmp_path, "fp8", quantization=FP8)
    state = load_file(tmp_path / WHOLE)
    for name in [name for name in state if name.endswith("scale_inv")]:
        weight, power = name.removesuffix("_scale_inv"), torch.exp2(torch.ceil(torch.log2(state[name])))
        state[weight] = (state[weight].float() * state[name][0, 0] / power[0, 0]).to(torch.float8_e4m3fn)
        meant[weight] = state[weight].float().numpy() * power[0, 0].item()
        state[name] = power.to(torch.float8_e8m0fnu)
    save_file(state, tmp_path / WHOLE, {"format": "pt"})
    try:
        opened = load(str(tmp_path), device="cpu", dtype="float32", head=True).state_dict()
    except ValueError as error:
        assert str(tmp_path) in str(error)
    else:
        for name, weight in meant.items():
            np.testing.assert_allclose(opened[name].numpy(), weight, rtol=1e-6)  # one product in float32


def with_blocks_beyond(state):
    return {key.replace("layers.1", "layers.2"): tensor.clone() for key, tensor in state.items() if "layers.1" in key}


def with_an_adapter(state):
    return {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(4, 128),
            "model.layers.0.self_attn.q_proj.lora_B.default.weight": torch.ones(128, 4)}


def with_a_bias(state):
    return {"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("further", [with_blocks_beyond, with_an_adapter, with_a_bias])
def test_tensors_that_a_model_has_no_place_for_are_refused_by_name(further, suffix, tmp_path):
    llama(tmp_path)
    state = load_file(tmp_path / WHOLE)
    more = further(state)
    if suffix == "bin":
        (tmp_path / WHOLE).unlink()
        torch.save(state | more, tmp_path / "pytorch_model.bin")
    else:
        save_file(state | more, tmp_path / WHOLE, {"format": "pt"})
    for head in (False, True):
        with pytest.raises(WeightsError, match=rf"{len(more)} tensors .*{sorted(more)[0]}"):
            load(str(tmp_path), device="cpu", head=head)


MASK, FILL, NUMBERS = torch.ones(1, 1, 64, 64, dtype=torch.uint8), torch.tensor(-1e9), torch.ones(4)
# What versions of transformers before 5 stored beside the weights, in each block or once.
OLDER = {
    "GPT-2": {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": FILL},
    "GPT-J": {"transformer.h.{}.attn.bias": MASK, "transformer.h.{}.attn.masked_bias": FILL},
    "GPT-NeoX": {"gpt_neox.layers.{}.attention.bias": MASK.bool(), "gpt_neox.layers.{}.attention.masked_bias": FILL,
                 "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": NUMBERS},
    "Llama": {"model.layers.{}.self_attn.rotary_emb.inv_freq": NUMBERS, "model.causal_mask": MASK.bool(),
              "model.layers.{}.self_attn.rotary_emb.cos_cached": NUMBERS},
    "Falcon": {"transformer.h.{}.self_attention.maybe_rotary.inv_freq": NUMBERS},
    "OPT": {"model.decoder.version": NUMBERS}, "Bloom": {"transformer.h.{}.self_attention.alibi": NUMBERS},
    "Gemma 3": {"language_model.model.rotary_emb_local.inv_freq": NUMBERS},
}


@pytest.mark.parametrize("architecture", OLDER)
def test_what_older_versions_stored_beside_the_weights_changes_nothing(architecture, tmp_path):
    model = architectures.build(architecture)
    model.save_pretrained(tmp_path)
    more = {name.format(k): tensor.clone() for name, tensor in OLDER[architecture].items()
            for k in range(architectures.LAYERS)}
    save_file(load_file(tmp_path / WHOLE) | more, tmp_path / WHOLE, {"format": "pt"})
    opened, expected = load(str(tmp_path), device="cpu", dtype="float32", head=True).state_dict(), model.state_dict()
    assert opened.keys() == expected.keys() and all(torch.equal(opened[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
def test_a_decoder_saved_with_another_head_is_measured_without_it(kind, tmp_path):
    config = LlamaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=24, pad_token_id=0)
    model = getattr(transformers, f"LlamaFor{kind}")(config)
    model.save_pretrained(tmp_path)
    opened, expected = load(str(tmp_path), device="cpu", dtype="float32").state_dict(), model.base_model.state_dict()
    assert opened.keys() == expected.keys() and all(torch.equal(opened[key], expected[key]) for key in expected)
    with pytest.raises(ValueError, match="saved without its LM head"):
        load(str(tmp_path), device="cpu", head=True)


def test_buffers_of_older_versions_and_heads_are_left_without_a_word(tmp_path):
    model = llama(tmp_path)
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16), "v_head.summary.weight": torch.ones(1),
                "model.layers.0.self_attn.attention.masked_bias": torch.tensor(-1e9),
                "model.layers.0.self_attn.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}
    save_file(load_file(tmp_path / WHOLE) | harmless, tmp_path / WHOLE, {"format": "pt"})
    for head in (False, True):
        opened = load(str(tmp_path), device="cpu", dtype="float32", head=head)
        expected = (model if head else model.model).state_dict()
        assert all(torch.equal(weight, expected[key]) for key, weight in opened.state_dict().items())
