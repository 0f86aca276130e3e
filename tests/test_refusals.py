"""What is refused, and why: every line of the book's tables (book/refused/*.csv), brought about.

Trusted: the tables, which the book shows. What stands between "..." in the column "What is said" must be said, in that
order; the column "What happens" says whether as an error, as the reason of a gap in a table, or as a warning.
"""

import csv
import gzip
import json
import os
import random
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from gguf_writer import tiny_llama, written
from safetensors.torch import load_file, save_file
from test_loading import house
from transformers import AutoConfig, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

import reptrace
from reptrace.checkpoints.listing import checkpoints
from reptrace.measures.registry import REGISTRY
from reptrace.models.hidden_states import last_token_states
from reptrace.models.loading import load, load_tokenizer
from reptrace.records.store import Store
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.sweeps.references import Kept
from reptrace.sweeps.sweep import trace
from reptrace.sweeps.tokenizers import tokenizer_of
from reptrace.tasks.evaluation import evaluate, loss
from reptrace.texts.corpora import Corpus, docstrings, open_text, probe, train_tokenizer

TABLES = Path(__file__).parents[1] / "book" / "refused"
COLUMNS = ["What comes", "What happens", "What is said", "What to do, and why"]


def lines():
    for path in sorted(TABLES.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


class World:
    """A folder with a small model, its tokenizer and some texts, to be spoilt."""

    def __init__(self, folder):
        self.folder, self.texts = folder, [f"{k} one two three {k * k} four {k % 7}" for k in range(40)]
        self.tokenizer = train_tokenizer(self.texts, 96)
        torch.manual_seed(0)
        config = AutoConfig.for_model("llama", vocab_size=97, hidden_size=16, num_hidden_layers=2, pad_token_id=0,
                                      num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
        self.model = reptrace_model(config)
        self.run = folder / "run"
        for step in (1, 2):
            self.model.save_pretrained(self.run / f"checkpoint-{step}")
            self.tokenizer.save_pretrained(self.run / f"checkpoint-{step}")
        self.one = self.run / "checkpoint-1"
        self.probe = probe(Corpus("texts", self.texts), self.tokenizer, 40, 16, 2)

    def file(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def config(self, **changed):
        path = self.one / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def tensors(self, change):
        path = self.one / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    def traced(self, **options):
        table = trace(checkpoints(str(self.run)), self.probe, Store(self.folder / "records"), ranks=(2, 8),
                      progress=False, **options)
        assert (table.status == "measured").sum() == 1  # the others are measured all the same
        return Gap(table.reason[table.status == "failed"].item())

    def train(self, model=None, **options):
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, k):
                return {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor([1, 2, 3])}

        arguments = TrainingArguments(output_dir=str(self.folder / "trained"), max_steps=1, report_to="none",
                                      use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no",
                                      dataloader_pin_memory=False)
        trainer = Trainer(model or self.model, arguments, train_dataset=Data())
        trainer.add_callback(reptrace.GeometryCallback(trainer, self.probe.sequences, every=1, **options))
        trainer.train()


class Gap(Exception):
    """What a table says in place of a number."""


def reptrace_model(config):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def measured(world, texts, **options):
    return reptrace.measure(world.model, texts, world.tokenizer, ranks=(2, 8), **options)


def opened(world, name, content, **options):
    return open_text(world.file(name, content), **options)


def long_lines(world):
    return probe(opened(world, "a.txt", "\n".join(world.texts)), world.tokenizer, 20, 16, 2)


def other_split(world):
    Dataset.from_dict({"text": ["one"]}).save_to_disk(world.folder / "saved")
    return open_text(f"hub:{world.folder / 'saved'}::test")


def folder_of(world, files, part=""):
    (world.folder / "data").mkdir()
    for name, content in files.items():
        world.file(f"data/{name}", content)
    return open_text(f"hub:{world.folder / 'data'}{part}")


def damaged_cache(world, monkeypatch):
    monkeypatch.setattr("reptrace.texts.corpora._standard_library", list)  # thousands of files
    read = {"packages": ["tqdm"], "cache": world.folder / "corpora", "workers": 1}
    docstrings(**read)
    next((world.folder / "corpora").iterdir()).write_text('{"name": "docs')
    return docstrings(**read)


def drawing_tokenizer(world):
    draw = random.Random(0)

    def draws(texts, **options):
        return {"input_ids": [[draw.randrange(90) for _ in text] for text in texts]}

    return probe(Corpus("mine", world.texts), draws, 20, 16, 2)


def failing_tokenizer(world):
    class Fails:
        def __call__(self, texts, **options):
            raise RuntimeError("of itself")

    return probe(Corpus("mine", world.texts), Fails(), 20, 16, 2)


def without_tokenizers(world):
    for path in world.run.glob("*/tokenizer*"):
        path.unlink()
    return tokenizer_of(checkpoints(str(world.run)), 16)


def half_a_tokenizer(world):
    path = world.one / "tokenizer.json"
    path.write_text(path.read_text()[:100])
    return load_tokenizer(str(world.one))


def missing_package(world):
    (world.one / "own.py").write_text("import no_such_package\nclass Own:\n    pass\n")
    (world.one / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}))
    return load_tokenizer(str(world.one), trust_remote_code=True)


def tasks_without_a_tokenizer(world):
    for path in world.one.glob("tokenizer*"):
        path.unlink()
    table = evaluate_checkpoints(checkpoints(str(world.one)), "cloze", Store(world.folder / "records"), 8,
                                 data={"cloze": world.file("cloze.jsonl", "{}")}, progress=False)
    raise Gap(table.reason[0])


def cut_weights(world):
    path = world.one / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    raise world.traced()


def index_without_its_parts(world):
    (world.one / "model.safetensors").unlink()
    (world.one / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
    raise world.traced()


def no_weights(world):
    (world.one / "model.safetensors").unlink()
    raise world.traced()


def further(name):
    def spoil(world):
        world.tensors(lambda state: state | {name: torch.ones(4)})
        raise world.traced()

    return spoil


def missing_tensors(world):
    world.tensors(lambda state: {key: value for key, value in state.items() if "layers.1" not in key})
    raise world.traced()


def coded(world):
    world.tensors(lambda state: {key: value.to(torch.int8) if "q_proj" in key else value
                                 for key, value in state.items()})
    raise world.traced()


def unknown_quantization(world):
    world.config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    raise world.traced()


def adapter(world):
    (world.one / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    raise world.traced()


def pickle(world):
    state = load_file(world.one / "model.safetensors")
    (world.one / "model.safetensors").unlink()
    torch.save(state | {"code": Path}, world.one / "pytorch_model.bin")
    raise world.traced()


def of_gguf(spoil):
    def case(world):
        path = world.folder / "gguf" / "tiny.gguf"
        path.parent.mkdir()
        spoil(path)
        table = trace(checkpoints(str(path)), world.probe, Store(world.folder / "records"), progress=False)
        raise Gap(table.reason[0])

    return case


def several_gguf(world):
    for name in ("a.gguf", "b.gguf"):
        world.file(name, b"GGUF")
    return checkpoints(str(world.folder))


def unknown_split(world):
    return load_tokenizer(str(written(world.folder / "tiny.gguf", *tiny_llama(), rule="deepseek-llm")))


def cut_gguf(path):
    content = written(path, *tiny_llama()).read_bytes()
    path.write_bytes(content[:-1000])


def nan(world):
    world.tensors(lambda state: {key: value * float("nan") if "layers.1" in key else value
                                 for key, value in state.items()})
    raise world.traced()


def own_code(world):
    shutil.rmtree(world.one)
    house(world.one, world.folder / "was here")
    raise world.traced()


def others_code(world):
    house(world.folder / "own", world.folder / "was here")
    path = world.folder / "own" / "config.json"
    elsewhere = {"auto_map": {"AutoModel": "me/other--house.HouseModel"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | elsewhere))
    return load(str(world.folder / "own"), trust_remote_code=True)


def rewritten_meanwhile(world, monkeypatch):
    from reptrace.models import hidden_states

    original = hidden_states.extract

    def slow(*arguments, **options):
        world.tensors(lambda state: {key: value + 1 for key, value in state.items()})
        return original(*arguments, **options)

    monkeypatch.setattr(hidden_states, "extract", slow)
    raise world.traced()


def longer_than_the_context(world):
    return last_token_states(world.model, [[1] * 33, [1, 2]])


def without_a_vocabulary(world):
    path = world.one / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": content["model"] | {"vocab": {}, "merges": []}}))
    return load_tokenizer(str(world.one))


def sharded(world):
    (world.one / "model.safetensors").unlink()
    (world.one / ".metadata").write_text("")
    raise world.traced()


def git_lfs(world):
    (world.one / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    raise world.traced()


def no_final_norm(world):
    world.model.model.last_of_all = world.model.model.norm
    del world.model.model.norm
    return last_token_states(world.model, world.probe.sequences)


def not_causal(world):
    from torch import nn

    class Sum(nn.Module):
        def forward(self, x):
            return x + x.sum(1, keepdim=True)

    world.model.model.layers[0].mlp = Sum()
    return last_token_states(world.model, world.probe.sequences)


def headless(world):
    world.model.model.save_pretrained(world.folder / "headless")
    points, store = checkpoints(str(world.folder / "headless")), Store(world.folder / "records")
    table = evaluate_checkpoints(points, "loss", store, 8, probe=world.probe, progress=False)
    for name in ("readout", "weights"):
        assert trace(points, world.probe, store, measures=name, progress=False).reason[0] == table.reason[0]
    raise Gap(table.reason[0])


def measured_in_part(world, probe, **options):
    """Of one checkpoint: something is measured, and one row says what is not."""
    table = trace(checkpoints(str(world.one)), probe, Store(world.folder / "records"), ranks=(2, 8), progress=False,
                  **options)
    assert (table.status == "measured").any(), table.reason.tolist()
    raise Gap(table.reason[table.status == "failed"].item())


def equal_ends(world):
    ends = replace(world.probe, sequences=[[*ids[:-1], 5] for ids in world.probe.sequences])
    measured_in_part(world, ends, layers="all")


def one_fails(world, monkeypatch):
    def broken(features):
        raise ValueError("division by nothing")

    monkeypatch.setitem(REGISTRY, "anisotropy", replace(REGISTRY["anisotropy"], function=broken))
    measured_in_part(world, world.probe, measures=["rankme", "anisotropy"])


def no_unembedding(world, monkeypatch):
    monkeypatch.setattr(type(world.model), "get_output_embeddings", lambda model: None)
    measured_in_part(world, world.probe, measures=["rankme", "readout"])


def long_answer(world):
    row = {"passage": "one", "choices": ["two " * 99, "three"], "answer": 0}
    return evaluate(world.model, world.tokenizer, "cloze", 8,
                    data={"cloze": world.file("cloze.jsonl", f"{json.dumps(row)}\n")})


def remembers(world):
    longest = [0]

    def grow(module, args, kwargs):
        longest[0] = max(longest[0], args[0].shape[1])
        return (args[0] * (1 + longest[0] / 20), *args[1:]), kwargs

    world.model.model.layers[1].register_forward_pre_hook(grow, with_kwargs=True)
    return last_token_states(world.model, world.probe.sequences)


def learns(world):
    def move(module, args):
        module.weight.mul_(1.001)

    world.model.model.norm.register_forward_pre_hook(move)
    return last_token_states(world.model, world.probe.sequences)


def too_little_memory(world, monkeypatch):
    monkeypatch.setattr("reptrace.models.batches.free_bytes", lambda device: 1)
    return load(str(world.one), device="cpu")


def two_kinds(world):
    config = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return last_token_states(T5ForConditionalGeneration(config), world.probe.sequences)


def few(world, monkeypatch):
    from reptrace.models import hidden_states

    original = hidden_states.extract

    def massive(*arguments):
        found = original(*arguments)
        found.features["final"][:1] *= 100
        return found

    monkeypatch.setattr(hidden_states, "extract", massive)
    return measured(world, world.texts)


def depends_on_the_batch(world):
    def grow(module, args, kwargs):
        return (args[0] * (1 + args[0].shape[1] / 20), *args[1:]), kwargs

    world.model.model.layers[1].register_forward_pre_hook(grow, with_kwargs=True)
    return last_token_states(world.model, world.probe.sequences)


def prompt_tuning(world):
    from peft import PromptTuningConfig, get_peft_model

    return last_token_states(get_peft_model(world.model, PromptTuningConfig(num_virtual_tokens=2,
                                                                            task_type="CAUSAL_LM")),
                             world.probe.sequences)


def half_precision_training(world):
    world.train(reptrace_model(world.model.config).to(torch.bfloat16).half())


def states_of_another_probe(world):
    kept = Kept(world.folder / "states")
    one, other = ({"weights": "a", "probe": probe} for probe in ("0123", "4567"))
    kept.put(other, {"final": torch.zeros(3, 2)})
    kept.path(other).rename(kept.path(one))
    kept.get(one)


CASES = {
    "One string where a list of texts is meant": lambda w: measured(w, "one text"),
    "A path where a list of texts is meant": lambda w: measured(w, Path("texts.txt")),
    "A mapping, a set or a table where a list of texts is meant": lambda w: measured(w, {"a": "one"}),
    "Something else than a string among the texts": lambda w: measured(w, ["one", None]),
    "Token ids among the texts": lambda w: measured(w, [[1, 2], [3, 4]]),
    "Half of a surrogate pair in a text": lambda w: measured(w, ["one two", "three \ud800"]),
    "Too few texts that are long enough": lambda w: measured(w, w.texts, min_length=50),
    "A file that is not there": lambda w: open_text(str(w.folder / "none.txt")),
    "A folder in place of a file": lambda w: open_text(str(w.folder)),
    "A file whose suffix is not known (.xml, .html, .zip, .xz, none)": lambda w: opened(w, "a.xml", "<a>b</a>"),
    "A compressed or binary file under the name of a text": lambda w: opened(w, "a.txt", gzip.compress(b"a")),
    "Text that is not UTF-8": lambda w: opened(w, "a.txt", "é".encode("latin-1")),
    "A compressed file that is cut off": lambda w: opened(w, "a.txt.gz", gzip.compress(b"a" * 999)[:-9]),
    "JSON lines, JSON or markup under the name of a plain text":
        lambda w: opened(w, "a.txt", '{"text": "a"}\n\n{"text": "b"}'),
    "JSON of which the documents cannot be told": lambda w: opened(w, "a.json", '{"a": {"b": 1}}'),
    "A line that is not JSON, in .jsonl": lambda w: opened(w, "a.jsonl", '{"text": "a"}\n{"te'),
    "A field that is not there": lambda w: opened(w, "a.csv", "title,body\na,b\n"),
    "A number or a list where a row should have its text": lambda w: opened(w, "a.jsonl", '{"text": 3}'),
    "A row of another length than the header, in .csv": lambda w: opened(w, "a.csv", "text,n\na,1,2\n"),
    "A file without any text": lambda w: opened(w, "a.txt", "\n\n"),
    "Fewer documents than sequences asked for": lambda w: probe(Corpus("mine", w.texts), w.tokenizer, 41, 16, 2),
    "A plain text without blank lines, one document in all": long_lines,
    "Names of files that are there, where their texts are meant":
        lambda w: measured(w, [w.file("a.txt", "one"), w.file("b.txt", "two")]),
    "Pairs where texts are meant (`items()`, `enumerate`)": lambda w: measured(w, enumerate(["one", "two"])),
    "RTF or PostScript under the name of a text": lambda w: opened(w, "a.txt", "{\\rtf1 one}"),
    "A file whose name is not UTF-8": lambda w: opened(w, os.fsdecode(b"na\xefve.txt"), "one"),
    "A .tsv whose double quotes may be letters or hold a cell together":
        lambda w: opened(w, "a.tsv", 'text\n"one\ntwo\nthree"\nfour\n'),
    "A folder with files of different kinds, or of one that is not read":
        lambda w: folder_of(w, {"a.csv": "text\none\n", "b.jsonl": '{"text": "two"}'}),
    "A folder with files of several splits, or of one and of none":
        lambda w: folder_of(w, {"train.txt": "one", "more.txt": "two"}),
    "A folder whose README names options of reading":
        lambda w: folder_of(w, {"a.csv": "text;n\none;1\n", "README.md": "---\nconfigs:\n- config_name: default\n"
                                                                       "  data_files: a.csv\n  sep: ';'\n---\n"}),
    "A config, or another split, of a dataset that save_to_disk made": other_split,
    "A folder whose README names several configs":
        lambda w: folder_of(w, {"a.txt": "one", "README.md": "---\nconfigs:\n- config_name: one\n  data_files: a.txt\n"
                                                             "- config_name: two\n  data_files: a.txt\n---\n"}),
    "A config of a folder, or a split that no name of a file speaks of":
        lambda w: folder_of(w, {"a.txt": "one"}, "::test"),
    "A damaged file among what was kept of texts": damaged_cache,
    "A tokenizer that draws its tokens": drawing_tokenizer,
    "A tokenizer that fails on a document": failing_tokenizer,
    "A run without any tokenizer": without_tokenizers,
    "A checkpoint without a tokenizer, asked for tasks": tasks_without_a_tokenizer,
    "A tokenizer whose files are damaged": half_a_tokenizer,
    "A tokenizer without a vocabulary": without_a_vocabulary,
    "A tokenizer, or code, that needs a package which is not installed": missing_package,
    "Sequences longer than the model's context": longer_than_the_context,
    "Token ids that the model's vocabulary does not hold": lambda w: last_token_states(w.model, [[1, 97], [1, 2]]),
    "Something else than lists of token ids where these are meant":
        lambda w: last_token_states(w.model, w.tokenizer(w.texts)),
    "A sequence of one token, for the loss": lambda w: loss(w.model, [[1, 2], [1]], 8),
    "A path that is not there": lambda w: load(str(w.folder / "rum" / "checkpoint-1")),
    "A file in place of a model's folder": lambda w: load(str(w.one / "config.json")),
    "A name that is neither a folder nor a repository": lambda w: load("no/such"),
    "A revision that is not there": lambda w: load("me/model", "step7"),
    "A folder without weights": no_weights,
    "A checkpoint of sharded training": sharded,
    "Git LFS's pointers in place of weights": git_lfs,
    "An index whose parts are not all there": index_without_its_parts,
    "A weight file that is cut short": cut_weights,
    "Weights that lack some of the model's tensors": missing_tensors,
    "Tensors that the model does not take: scales": further("model.layers.0.self_attn.q_proj.weight_scale"),
    "Tensors that the model does not take: an adapter's":
        further("model.layers.0.self_attn.q_proj.lora_A.default.weight"),
    "Tensors that the model does not take: more blocks than configured": further("model.layers.2.mlp.up_proj.weight"),
    "Weights stored as integers or 8-bit floats, without a scale": coded,
    "A quantization whose package is not installed": unknown_quantization,
    "An adapter in the model's folder": adapter,
    "A .bin file that holds more than tensors": pickle,
    "A folder with several GGUF files": several_gguf,
    "Something else under the name of a GGUF file": of_gguf(lambda path: path.write_text("<html>not found")),
    "A GGUF file that is cut short": of_gguf(cut_gguf),
    "A GGUF file that is one part of several":
        of_gguf(lambda path: written(path, *tiny_llama(), facts={"split.count": 3, "split.no": 1})),
    "A GGUF file of an architecture that transformers does not open":
        of_gguf(lambda path: written(path, *tiny_llama(), architecture="gptneox")),
    "A GGUF file with tensors that transformers leaves out":
        of_gguf(lambda path: written(path, *tiny_llama(), further={"blk.0.attn_q.bias": [1.0] * 64})),
    "A GGUF file whose positions are stretched (YaRN and the like)":
        of_gguf(lambda path: written(path, *tiny_llama(), facts={"llama.rope.scaling.type": "yarn"})),
    "A GGUF file whose tokenizer splits texts by a rule that transformers does not know": unknown_split,
    "A model with Python code of its own": own_code,
    "A model whose code lies in another repository": others_code,
    "Files that change while they are measured": rewritten_meanwhile,
    "NaN or infinity in a hidden state": nan,
    "float16": lambda w: last_token_states(w.model.half(), w.probe.sequences),
    "An encoder with a decoder (T5)": two_kinds,
    "A layer that is not there": lambda w: last_token_states(w.model, w.probe.sequences, [7]),
    "The final norm of a decoder that has none under a known name": no_final_norm,
    "A model that is not causal": not_causal,
    "A model saved without its LM head, for tasks, the loss, or the measures readout and weights": headless,
    "An answer longer than the model's context": long_answer,
    "An adapter that puts learned tokens before every text": prompt_tuning,
    "A model whose states depend on what else is in the batch": depends_on_the_batch,
    "A model whose states depend on what it read before": remembers,
    "A model that changes its weights as it reads": learns,
    "Less memory than the model needs": too_little_memory,
    "A few sequences that make up most of the variance": few,
    "A measure by a name that there is not": lambda w: w.traced(measures="ckaa"),
    "Fewer sequences than a measure can be told from": lambda w: w.traced(measures="intrinsic_dimension"),
    "Fewer sequences than readout compares directions": lambda w: measured_in_part(
        w, replace(w.probe, sequences=w.probe.sequences[:10]), measures=["rankme", "readout"]),
    "A layer whose states do not vary": equal_ends,
    "One measure that fails beside others": one_fails,
    "A model in which no unembedding is found, for readout or weights": no_unembedding,
    "States of another probe among those kept for comparisons": states_of_another_probe,
    "Any failure to measure, during training": half_precision_training,
    "Text in place of token ids, for GeometryCallback": lambda w: reptrace.GeometryCallback(None, ["a", "b"], every=1),
}


@pytest.mark.parametrize("line", list(lines()), ids=lambda line: line["What comes"])
def test_what_the_book_says_is_refused_is_refused_in_those_words(line, world, monkeypatch, capsys, caplog):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(world.folder / "modules"))
    case, happens = CASES[line["What comes"]], line["What happens"]
    arguments = (world, monkeypatch) if case.__code__.co_argcount == 2 else (world,)
    said = re.compile(".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", line["What is said"].strip("`")))), re.DOTALL)
    if happens == "error":
        with pytest.raises(Exception, match=said) as found:
            case(*arguments)
        assert not isinstance(found.value, Gap)
    elif happens == "gap":
        with pytest.raises(Gap, match=said):
            case(*arguments)
    else:
        assert happens == "warning"
        with pytest.warns(UserWarning) if case is few else nullcontext() as warned:
            case(*arguments)
        told = [str(each.message) for each in warned or []]
        assert said.search("\n".join([capsys.readouterr().err, caplog.text, *told]))


def test_every_case_stands_in_the_book_and_every_line_says_what_to_do():
    found = list(lines())
    assert [line["What comes"] for line in found] == list(CASES)
    assert all(list(line) == COLUMNS and all(line.values()) for line in found)
