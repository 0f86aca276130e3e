"""Distributional memorization: joint answer log-probabilities, their rank correlation, suffix lengths.

Trusted: scipy.stats.spearmanr, ranks counted by comparison of every pair, scipy's own bootstrap, the model called on
one unpadded sequence at a time with a log-softmax by hand, and products of exact fractions for the infinity-gram model.
"""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import transformers

from reptrace.memorization.infgram import build_infgram
from reptrace.memorization.questions import (
    Questions,
    encoded,
    infgram_answers,
    memorization,
    model_log_probabilities,
    peak,
    suffix_lengths,
)
from reptrace.texts.corpora import train_tokenizer
from reptrace.texts.token_ids import OtherTokenizerError

PAPER = Path(__file__).parents[2] / "data" / "published" / "paper_tables.csv"


def ranked(values):
    """Mid-ranks by comparison of every pair."""
    return np.array([sum(other < value for other in values) + sum(other == value for other in values) / 2
                     for value in values])


@pytest.fixture
def pairs(rng):
    """Log-probabilities of 200 answers under two models; the second has zeros and ties."""
    model = -rng.gamma(2, 3, 200)
    infgram = np.round(model + rng.normal(0, 3, 200))
    infgram[infgram > 0] = 0
    infgram[(model < -8) & (rng.random(200) < 0.8)] = -np.inf
    return model, infgram


# The correlation


def test_the_correlation_is_that_of_ranks_with_zeros_lowest_and_tied(pairs):
    model, infgram = pairs
    found = memorization(model, infgram, resamples=10)
    assert found.spearman == pytest.approx(np.corrcoef(ranked(model), ranked(infgram))[0, 1], abs=1e-12)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(model, infgram).statistic, abs=1e-12)
    assert (found.items, found.zeros_model, found.zeros_infgram) == (200, 0, np.isinf(infgram).sum())
    assert found.zeros_infgram > 20


def test_zeros_rank_as_any_number_below_all_others_and_never_as_one(pairs):
    model, infgram = pairs
    found = memorization(model, infgram, resamples=10)
    low = np.where(np.isinf(infgram), infgram[np.isfinite(infgram)].min() - 1, infgram)
    assert memorization(model, low, resamples=10).spearman == found.spearman
    replaced = np.where(np.isinf(infgram), 0, infgram)  # what a released script does
    assert memorization(model, replaced, resamples=10).spearman < found.spearman - 0.1


def test_only_order_counts_and_the_two_models_may_be_swapped(pairs, rng):
    model, infgram = pairs
    found = memorization(model, infgram, resamples=100)
    order = rng.permutation(200)
    assert memorization(model[order], infgram[order], resamples=1).spearman == pytest.approx(found.spearman, abs=1e-12)
    assert memorization(infgram, model, resamples=1).spearman == pytest.approx(found.spearman, abs=1e-12)
    stretched = memorization(-np.exp(-model), 2 * infgram - 1, resamples=100)
    assert stretched.spearman == pytest.approx(found.spearman, abs=1e-12)
    assert (stretched.low, stretched.high) == pytest.approx((found.low, found.high), abs=1e-12)


def test_the_same_order_has_correlation_one_and_the_opposite_minus_one():
    values = np.array([-np.inf, -5, -4, -3, -1, 0])
    assert memorization(values, values - 7, resamples=50).spearman == pytest.approx(1, abs=1e-12)
    found = memorization([-9, -2, -3, -4, -6, -7], [-8, -60, -30, -20, -11, -9], resamples=50)
    assert (found.spearman, found.low, found.high) == pytest.approx((-1, -1, -1), abs=1e-12)


def test_the_interval_is_that_of_scipys_bootstrap(pairs):
    found = memorization(*pairs, level=0.9)
    theirs = scipy.stats.bootstrap(pairs, lambda x, y: scipy.stats.spearmanr(x, y).statistic, paired=True,
                                   vectorized=False, n_resamples=1000, method="percentile", confidence_level=0.9,
                                   rng=np.random.default_rng(1)).confidence_interval
    # Other draws: a 5 % quantile of 1000 numbers with standard deviation 0.05 has a standard error of 0.0034
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.02)
    assert found.low < found.spearman < found.high


def test_the_interval_is_the_same_for_a_seed_and_narrows_with_items(pairs, rng):
    found = memorization(*pairs, resamples=400, seed=3)
    assert memorization(*pairs, resamples=400, seed=3) == found != memorization(*pairs, resamples=400, seed=4)
    more = memorization(*(np.tile(values, 16) for values in pairs), resamples=400, seed=3)
    assert more.spearman == pytest.approx(found.spearman, abs=1e-12)
    # 16 times the items: a quarter of the width; quantiles of 400 resamples are right to a tenth or so
    assert (more.high - more.low) / (found.high - found.low) == pytest.approx(0.25, rel=0.25)


def test_resamples_without_ranks_are_left_out():
    found = memorization([-1, -2, -3, -4], [-np.inf, -np.inf, -np.inf, -1], resamples=500)
    # (3/4)^4, a third, of the resamples miss the only answer with another probability
    assert -1 <= found.low <= found.high <= 1


@pytest.mark.parametrize(("model", "infgram", "message"), [
    ([-1, math.nan, -2], [-1, -2, -3], "item 1 under the model is nan"),
    ([-1, -3, -2], [-1, -2, math.nan], "item 2 under the infinity-gram model is nan"),
    ([-1, 0.5, -2], [-1, -2, -3], "item 1 has 0.5 under the model.*Are these probabilities"),
    ([-1, -2, -3], [-1, math.inf, -3], "item 1 has inf"),
    ([-1, -2], [-1, -2], "three items.* got 2 and 2"), ([-1, -2, -3], [-1, -2, -3, -4], "got 3 and 4"),
    ([-1, -2, -3], [-math.inf] * 3, "all 3 answers have log-probability -inf under the infinity-gram"),
    ([-2, -2, -2], [-1, -2, -3], "all 3 answers have log-probability -2 under the model"),
    ([[-1, -2, -3]], [-1, -2, -3], "array of 2 axes")])
def test_what_has_no_correlation_is_refused(model, infgram, message):
    with pytest.raises(ValueError, match=message):
        memorization(model, infgram)


def test_a_level_that_is_none_is_refused(pairs):
    for options in ({"level": 95}, {"level": 0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="level is a share"):
            memorization(*pairs, **options)


# Answers under the infinity-gram model


@pytest.fixture
def infgram(tmp_path):
    stream = [5, 6, 7, 0, 5, 6, 8, 0, 9, 5, 6, 8, 0]
    return build_infgram(stream, tmp_path / "i", separator=0, vocabulary=16, corpus="c", tokenizer="t", progress=False)


def test_a_joint_probability_is_the_product_of_the_tokens(infgram):
    prompts, answers = [[9], [5], [], [3], [9, 5]], [[5, 6, 8], [6, 7], [5], [6, 8], [6, 7]]
    found = infgram_answers(infgram, prompts, answers)
    # 13 tokens and ends. 5 follows 9 always; 6 follows 5 always; 8 follows "5 6" twice in three, and "9 5 6" always
    expected = [Fraction(1), Fraction(1, 3), Fraction(3, 13), Fraction(3, 13) * Fraction(2, 3), Fraction(0)]
    assert np.exp(found.log_probability).tolist() == pytest.approx([float(product) for product in expected], rel=1e-12)
    assert np.isneginf(found.log_probability).tolist() == [False] * 4 + [True]
    assert found.item.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert found.length.tolist() == [1, 2, 3, 1, 2, 0, 0, 1, 2, 3]
    assert found.token_log_probability.shape == (10,)


def test_a_joint_probability_is_zero_or_the_count_of_suffix_and_answer_over_that_of_the_suffix(tmp_path, rng):
    # A token that follows the suffix makes a suffix one longer, so the product telescopes.
    letters = rng.integers(1, 6, 3000)
    model = build_infgram(letters, tmp_path / "i", separator=0, vocabulary=8, corpus="c", tokenizer="t", progress=False)
    starts = rng.integers(0, 2900, 100)
    prompts = [rng.integers(1, 6, 3).tolist() + letters[start : start + 9].tolist() for start in starts]
    answers = [letters[start + 9 : start + 9 + rng.integers(1, 9)].tolist() for start in starts]
    answers[::3] = [rng.integers(1, 6, len(answer)).tolist() for answer in answers[::3]]
    found = infgram_answers(model, prompts, answers)
    lengths, counts = model.longest_suffix(prompts)
    whole = [prompt[len(prompt) - length :] + answer
             for prompt, length, answer in zip(prompts, lengths, answers, strict=True)]
    reached, both = model.longest_suffix(whole)
    occurs = reached == [len(tokens) for tokens in whole]
    assert occurs.sum() > 60 and (~occurs).sum() > 10
    assert np.array_equal(np.isneginf(found.log_probability), ~occurs)
    assert np.exp(found.log_probability[occurs]) == pytest.approx((both / counts)[occurs], rel=1e-12)


def test_an_item_without_answer_tokens_is_refused(infgram):
    with pytest.raises(ValueError, match="answer of item 1 has no tokens"):
        infgram_answers(infgram, [[5], [5]], [[6], []])
    with pytest.raises(ValueError, match="got 1 and 2"):
        infgram_answers(infgram, [[5]], [[6], [6]])
    with pytest.raises(OtherTokenizerError):
        infgram_answers(infgram, [[5]], [[16]])


# Answers under a language model


def neox():
    config = transformers.GPTNeoXConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=64, max_position_embeddings=64)
    return transformers.GPTNeoXForCausalLM(config)


def openai_gpt():  # cannot leave out logits
    config = transformers.OpenAIGPTConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return transformers.OpenAIGPTLMHeadModel(config)


def one_by_one(model, prompt, answer, shift=1):
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
    total = 0.0
    for k, token in enumerate(answer):
        row = logits[len(prompt) + k - shift]
        total += float(row[token] - torch.log(torch.exp(row - row.max()).sum()) - row.max())
    return total


@pytest.fixture(scope="module", params=[neox, openai_gpt])
def model(request):
    torch.manual_seed(0)
    made = request.param().eval()
    with torch.no_grad():  # far from uniform, so that a wrong position shows
        for parameter in made.parameters():
            parameter.mul_(4)
    return made


@pytest.fixture
def items(rng):
    lengths = [(1, 1), (1, 12), (30, 1), *zip(rng.integers(1, 40, 30), rng.integers(1, 20, 30), strict=True)]
    return ([rng.integers(0, 97, prompt).tolist() for prompt, _ in lengths],
            [rng.integers(0, 97, answer).tolist() for _, answer in lengths])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_are_scored_as_one_by_one(model, items, batch_size):
    found = model_log_probabilities(model, *items, batch_size=batch_size, progress=False)
    expected = [one_by_one(model, prompt, answer) for prompt, answer in zip(*items, strict=True)]
    # float32 with other shapes: some 1e-6 a logit, of which there are up to 20, with values up to hundreds
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    own = [one_by_one(model, prompt, answer, shift=0) for prompt, answer in zip(*items, strict=True)]
    assert np.abs(found - own).min() > 0.01  # scoring each token by its own position's logits would show
    assert (found <= 0).all() and found.dtype == np.float64


def test_an_answer_whose_probability_is_below_the_least_double_keeps_its_logarithm():
    model = neox().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(300)
    prompt, answer = [1], list(range(60))
    (found,) = model_log_probabilities(model, [prompt], [answer], progress=False)
    assert -math.inf < found < math.log(5e-324)
    assert found == pytest.approx(one_by_one(model, prompt, answer), rel=1e-5)  # float32


def test_an_answer_is_no_part_of_the_prompt_wherever_its_tokens_stand_there(model):
    prompts, answers = [[5, 6, 7, 5, 6], [6, 6]], [[5, 6], [6]]
    found = model_log_probabilities(model, prompts, answers, progress=False)
    expected = [one_by_one(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_the_probabilities_of_all_answers_of_one_token_sum_to_one(model):
    found = model_log_probabilities(model, [[3, 4, 5]] * 97, [[token] for token in range(97)], progress=False)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)  # float32


def test_the_model_is_left_as_it_was(items):
    model = neox().train()
    model_log_probabilities(model, *items, progress=False)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("prompts", "answers", "message"), [
    ([[]], [[5]], "prompt of item 0 is empty"), ([[1], [1]], [[1], []], "answer of item 1 has no tokens"),
    ([[1]], [[1], [2]], "got 1 and 2"), ([], [], "got 0 and 0"), ([[1]], [[97]], "97 is outside of the vocabulary"),
    ([[1] * 60], [[1] * 5], "65 tokens, the model's context is 64")])
def test_what_the_model_cannot_score_is_refused(prompts, answers, message):
    with pytest.raises(ValueError, match=message):
        model_log_probabilities(neox(), prompts, answers)


def test_a_model_without_head_and_one_that_overflows_are_refused(items):
    with pytest.raises(ValueError, match="GPTNeoXModel has no language-model head"):
        model_log_probabilities(neox().base_model, *items, progress=False)
    model = neox()
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"item 0 is nan.*try float32"):
        model_log_probabilities(model, *items, progress=False)


# Suffix lengths


def test_suffix_lengths_are_counted_in_the_rows_of_table_7():
    lengths = [0, 1, 3, 3, 4, 4, 4, 5, 8, 8, 9, 30]
    table = suffix_lengths(lengths)
    assert table.length.tolist() == ["<=3", "4", "5", "6", "7", "8", ">8"]
    assert table.lookups.tolist() == [4, 3, 1, 0, 0, 2, 2]
    assert table.percent.tolist() == pytest.approx([400 / 12, 25, 100 / 12, 0, 0, 200 / 12, 200 / 12], abs=1e-12)
    published = pd.read_csv(PAPER).query("table == 7")
    assert table.quantity.tolist() == published.quantity.tolist()
    with pytest.raises(ValueError, match="no lookups"):
        suffix_lengths([])


# Where it peaks


def along(rng, strengths, items=400):
    """Log-probabilities that correlate with a reference as strongly as is said, checkpoint by checkpoint."""
    reference = rng.normal(size=items)
    noise = rng.normal(size=(len(strengths), items))
    models = np.array([strength * reference + np.sqrt(1 - strength**2) * each
                       for strength, each in zip(strengths, noise, strict=True)])
    return models - 20, reference - 20


def test_the_peak_is_the_checkpoint_with_the_highest_correlation_of_scipy():
    models, reference = along(np.random.default_rng(0), [0.0, 0.3, 0.8, 0.5])
    found = peak([0, 10, 20, 30], models, reference)
    each = [scipy.stats.spearmanr(model, reference).statistic for model in models]
    assert found.tokens == 20 and found.value == pytest.approx(max(each))
    assert found.rise[0] == pytest.approx(each[2] - each[0]) and found.fall[0] == pytest.approx(each[3] - each[2])
    assert found.low == found.high == 20  # 0.3 apart, with a standard error of 0.04
    assert found.rise[1] > 0 and found.fall[2] < 0


def test_the_interval_of_a_peak_holds_the_true_one_about_as_often_as_it_says():
    tokens, held = np.arange(1, 6), 0
    for seed in range(40):
        models, reference = along(np.random.default_rng(seed), [0.1, 0.5, 0.56, 0.52, 0.3], items=150)
        found = peak(tokens, models, reference, resamples=100, seed=seed)
        held += found.low <= 3 <= found.high
    assert held >= 34  # 38 of 40 expected at 95 %; fewer than 34 happen with a probability of 0.003


def test_a_peak_needs_one_row_of_items_for_each_checkpoint():
    with pytest.raises(ValueError, match=r"shape \(checkpoints, items\).*got \(2, 5\) for 3 checkpoints"):
        peak([1, 2, 3], np.zeros((2, 5)), np.zeros(5))


def test_prompts_and_answers_are_tokenized_whole_whatever_the_tokenizer_stores():
    prompts, answers = ["the cat sat on a mat", "one"], [" and ran", " two"]
    plain = train_tokenizer([*prompts, *answers], 270)
    expected = tuple(plain(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    plain.backend_tokenizer.enable_truncation(2, direction="left")
    plain.backend_tokenizer.enable_padding(length=9, pad_id=1, pad_token="<|padding|>")
    before = plain.backend_tokenizer.to_str()
    assert encoded(plain, prompts, answers) == expected and plain.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(("prompts", "answers", "told"), [("one", [" two"], "prompts must be a list of strings"),
                                                          (["one"], " two", "answers must be a list of strings"),
                                                          (["one"], [3], r"answers\[0\] is int 3")])
def test_questions_are_lists_of_texts(prompts, answers, told):
    with pytest.raises(TypeError, match=told):
        Questions("recall", prompts, answers, np.zeros(1), "made")
