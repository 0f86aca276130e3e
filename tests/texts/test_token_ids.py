"""Token sequences that a model can read, and what identifies the tokenizer that they come from.

Trusted: what was passed; the ids that transformers' tokenizers give, which a fingerprint must tell apart.
"""

import copy
import json

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer, BatchEncoding, CTRLTokenizer

from reptrace.texts.corpora import Corpus, probe, train_tokenizer
from reptrace.texts.token_ids import OtherTokenizerError, checked_sequences, reading_fingerprint, tokenizer_fingerprint

TEXTS = [f"the ice of lake {k} melts in water and steam" for k in range(60)]
GIVEN = [[1, 2, 3], [4]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


# Sequences


@pytest.mark.parametrize("given", [GIVEN, tuple(map(tuple, GIVEN)), [np.array(s) for s in GIVEN], iter(GIVEN),
                                   [torch.tensor(s) for s in GIVEN], [np.array(s, np.uint16) for s in GIVEN]])
def test_sequences_come_from_any_iterable_of_whole_numbers(given):
    found = checked_sequences(given, 5, 3)
    assert [array.tolist() for array in found] == GIVEN and all(isinstance(array, np.ndarray) for array in found)


@pytest.mark.parametrize(("given", "told"), [
    ("some text", r"got str 'some text'. Texts are tokenized first"), (b"ab", "got bytes"), (3, "got int 3"),
    (None, "got NoneType"), ({"a": [1]}, "got dict"), ({(1, 2)}, "got set"),
    (BatchEncoding({"input_ids": [[1, 2]]}), 'Pass its "input_ids", made without padding'),
    (["one", "two"], "sequence 0 is not a list of token ids but 'one'. Texts are tokenized first"),
    ([1, 2, 3], "sequence 0 is not a list of token ids but 1"), ([[1], [1.0, 2.0]], "sequence 1 is .* of float64"),
    ([[[1, 2]]], "sequence 0 is .* 2 axes"), ([[True, False]], "of bool"), ([[1], None], "sequence 1 is not"),
    ([[1], [1, [2, 3]]], r"sequence 1 is not a list of token ids but \[1, \[2, 3\]\]")])
def test_what_is_no_list_of_sequences_is_refused_with_what_to_pass(given, told):
    with pytest.raises(TypeError, match=told):
        checked_sequences(given, 5, None)


def test_a_probe_is_refused_with_the_name_of_its_sequences(tokenizer):
    with pytest.raises(TypeError, match=r"Pass probe\.sequences"):
        checked_sequences(probe(Corpus("x", TEXTS), tokenizer, 20, 20, 4), 300, None)


@pytest.mark.parametrize(("given", "told"), [
    ([], "no sequences"), ([[1, 2], []], "sequence 1 is empty"),
    ([[1, 2], [1]], "sequence 1 has 1 tokens, 2 are needed"),
    ([[1] * 9], "sequence 0 has 9 tokens, the model's context is 8: cut at max_length=8"),
    ([[1, 2], [1, 5]], "sequence 1 holds token id 5, the model's vocabulary has 5"),
    ([[1, -2, 3]], "sequence 0 holds token id -2")])
def test_a_sequence_that_a_model_cannot_read_is_named(given, told):
    with pytest.raises(OtherTokenizerError if "holds" in told else ValueError, match=told):
        checked_sequences(given, 5, 8, least=2)


# Fingerprints


def slow(folder, merges="#version\nt h\nth e</w>\n", **options):
    """A tokenizer in Python whose merges lie in a file of their own."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<unk>", "the", "th@@", *letters, *(f"{letter}@@" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text(merges)
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<unk>", **options)


def test_a_slow_tokenizers_fingerprint_counts_its_merges_and_not_where_it_lies(tmp_path):
    one, same, other = slow(tmp_path / "a"), slow(tmp_path / "b", model_max_length=7), slow(tmp_path / "c", "#v\nt h\n")
    assert one("the")["input_ids"] == same("the")["input_ids"] != other("the")["input_ids"]
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(same) != tokenizer_fingerprint(other)
    before = tokenizer_fingerprint(one)
    one.add_tokens(["ice"])
    assert tokenizer_fingerprint(one) != before
    same.save_pretrained(tmp_path / "d")
    again = CTRLTokenizer.from_pretrained(tmp_path / "d")
    assert again("the")["input_ids"] == same("the")["input_ids"]
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(same)


def test_whether_special_tokens_in_a_text_are_split_counts(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    split = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    text = "ice<|endoftext|>water"
    assert tokenizer(text)["input_ids"] != split(text)["input_ids"]
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(split)


def bos_before(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])


def another_bos(tokenizer):
    tokenizer.bos_token = "<|padding|>"


def chat(tokenizer):
    tokenizer.chat_template = "{{ messages }}"


@pytest.mark.parametrize("change", [bos_before, another_bos, chat])
def test_what_stands_around_a_text_counts_for_a_task_alone(change, tokenizer):
    changed = copy.deepcopy(tokenizer)
    change(changed)
    assert tokenizer_fingerprint(changed) == tokenizer_fingerprint(tokenizer)
    assert reading_fingerprint(changed) != reading_fingerprint(tokenizer)
    assert reading_fingerprint(copy.deepcopy(changed)) == reading_fingerprint(changed)
