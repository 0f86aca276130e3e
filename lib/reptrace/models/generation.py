"""Text that a model writes, greedily or drawn, by its own `generate`; and how likely a given answer is.

What is drawn is the same whatever the batch: the k-th sample of the n-th prompt has numbers of its own, a uniform one a
token, from the seed, n and k, and a token is where such a number falls among the probabilities, laid end to end. So
torch's random state is neither used nor changed, and a text depends on its batch, and on the machine, by rounding
alone: where a number lies within 1e-6 or so of the border between two tokens. Temperature, top_k and top_p are
transformers' own; what a model's stored generation config asks for besides (a penalty for repetition, say) is left out,
as it would be a part of what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from reptrace.models import batches
from reptrace.models.decoders import devices_of, vocabulary
from reptrace.models.hidden_states import NonFiniteError
from reptrace.models.independence import passes_alone
from reptrace.models.modes import evaluating
from reptrace.models.positions import context, rotaries
from reptrace.models.scoring import score
from reptrace.support import arguments
from reptrace.texts.given import as_texts
from reptrace.texts.token_ids import checked_sequences

BATCH = 128  # sequences
UNMASKED = ("rwkv",)  # model types that read their padding as text: prompts of one length alone share a batch


@dataclass(frozen=True)
class Written:
    """What was written after each prompt, several samples of each.

    Parameters
    ----------
    tokens : by prompt and sample, the token ids up to the end token, without it
    texts : the same as text, special tokens included
    ended : bool, shape (prompts, samples), whether the end token came, or the text was cut off
    settings : how it was written, plain values for a record
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    ended: np.ndarray
    settings: dict

    @property
    def cut_off(self) -> float:
        """Share of texts without an end."""
        return float(1 - self.ended.mean())


def write(model: nn.Module, tokenizer, prompts: Sequence, tokens: int, samples: int = 1, temperature: float = 1.0,
          top_p: float = 1.0, top_k: int = 0, seed: int = 0, batch_size: int = BATCH) -> Written:
    """Let a model go on after each prompt, until its tokenizer's end token or so many tokens.

    Prompts of like length share a batch, padded on the left.

    Parameters
    ----------
    model : transformers causal LM, on its device
    tokenizer : its own, with an end token and a pad token that is another
    prompts : texts, or sequences of token ids
    tokens : int, to write at most; with a prompt they must fit the model's context
    samples : int, default 1, of each prompt
    temperature : float, default 1; 0: greedy, the likeliest token each time, which gives one sample
    top_p, top_k : as of transformers; by default off (1 and 0)
    seed : int, default 0
    batch_size : int, sequences

    Raises
    ------
    TypeError
        The model can't generate.
    ValueError
        Settings out of bounds; a tokenizer without such tokens, or that ends a prompt by itself; a prompt that is too
        long, empty, or of other ids than the model's.
    """
    check_can_write(model, tokenizer)
    tokens, samples = arguments.whole(tokens, "tokens"), arguments.whole(samples, "samples")
    seed, top_k = arguments.whole(seed, "seed", 0), arguments.whole(top_k, "top_k", 0)
    batch_size = arguments.whole(batch_size, "batch_size")
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be 0 or more, got {temperature}, and top_p in 0 to 1, got {top_p}.")
    if temperature == 0 and (samples > 1 or top_p < 1 or top_k):
        raise ValueError("greedy writing (temperature 0) gives one text: no further samples, no top_p and top_k.")
    read = _read(model, tokenizer, prompts, tokens)
    rows = [prompt for prompt in read for _ in range(samples)]
    drawn = None if temperature == 0 else np.array(
        [np.random.default_rng([seed, row, sample]).random(tokens) for row in range(len(read))
         for sample in range(samples)])
    warpers = [] if drawn is None else _warpers(temperature, top_p, top_k)
    found = _generated(model, tokenizer, rows, tokens, warpers, drawn, batch_size)
    cut = [_until(row, tokenizer.eos_token_id) for row in found]
    ended = np.array([len(own) < len(row) for own, row in zip(cut, found, strict=True)], bool)
    texts = [tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False) for row in cut]
    settings = {"tokens": tokens, "samples": samples, "temperature": temperature, "top_p": top_p, "top_k": top_k,
                "seed": None if drawn is None else seed, "end": tokenizer.eos_token_id}
    starts = range(0, len(rows), samples)
    return Written([cut[start : start + samples] for start in starts], [texts[start : start + samples]
                   for start in starts], ended.reshape(len(read), samples), settings)


def log_probability(model: nn.Module, tokenizer, prompts: Sequence[str], answers: Sequence[str],
                    batch_size: int = BATCH) -> np.ndarray:
    """Log-probability (nats) that a model writes each answer and then the end token, shape (prompts,), float64.

    Exact, from one pass that reads the answer: how often `write` gives this text at temperature 1, where no other
    tokens spell it; of a given spelling in tokens otherwise.
    """
    _check_tokenizer(tokenizer)
    read = _read(model, tokenizer, as_texts(prompts, "prompts"), 1)
    given = tokenizer(as_texts(answers, "answers"), add_special_tokens=False)["input_ids"] if len(answers) else []
    if len(read) != len(given):
        raise ValueError(f"each prompt has an answer: got {len(read)} and {len(given)}.")
    sequences = [[*prompt, *answer, tokenizer.eos_token_id] for prompt, answer in zip(read, given, strict=True)]
    return score(model, sequences, [len(prompt) for prompt in read], batch_size).log_probability


def check_can_write(model: nn.Module, tokenizer) -> None:
    """TypeError unless a model can generate; ValueError unless its tokenizer has an end and a pad token, which differ.
    """
    _check_model(model)
    _check_tokenizer(tokenizer)


def _check_model(model: nn.Module) -> None:
    can = getattr(model, "can_generate", None)
    if can is None or not can():
        raise TypeError(f"{type(model).__name__} can't write text: open the model with its language-modelling head "
                        "(AutoModelForCausalLM; reptrace.models.loading.load(..., head=True)).")


def _check_tokenizer(tokenizer) -> None:
    """ValueError unless there are an end token and a pad token, which differ."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for name, token in (("end", end), ("pad", pad)):
        if token is None:
            raise ValueError(f"the tokenizer has no {name} token, without which it can't be told where a text ends: "
                             f"name one, tokenizer.{'eos' if name == 'end' else 'pad'}_token = ..., that is in its "
                             "vocabulary.")
    if end == pad:
        raise ValueError(f"the tokenizer pads with its end token ({tokenizer.eos_token!r}): an end that was written "
                         "and padding look alike, and a training that masks padding never teaches the end. Give it a "
                         "pad token of its own.")


def _read(model: nn.Module, tokenizer, prompts: Sequence, tokens: int) -> list[list[int]]:
    """Token ids of prompts after which so many tokens still fit."""
    reach = context(model.config)
    if reach is not None and tokens >= reach:
        raise ValueError(f"{tokens} tokens and a prompt don't fit into the model's context of {reach}.")
    texts = len(prompts) and isinstance(prompts[0], str)
    found = tokenizer(as_texts(prompts, "prompts"))["input_ids"] if texts else prompts
    longest = max(map(len, found), default=0)
    if reach is not None and longest + tokens > reach:
        raise ValueError(f"a prompt of {longest} tokens and {tokens} more don't fit into the model's context of "
                         f"{reach}: ask for fewer tokens, or cut the prompt to {reach - tokens}.")
    found = [each.tolist() for each in checked_sequences(found, vocabulary(model), None)] if len(found) else []
    if texts and any(each[-1] == tokenizer.eos_token_id for each in found):
        raise ValueError("the tokenizer puts its end token after every text, where the model is to go on: pass token "
                         "ids, tokenizer(prompts, add_special_tokens=False)['input_ids'].")
    return found


def _generated(model: nn.Module, tokenizer, rows: Sequence[list[int]], tokens: int, warpers: Sequence[LogitsProcessor],
               drawn: np.ndarray | None, batch_size: int) -> list[list[int]]:
    """What follows each row, in batches: as many tokens as its batch took, padding after the end included."""
    found, lengths = [[]] * len(rows), list(map(len, rows))
    if not rows:
        return found
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, num_beams=1, use_cache=True,
                                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    device = devices_of(model)[0]
    with torch.inference_mode(), evaluating(model), _plain(model), rotaries(model) as rotary:
        size = 1 if passes_alone(model, [np.array(row) for row in rows], rotary) else batch_size
        apart = bool(rotary) or model.config.model_type in UNMASKED  # angles by length would count the padding
        for part in batches.of_size(lengths, size, lambda length: length if apart else 0):
            rotary.reset()
            longest = max(lengths[row] for row in part)
            ids = torch.tensor([[tokenizer.pad_token_id] * (longest - lengths[row]) + rows[row] for row in part])
            mask = torch.arange(longest) >= longest - torch.tensor([lengths[row] for row in part])[:, None]
            chain = [_Known(), *([] if drawn is None else [*warpers, _Drawn(drawn[part], longest)])]
            made = model.generate(ids.to(device), attention_mask=mask.long().to(device), generation_config=settings,
                                  logits_processor=LogitsProcessorList(chain))
            for row, new in zip(part, made[:, longest:].tolist(), strict=True):
                found[row] = new
    return found


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Without the model's stored generation config, which `generate` would add to what it is told."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _warpers(temperature: float, top_p: float, top_k: int) -> list[LogitsProcessor]:
    """transformers' own, in its order."""
    found = [] if temperature == 1 else [TemperatureLogitsWarper(float(temperature))]
    found += [TopKLogitsWarper(top_k)] if top_k else []
    return found + ([TopPLogitsWarper(float(top_p))] if top_p < 1 else [])


class _Known(LogitsProcessor):
    """Refuses logits that choose nothing: of NaN the likeliest token is just some token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(scores.amax(-1)).all():
            raise NonFiniteError("a logit is NaN or infinite: damaged weights, or numbers too large for the dtype.")
        return scores


class _Drawn(LogitsProcessor):
    """Leaves to each row the one token on which its number falls.

    Parameters
    ----------
    numbers : shape (rows, tokens), in 0 to 1, of which the n-th decides the n-th token
    start : tokens of a row before the first that is written
    """

    def __init__(self, numbers: np.ndarray, start: int):
        self.numbers, self.start = numbers, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = scores.double().softmax(-1).cumsum(-1)
        numbers = torch.from_numpy(self.numbers[:, input_ids.shape[1] - self.start]).to(ends)[:, None]
        chosen = torch.searchsorted(ends, numbers * ends[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _until(row: list[int], end: int) -> list[int]:
    """The tokens before the end token, or all."""
    return row[: row.index(end)] if end in row else row
