"""Opening models and tokenizers.

Trusted: the files on disk, as written by transformers, safetensors and torch themselves, and the models they were
written from.
"""

import json
import pickle
import re
import threading
import time

import pytest
import torch
from limits import join
from safetensors.torch import load_file, save_file
from test_hidden_states import TOLERANCES, sequences, tiny  # noqa: F401  a fixture
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from transformers.utils import logging

from reptrace.models import batches
from reptrace.models.batches import TooLittleMemoryError
from reptrace.models.hidden_states import last_token_states
from reptrace.models.loading import CodeElsewhereError, from_pretrained, load, load_tokenizer
from reptrace.tasks.evaluation import loss
from reptrace.texts.corpora import train_tokenizer


def files_of(model, folder):
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def trained(tmp_path, hub_cache):
    """A repository in a cache with two revisions of different weights, and the models they were."""
    models = {"step0": tiny(dtype=torch.float32), "step1": tiny(dtype=torch.float32)}
    models["step1"].get_input_embeddings().weight.data += 1
    return hub_cache("me/run", {name: files_of(model, tmp_path / name) for name, model in models.items()}), models


@pytest.mark.parametrize("revision", ["step0", "step1"])
def test_a_revision_opens_with_its_own_weights_in_float32_without_the_lm_head(trained, revision):
    cache, models = trained
    opened = load("me/run", revision, str(cache), device="cpu")
    expected = models[revision].base_model.state_dict()
    assert opened.state_dict().keys() == expected.keys() and not opened.training
    for key, weight in opened.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, expected[key])


def test_a_missing_revision_is_an_error_that_says_which_there_are(trained):
    with pytest.raises(FileNotFoundError, match=r"'me/run' at revision 'step7'.*step0, step1"):
        load("me/run", "step7", str(trained[0]))


@pytest.mark.parametrize("cached", [True, False])
def test_a_missing_model_is_an_error_that_names_it(tmp_path, cached):
    with pytest.raises(FileNotFoundError, match="cannot open model 'nobody/nothing'"):
        load("nobody/nothing", cache_dir=str(tmp_path) if cached else None)


def test_a_folder_without_a_model_is_an_error_and_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(FileNotFoundError, match="cannot open model"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="plain folder and has no revisions"):
        load(str(tmp_path), "step1")


def test_weights_missing_from_a_checkpoint_are_an_error_and_not_random_numbers(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({key: weight for key, weight in weights.items() if "layers.1." not in key},
              tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises((OSError, ValueError, RuntimeError), match=r"missing|layers\.1"):
        load(str(tmp_path), device="cpu")


def test_a_truncated_weight_file_is_an_error_that_names_the_model(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises((OSError, ValueError, RuntimeError), match=re.escape(str(tmp_path))):
        load(str(tmp_path), device="cpu")


def test_weights_in_bin_files_are_the_same_weights(tmp_path):
    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    opened, expected = load(str(tmp_path), device="cpu").state_dict(), model.base_model.state_dict()
    assert opened.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in opened.items())


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_is_not_run(zipped, tmp_path):
    model, mark = tiny(dtype=torch.float32), tmp_path / "was here"
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "pytorch_model.bin"
    torch.save({**model.state_dict(), "intruder": Intruder(mark)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".* more than tensors.*Nothing in it was run"):
        load(str(tmp_path), device="cpu")
    assert not mark.exists()
    torch.load(file, weights_only=False)["intruder"].close()
    assert mark.exists()  # the intruder does work


CUSTOM = """
from pathlib import Path
from transformers import LlamaConfig, LlamaModel
Path({mark!r}).touch()
class HouseConfig(LlamaConfig):
    model_type = "house"
class HouseModel(LlamaModel):
    config_class = HouseConfig
"""


def house(folder, mark):
    """A folder with a tiny Llama and code of its own, which leaves a mark when it runs."""
    tiny(dtype=torch.float32).base_model.save_pretrained(folder)
    (folder / "house.py").write_text(CUSTOM.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "house.HouseConfig", "AutoModel": "house.HouseModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "house", "auto_map": code}))
    return folder


def test_code_of_a_repository_is_run_only_where_that_is_allowed(tmp_path, monkeypatch, sequences):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, mark = tiny(dtype=torch.float32), tmp_path / "was here"
    folder = house(tmp_path / "house", mark)
    tokenizer = {"tokenizer_class": "HouseTokenizer", "auto_map": {"AutoTokenizer": [None, "house.HouseTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for opener in (load, load_tokenizer):
        with pytest.raises(ValueError, match=r"Python code of its own, .*this one repository: trust_remote_code"):
            opener(str(folder))
    assert not mark.exists()
    opened = load(str(folder), device="cpu", trust_remote_code=True)
    assert mark.exists() and type(opened).__name__ == "HouseModel"
    found, expected = (last_token_states(m, sequences)["final"] for m in (opened, model))
    # its last block, of a type not known here, computes every token: a product of another shape
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[torch.float32])


def test_code_of_the_same_name_is_each_folders_own(tmp_path, monkeypatch, sequences):
    """transformers keeps the first class of a name that it met, for all folders after it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for factor in (1.0, 3.0):
        folder = house(tmp_path / str(factor) / "house", tmp_path / "mark")
        (folder / "house.py").write_text(CUSTOM.format(mark=str(tmp_path / "mark")) + f"""
    def forward(self, *arguments, **options):
        found = super().forward(*arguments, **options)
        found.last_hidden_state = {factor} * found.last_hidden_state
        return found
""")
    plain = tiny(dtype=torch.float32).base_model
    for factor in (1.0, 3.0, 1.0):
        opened = load(str(tmp_path / str(factor) / "house"), device="cpu", trust_remote_code=True)
        ids = torch.tensor([sequences[0]])
        with torch.no_grad():
            torch.testing.assert_close(opened(ids).last_hidden_state, factor * plain(ids).last_hidden_state)


def test_a_model_of_own_code_that_is_in_use_can_be_saved_after_another_was_opened(tmp_path, monkeypatch):
    """Trainer does so at every checkpoint; a probe's tokenizer is opened after the model."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folders = [house(tmp_path / name / "house", tmp_path / "mark") for name in ("one", "two")]
    (folders[1] / "house.py").write_text((folders[1] / "house.py").read_text() + "\n# another\n")
    train_tokenizer(["the ice melts"] * 9, 270).save_pretrained(folders[0])
    users = AutoModel.from_pretrained(folders[0], trust_remote_code=True)
    ours = load(str(folders[0]), device="cpu", trust_remote_code=True)
    load_tokenizer(str(folders[0]), trust_remote_code=True)
    load(str(folders[1]), device="cpu", trust_remote_code=True)
    for number, model in enumerate((users, ours)):
        model.save_pretrained(tmp_path / str(number))
        assert type(pickle.loads(pickle.dumps(model))) is type(model)
        again = AutoModel.from_pretrained(tmp_path / str(number), trust_remote_code=True)
        assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_not_run_though_this_one_is_trusted(place, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = tmp_path / "was here"
    folder = house(tmp_path / "own", mark)
    elsewhere = {"AutoConfig": "house.HouseConfig", "AutoModel": "me/other--house.HouseModel",
                 "AutoTokenizer": [None, "me/other--house.HouseTokenizer"]}
    content = json.loads((folder / place).read_text()) if (folder / place).exists() else {}
    (folder / place).write_text(json.dumps(content | {"auto_map": elsewhere}))
    for opener in (load, load_tokenizer):
        with pytest.raises(CodeElsewhereError, match=r"takes its code from another repository \(me/other--house"):
            opener(str(folder), trust_remote_code=True)
    assert not mark.exists()


def test_a_tokenizer_whose_files_hold_no_vocabulary_is_refused(tmp_path):
    train_tokenizer(["the ice melts"] * 9, 270).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"empty vocabulary|damaged files"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("changed", [{"rope_parameters": {"rope_type": "xyz"}}, {"hidden_size": "many"},
                                     {"num_attention_heads": 0}, {"model_type": "never-heard"}], ids=str)
def test_a_configuration_that_makes_no_model_is_an_error_that_names_the_model(changed, tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(tmp_path))):
        load(str(tmp_path), device="cpu")


def test_a_folder_of_models_is_no_model_and_names_them(tmp_path):
    for name in ("one", "two"):
        tiny(dtype=torch.float32).save_pretrained(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=f"Models lie in {re.escape(str(tmp_path / 'one'))}, "):
        load(str(tmp_path))


@pytest.mark.parametrize("head", [False, True])
def test_tied_embeddings_stored_under_the_heads_name_are_the_embeddings(head, tmp_path):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                         intermediate_size=24, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    opened = load(str(tmp_path), device="cpu", head=head)
    assert torch.equal(opened.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_model_that_hears_as_well_as_reads_predicts_text(tmp_path):
    text = {"model_type": "qwen2", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    sound = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
             "num_mel_bins": 8, "max_source_positions": 8, "model_type": "qwen2_audio_encoder"}
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(text_config=text, audio_config=sound)).eval()
    model.save_pretrained(tmp_path)
    opened, ids = load(str(tmp_path), device="cpu", dtype="float32", head=True), [[3, 5, 8, 13], [21, 34, 55]]
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([s]), labels=torch.tensor([s])).loss.item() for s in ids]
    assert loss(opened, ids, 2)["items"] == pytest.approx(expected, rel=1e-5)  # float32, in a batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_larger_than_the_free_memory_is_refused_with_its_size(dtype, tmp_path, monkeypatch):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    size = sum(parameter.nbytes for parameter in load(str(tmp_path), device="cpu", dtype=dtype).parameters())
    monkeypatch.setattr(batches, "free_bytes", lambda device: size)
    load(str(tmp_path), device="cpu", dtype=dtype)
    monkeypatch.setattr(batches, "free_bytes", lambda device: size - 1)
    with pytest.raises(TooLittleMemoryError, match=f"{re.escape(str(tmp_path))}' in {dtype} needs 0.0 GB, cpu has"):
        load(str(tmp_path), device="cpu", dtype=dtype)


def test_threads_that_load_side_by_side_take_turns_and_leave_the_process_as_it_was():
    inside, overlaps = [], []

    class Loader:
        @staticmethod
        def from_pretrained(name, **options):
            inside.append(name)
            overlaps.append(len(inside) > 1 or logging.get_verbosity() != logging.ERROR)
            default = torch.get_default_dtype()  # what transformers does with it
            torch.set_default_dtype(torch.bfloat16)
            time.sleep(0.01)
            torch.set_default_dtype(default)
            inside.remove(name)

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    threads = [threading.Thread(target=from_pretrained, args=(Loader, f"me/{k}", None), daemon=True)
               for k in range(4)]
    try:
        for thread in threads:
            thread.start()
        join(*threads)
        assert overlaps == [False] * 4
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
        logging.set_verbosity(before)
        logging.disable_progress_bar()
