"""Distributional memorization: does a model find those answers likely that its training text makes likely?

Wang et al. 2025: the Spearman correlation, over the items of a task, between the joint probability of an answer's
tokens under the model and under the infinity-gram model of its training text; logarithms throughout:

    ln P(answer | prompt) = sum over k of ln P(a_k | prompt a_1 .. a_{k-1}).

Prompts and answers are token ids, tokenized apart and joined as ids: an answer is never looked for in a text. Zeros
stay zeros: an answer with a token that never stands there in the training text has log-probability -inf under the
infinity-gram model, and ranks below all others, tied with its like.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reptrace.texts.given import as_texts
from reptrace.texts.probes import first_tokens
from reptrace.texts.token_ids import reading_fingerprint

_encoded: dict[tuple[str, str], tuple] = {}  # of this process: the checkpoints of a suite ask the same in the same ids
SHORT, LONG = 3, 8  # tokens: the paper's Table 7 has one row for lengths up to SHORT and one for those above LONG


@dataclass(frozen=True)
class Memorization:
    """Spearman correlation over items with its bootstrap interval; `zeros_*`: items with probability zero."""

    spearman: float
    low: float
    high: float
    items: int
    zeros_model: int
    zeros_infgram: int
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Answers:
    """Joint log-probability of each answer (items,), and suffix length and log-probability of each of its tokens.

    `length` and `token_log_probability` have shape (tokens of all answers,), item after item; `item` says whose.
    """

    log_probability: np.ndarray
    item: np.ndarray
    length: np.ndarray
    token_log_probability: np.ndarray


@dataclass(frozen=True, eq=False)
class Questions:
    """Questions, and how likely their answers are after the training text alone.

    Parameters
    ----------
    task : str
        What it is called in tables.
    prompts, answers : sequences of str
        An answer begins with the space that stands before it.
    reference : (items,) floats
        ln P of each answer under the infinity-gram model, see `infgram_answers`.
    source : str
        Which infinity-gram model.
    """

    task: str
    prompts: Sequence[str]
    answers: Sequence[str]
    reference: np.ndarray
    source: str

    def __post_init__(self):
        for name in ("prompts", "answers"):
            object.__setattr__(self, name, as_texts(getattr(self, name), name))

    @property
    def fingerprint(self) -> str:
        facts = [self.task, list(self.prompts), list(self.answers), np.asarray(self.reference).tolist(), self.source]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def memorization(self, model, tokenizer, batch_size: int, progress: bool = False) -> dict:
        """Distributional memorization of a transformers causal LM, as a row like those of `evaluation.evaluate`:
        `value` is Spearman's correlation, `low` and `high` its 95 % interval over items, `items` each answer's ln P."""
        key = self.fingerprint, reading_fingerprint(tokenizer)
        if key not in _encoded:
            _encoded.clear()  # those of one tokenizer at a time
            _encoded[key] = encoded(tokenizer, self.prompts, self.answers)
        joint = model_log_probabilities(model, *_encoded[key], batch_size, progress)
        found = memorization(joint, self.reference)
        return {"task": self.task, "metric": "spearman", "filter": "none", "value": found.spearman, "low": found.low,
                "high": found.high, "samples": found.items, "zeros_model": found.zeros_model,
                "zeros_infgram": found.zeros_infgram, "resamples": found.resamples, "items": joint.tolist()}


def encoded(tokenizer, prompts: Sequence[str], answers: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and of answers, each tokenized by itself, without special tokens."""
    return tuple(first_tokens(tokenizer, texts) for texts in (prompts, answers))


def memorization(model, infgram, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Memorization:
    """Correlation of joint answer log-probabilities under a model and under the infinity-gram model.

    Parameters
    ----------
    model, infgram : (items,) floats
        Natural logarithms of the probabilities of the same answers; -inf for zero.
    resamples : int, default 1000
        Of the items, with replacement. The few in which all answers tie have no correlation and are left out.
    level : float, default 0.95
        Share of the resampled correlations between `low` and `high` (percentile bootstrap).
    seed : int, default 0

    Raises
    ------
    ValueError
        nan; numbers that are no log-probabilities; fewer than three items; all answers tied.
    """
    model, infgram = _log_probabilities(model, "the model"), _log_probabilities(infgram, "the infinity-gram model")
    if len(model) != len(infgram) or len(model) < 3:
        raise ValueError("at least three items are needed, the same ones under both models: got "
                         f"{len(model)} and {len(infgram)}.")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level is a share between 0 and 1 and resamples positive, got {level} and {resamples}.")
    for values, name in ((model, "the model"), (infgram, "the infinity-gram model")):
        if (values == values[0]).all():
            raise ValueError(f"all {len(values)} answers have log-probability {values[0]:.4g} under {name}: there are "
                             "no ranks to correlate. Take more items, or shorter answers.")
    rng = np.random.default_rng(seed)
    ranked = _Ranked(model), _Ranked(infgram)
    resampled = np.array([_spearman(*(each.ranks(weights) for each in ranked), weights)
                          for weights in _draws(rng, len(model), resamples)])
    resampled = resampled[~np.isnan(resampled)]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2]) if len(resampled) else (np.nan, np.nan)
    zeros = (int(np.isneginf(values).sum()) for values in (model, infgram))
    ones = np.ones(len(model))
    whole = _spearman(*(each.ranks(ones) for each in ranked), ones)
    return Memorization(whole, float(low), float(high), len(model), *zeros, level, resamples, seed)


@dataclass(frozen=True, eq=False)
class Peak:
    """Where memorization is highest along a run.

    `tokens`: training tokens there, with the interval `low` to `high` that holds it in 95 of 100 resamples of the
    items, all of which are in `resampled`; `value`: Spearman's correlation there. `rise`: that over the first
    checkpoint's, `fall`: the last checkpoint's over that, differences with intervals (value, low, high).
    """

    tokens: float
    low: float
    high: float
    value: float
    rise: tuple[float, float, float]
    fall: tuple[float, float, float]
    resampled: np.ndarray

    def share_after(self, low: float, high: float) -> float:
        """In how many resamples (0 to 1) the peak comes after something that lies between low and high tokens, anywhere
        with the same probability on a log scale: above 0.975, it comes after; below 0.025, before."""
        with np.errstate(divide="ignore"):
            return float(np.clip(np.log(self.resampled / low) / np.log(high / low), 0, 1).mean())


def peak(tokens, models, reference, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Peak:
    """Where along a run memorization peaks, by a bootstrap that draws the same items for all checkpoints.

    Parameters
    ----------
    tokens : (checkpoints,) floats, increasing
    models : (checkpoints, items) floats, ln P of the answers under each checkpoint
    reference : (items,) floats, ln P under the infinity-gram model
    resamples, level, seed : see `memorization`

    The fall is from the highest of several noisy values, so it is biased down a little even where nothing falls: an
    upper end of its interval far below 0 counts, one just below does not.
    """
    tokens, models = np.asarray(tokens, float), np.asarray(models, float)
    if models.shape != (len(tokens), len(reference)) or len(tokens) < 2:
        raise ValueError("models must have shape (checkpoints, items), with two checkpoints or more: got "
                         f"{models.shape} for {len(tokens)} checkpoints and {len(reference)} items.")
    ranked, known = [_Ranked(model) for model in models], _Ranked(np.asarray(reference, float))
    draws = [np.ones(len(reference)), *_draws(np.random.default_rng(seed), len(reference), resamples)]
    found = np.empty((len(draws), len(ranked)))
    for row, weights in zip(found, draws, strict=True):
        theirs = known.ranks(weights)  # the same for all checkpoints
        row[:] = [_spearman(model.ranks(weights), theirs, weights) for model in ranked]
    # A model that ties all answers has no correlation, and no peak.
    at = np.argmax(np.nan_to_num(found, nan=-np.inf), axis=1)
    highest = found[np.arange(len(found)), at]
    sides = [(1 - level) / 2, (1 + level) / 2]

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        return float(values[0]), *map(float, np.nanquantile(values[1:], sides))

    low, high = np.quantile(tokens[at[1:]], sides, method="inverted_cdf")
    return Peak(float(tokens[at[0]]), float(low), float(high), float(highest[0]), interval(highest - found[:, 0]),
                interval(found[:, -1] - highest), tokens[at[1:]])


def infgram_answers(infgram, prompts: Sequence, answers: Sequence) -> Answers:
    """Log-probabilities of answers under an infinity-gram model, and the suffix lengths it used.

    Parameters
    ----------
    infgram : InfinityGram or WebInfinityGram
    prompts, answers : sequences of token-id sequences, item by item
        In the ids of the infinity-gram model's tokenizer. A prompt may be empty, an answer may not.
    """
    _check_items(prompts, answers)
    item = np.repeat(np.arange(len(answers)), list(map(len, answers)))
    contexts = [[*prompt, *answer[:k]] for prompt, answer in zip(prompts, answers, strict=True)
                for k in range(len(answer))]
    found = infgram.next_token(contexts, [token for answer in answers for token in answer])
    each = found.log_probability
    joint = np.zeros(len(answers))
    np.add.at(joint, item, each)
    return Answers(joint, item, found.length, each)


def model_log_probabilities(model, prompts: Sequence, answers: Sequence, batch_size: int = 16,
                            progress: bool = True) -> np.ndarray:
    """Joint log-probabilities of answers under a transformers causal language model: (items,) float64.

    Parameters
    ----------
    model : PreTrainedModel with a language-model head, where it is and in its own dtype
    prompts, answers : sequences of token-id sequences, item by item
        In the ids of the model's tokenizer; none may be empty, because the logits that score a token stand at the
        position before it.
    batch_size : int, default 16
        Items that pass through together, those of like length; the logits of all their tokens are held at once.
    progress : bool, default True

    Raises
    ------
    ValueError
        No language-model head, ids outside of its vocabulary, an item longer than its context, an empty prompt or
        answer, or log-probabilities that are nan: the message says which.
    """
    from reptrace.models.scoring import score

    sequences = _joined(model, prompts, answers)
    joint = score(model, sequences, list(map(len, prompts)), batch_size, progress).log_probability
    if np.isnan(joint).any():
        raise ValueError(f"the log-probability of item {np.flatnonzero(np.isnan(joint))[0]} is nan: the model "
                         f"overflows in {next(model.parameters()).dtype}; try float32 or bfloat16.")
    return joint


def suffix_lengths(lengths) -> pd.DataFrame:
    """How long the suffixes were that lookups used, as in the paper's Table 7.

    Columns: `length` ("<=3", "4", ..., "8", ">8"), `quantity` (its name in data/published/paper_tables.csv), `lookups`
    and `percent`.
    """
    lengths = np.asarray(lengths)
    if not len(lengths):
        raise ValueError("there are no lookups to make a table of.")
    row = np.clip(lengths, SHORT, LONG + 1) - SHORT
    lookups = np.bincount(row, minlength=LONG - SHORT + 2)
    between = list(map(str, range(SHORT + 1, LONG + 1)))
    names = [f"le{SHORT}", *between, f"gt{LONG}"]
    return pd.DataFrame({"length": [f"<={SHORT}", *between, f">{LONG}"],
                         "quantity": [f"suffix_len_{name}_percent" for name in names],
                         "lookups": lookups, "percent": 100 * lookups / len(lengths)})


def _log_probabilities(values, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"one number an item is needed under {name}, got an array of {values.ndim} axes.")
    if np.isnan(values).any():
        raise ValueError(f"the log-probability of item {np.flatnonzero(np.isnan(values))[0]} under {name} is nan.")
    if (values > 1e-6).any():  # a rounded 0 is let through
        raise ValueError(f"item {values.argmax()} has {values.max():.4g} under {name}: log-probabilities are at most "
                         "0. Are these probabilities?")
    return values


class _Ranked:
    """Numbers whose ranks, ties at their mean, are asked for many resamples: sorted once."""

    def __init__(self, values: np.ndarray):
        _, self.group = np.unique(values, return_inverse=True)

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Rank of each value in the resample that holds it `weights` times."""
        times = np.bincount(self.group, weights)
        return (np.cumsum(times) - (times - 1) / 2)[self.group]


def _draws(rng: np.random.Generator, size: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each item is in each resample."""
    return (np.bincount(rng.integers(size, size=size), minlength=size).astype(float) for _ in range(resamples))


def _spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """As scipy.stats.spearmanr of a resample, from its ranks; nan where x or y are all tied."""
    x, y = (ranks - (weights.sum() + 1) / 2 for ranks in (x, y))
    scale = np.sqrt(weights @ x**2) * np.sqrt(weights @ y**2)
    return float(np.clip((weights * x) @ y / scale, -1, 1)) if scale else np.nan


def _check_items(prompts: Sequence, answers: Sequence) -> None:
    if len(prompts) != len(answers) or not len(answers):
        raise ValueError(f"a prompt for each answer is needed, got {len(prompts)} and {len(answers)}.")
    for item, answer in enumerate(answers):
        if not len(answer):
            raise ValueError(f"the answer of item {item} has no tokens.")


def _joined(model, prompts: Sequence, answers: Sequence) -> list[np.ndarray]:
    """Prompt and answer of each item as one array of ids, checked against what the model takes."""
    from reptrace.models.positions import context, text_config
    from reptrace.texts.token_ids import checked_ids

    _check_items(prompts, answers)
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM.")
    longest, vocabulary = context(model.config), text_config(model.config).vocab_size
    joined = []
    for item, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if not len(prompt):
            raise ValueError(f"the prompt of item {item} is empty, and nothing stands before the answer to predict it: "
                             "put the beginning-of-text token there.")
        ids = checked_ids([*prompt, *answer], vocabulary)
        if longest and len(ids) > longest:
            raise ValueError(f"item {item} has {len(ids)} tokens, the model's context is {longest}: shorten the "
                             "prompt.")
        joined.append(ids)
    return joined
