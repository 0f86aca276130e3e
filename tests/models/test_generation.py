"""Texts that models write. Trusted: transformers' own generate on one prompt at a time; the likeliest token step by
step; probabilities from a forward pass, with counts that must scatter about them as those of independent draws do.
"""

import copy
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import build
from scipy.stats import chisquare
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace.models.generation import log_probability, write
from reptrace.models.hidden_states import NonFiniteError
from reptrace.texts.corpora import train_tokenizer

END, PAD = 2, 0  # of the models of `architectures`
IDS = SimpleNamespace(eos_token_id=END, pad_token_id=PAD, eos_token="</s>",
                      decode=lambda ids, **options: " ".join(map(str, ids)))
PROMPTS = [[5, 6, 7], list(range(10, 19)), list(range(20, 40)), [8, 9, 10, 11, 12, 13]]


def own(model, prompt, tokens):
    """What transformers' generate gives of one prompt, up to the end."""
    with torch.inference_mode():
        made = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                              max_new_tokens=tokens, do_sample=False, eos_token_id=END, pad_token_id=PAD)
    made = made[0, len(prompt) :].tolist()
    return made[: made.index(END)] if END in made else made


@pytest.fixture(scope="module")
def small():
    """A model of 8 tokens that ends often, with 2 as the end, and a tokenizer for it."""
    torch.manual_seed(1)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, bos_token_id=1, eos_token_id=END, pad_token_id=PAD)).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.6)
    return model


def following(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


@pytest.mark.parametrize("name", ["GPT-NeoX", "GPT-2", "Llama", "Mixtral", "Phi-3 with LongRoPE", "RWKV"])
def test_greedy_text_in_a_padded_batch_is_that_of_each_prompt_alone(name):
    model = build(name)
    found = write(model, IDS, PROMPTS, 10, temperature=0)
    assert found.tokens == [[own(model, prompt, 10)] for prompt in PROMPTS]
    assert found.ended.tolist() == [[len(made) < 10] for [made] in found.tokens]


def test_greedy_text_takes_the_likeliest_token_step_by_step(small):
    ids = [5, 6]
    while len(ids) < 12 and (token := int(following(small, ids).argmax())) != END:
        ids.append(token)
    assert write(small, IDS, [[5, 6]], 10, temperature=0).tokens == [[ids[2:]]]


@pytest.mark.parametrize(("options", "kept"), [
    ({}, lambda p: p), ({"temperature": 0.5}, lambda p: p**2),
    ({"top_k": 3}, lambda p: np.where(p >= np.sort(p)[-3], p, 0)),
    # the fewest of the likeliest tokens that together have 0.9
    ({"top_p": 0.9}, lambda p: np.where(p >= np.sort(p)[::-1][np.searchsorted(np.sort(p)[::-1].cumsum(), 0.9)], p, 0))])
def test_what_is_drawn_has_the_models_probabilities(small, options, kept):
    found = write(small, IDS, [[5, 6, 7]], 2, samples=3000, **options)
    first = kept(following(small, [5, 6, 7]))
    first /= first.sum()
    expected = {}
    for token in np.flatnonzero(first).tolist():
        second = kept(following(small, [5, 6, 7, token]))
        for other in np.flatnonzero(second).tolist():
            text = () if token == END else (token,) if other == END else (token, other)
            expected[text] = expected.get(text, 0) + first[token] * second[other] / second.sum()
    counts = dict.fromkeys(expected, 0)
    for made in found.tokens[0]:
        counts[tuple(made)] += 1  # a KeyError: drawn though it must not be
    common = [text for text in expected if 3000 * expected[text] > 5]
    rest = [3000 - sum(each[text] for text in common) for each in (counts, {k: 3000 * v for k, v in expected.items()})]
    observed, due = ([each[text] for text in common] for each in (counts, {k: 3000 * v for k, v in expected.items()}))
    if rest[1] > 5:
        observed, due = [*observed, rest[0]], [*due, rest[1]]
    due = np.array(due) * sum(observed) / sum(due)
    assert chisquare(observed, due).pvalue > 1e-3  # seeded: one of a thousand seeds would fail


def test_what_is_drawn_hangs_on_the_seed_and_not_on_the_batch(small):
    prompts = [[5, 6], [4], [7, 6, 5, 4, 3]]
    found = [write(small, IDS, prompts, 8, samples=20, batch_size=size) for size in (1, 7, 60)]
    assert found[0].tokens == found[1].tokens == found[2].tokens
    fewer = write(small, IDS, prompts[:2], 8, samples=5)
    assert fewer.tokens == [row[:5] for row in found[0].tokens[:2]]
    assert write(small, IDS, prompts, 8, samples=20, seed=1).tokens != found[0].tokens
    assert len({tuple(made) for made in found[0].tokens[1]}) > 5  # samples of a prompt differ
    shorter = write(small, IDS, prompts, 3, samples=20)
    assert shorter.tokens == [[made[:3] for made in row] for row in found[0].tokens]


def test_random_states_and_the_model_are_left_as_they_were(small):
    small.train()
    small.generation_config = GenerationConfig(repetition_penalty=1.3, eos_token_id=7)
    before, config = torch.get_rng_state(), small.generation_config
    write(small, IDS, [[5, 6]], 4, samples=3)
    write(small, IDS, [[5, 6]], 4, temperature=0)
    assert torch.equal(before, torch.get_rng_state())
    assert small.training and small.generation_config is config
    small.eval()


def test_a_stored_penalty_for_repetition_is_left_out(small):
    plain = write(small, IDS, [[5, 6]], 10, temperature=0).tokens
    small.generation_config = GenerationConfig(repetition_penalty=5.0, suppress_tokens=plain[0][0][:1])
    assert write(small, IDS, [[5, 6]], 10, temperature=0).tokens == plain
    small.generation_config = GenerationConfig()


def test_ends_are_told_from_texts_that_are_cut_off(small):
    found = write(small, IDS, [[5, 6], [4, 3]], 6, samples=200)
    lengths = np.array([[len(made) for made in row] for row in found.tokens])
    assert (lengths[found.ended] < 6).all() and (lengths[~found.ended] == 6).all() and 0 < found.cut_off < 1
    assert not any(END in made for row in found.tokens for made in row)
    # the end as the very first token, and the share cut off, by their probabilities; four standard errors
    p = following(small, [5, 6])[END]
    assert abs((lengths[0] == 0).mean() - p) < 4 * (p * (1 - p) / 200) ** 0.5
    assert found.cut_off == pytest.approx(np.mean(~found.ended))
    assert found.settings == {"tokens": 6, "samples": 200, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0,
                              "end": END}


@pytest.fixture(scope="module")
def worded():
    """A tokenizer, and a model that has seen nothing."""
    tokenizer = train_tokenizer([f"add {a} and {b} is {a + b}" for a, b in product(range(9), repeat=2)], 262,
                                digits=True)
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=262, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=1)).eval()
    return model, tokenizer


def test_prompts_may_be_texts_and_what_is_written_is_read_back(worded):
    model, tokenizer = worded
    prompts = ["add 1 and 2 is ", "add 1"]
    found = write(model, tokenizer, prompts, 4, samples=2)
    ids = tokenizer(prompts)["input_ids"]
    assert found.tokens == write(model, tokenizer, ids, 4, samples=2).tokens
    assert found.texts == [[tokenizer.decode(made) for made in row] for row in found.tokens]


def test_the_probability_of_an_answer_is_that_of_its_tokens_and_the_end(worded):
    model, tokenizer = worded
    found = log_probability(model, tokenizer, ["add 1 and 2 is ", "add 12 and 3"], ["3", " is 15"], batch_size=1)
    for prompt, answer, value in zip(["add 1 and 2 is ", "add 12 and 3"], ["3", " is 15"], found, strict=True):
        ids, due = tokenizer(prompt)["input_ids"], 0.0
        for token in [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]:
            due += np.log(following(model, ids)[token])
            ids = [*ids, token]
        assert value == pytest.approx(due, abs=1e-4)  # float32
    assert log_probability(model, tokenizer, [], []).shape == (0,)


def test_answers_are_drawn_as_often_as_their_probability_says(small):
    """With the tokens themselves as text."""
    ids = SimpleNamespace(**vars(IDS))

    class Tokenizer(SimpleNamespace):
        def __call__(self, texts, **options):
            return {"input_ids": [[int(token) for token in text.split()] for text in texts]}

    tokenizer = Tokenizer(**vars(ids))
    answers = ["", "4", "4 4"]
    p = np.exp(log_probability(small, tokenizer, ["5 6"] * 3, answers))
    drawn = write(small, tokenizer, ["5 6"], 4, samples=2000)
    texts = [text for text, ended in zip(drawn.texts[0], drawn.ended[0], strict=True) if ended]
    for answer, each in zip(answers, p, strict=True):
        assert abs(texts.count(answer) / 2000 - each) < 4 * (each * (1 - each) / 2000) ** 0.5  # standard errors


def without(**changed):
    return SimpleNamespace(**{**vars(IDS), **changed})


@pytest.mark.parametrize(("options", "message"), [
    ({"tokenizer": without(eos_token_id=None)}, "no end token"),
    ({"tokenizer": without(pad_token_id=None)}, "no pad token"),
    ({"tokenizer": without(pad_token_id=END)}, r"pads with its end token \('</s>'\)"),
    ({"prompts": [[5] * 12]}, "a prompt of 12 tokens and 5 more don't fit into the model's context of 16: .* to 11"),
    ({"tokens": 16}, "16 tokens and a prompt don't fit into the model's context of 16"),
    ({"prompts": [[5], []]}, "sequence 1"), ({"prompts": [[8]]}, "vocabulary has 8"),
    ({"tokens": 0}, "tokens must be 1 or more"), ({"temperature": -1}, "temperature must be 0 or more, got -1"),
    ({"top_p": 0}, "top_p in 0 to 1, got 0"), ({"top_k": -1}, "top_k must be 0 or more"),
    ({"temperature": 0, "samples": 2}, "greedy writing .* gives one text"),
    ({"temperature": 0, "top_k": 2}, "no top_p and top_k"), ({"batch_size": 0}, "batch_size must be 1 or more")])
def test_what_cannot_be_written_is_refused(small, options, message):
    asked = {"tokenizer": IDS, "prompts": [[5]], "tokens": 5, **options}
    with pytest.raises(ValueError, match=message):
        write(small, **asked)


def test_models_without_a_head_and_tokenizers_that_end_a_prompt_are_refused(small):
    with pytest.raises(TypeError, match=r"GPTNeoXModel can't write text: .*head=True"):
        write(small.gpt_neox, IDS, [[5]], 5)

    class Ending(SimpleNamespace):
        def __call__(self, texts, **options):
            return {"input_ids": [[5, END] for _ in texts]}

    with pytest.raises(ValueError, match="puts its end token after every text"):
        write(small, Ending(**vars(IDS)), ["a"], 5)
    with pytest.raises(ValueError, match="each prompt has an answer: got 1 and 2"):
        log_probability(small, Ending(**{**vars(IDS), "eos_token_id": 7}), ["a"], ["b", "c"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_write_nothing(small, temperature, value):
    damaged = copy.deepcopy(small)
    with torch.no_grad():
        damaged.get_output_embeddings().weight[3, 0] = value
    with pytest.raises(NonFiniteError, match="a logit is NaN or infinite"):
        write(damaged, IDS, [[5]], 5, temperature=temperature)


def test_no_prompts_give_no_texts(small):
    found = write(small, IDS, [], 5, samples=2)
    assert found.tokens == found.texts == [] and found.ended.shape == (0, 2)
