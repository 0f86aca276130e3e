"""How likely answers are under a causal LM: only the states that score a token of an answer reach the LM head.

A small model spends most of a forward pass on logits that nobody reads: with a vocabulary of 2048 and a width of 16,
ten times as long as on its blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from reptrace.models import batches
from reptrace.models.decoders import devices_of, vocabulary
from reptrace.models.independence import passes_alone
from reptrace.models.modes import evaluating
from reptrace.models.positions import context, rotaries
from reptrace.texts.token_ids import checked_sequences


class Scores(NamedTuple):
    """`log_probability` of each answer, (items,) float64, the sum over its tokens in nats; `greedy`, (items,) bool:
    whether each of its tokens is the most probable one."""

    log_probability: np.ndarray
    greedy: np.ndarray


def score(model, sequences: Sequence, starts: Sequence[int], batch_size: int, progress: bool = False) -> Scores:
    """Score the tokens of each sequence from its start on, given those before.

    Parameters
    ----------
    model : transformers causal LM, on its device, in its own dtype; the softmax is taken in float32 at least
    sequences : token-id sequences of two tokens or more
    starts : list of int, from 1
        Where each one's answer begins.
    batch_size : int, in sequences, those of like length together
    progress : bool, default False
    """
    if not len(sequences):
        return Scores(np.zeros(0), np.zeros(0, bool))
    reach = context(model.config)  # of what is read, which the last token of a sequence is not
    sequences = checked_sequences(sequences, vocabulary(model), reach and reach + 1, least=2)
    joint, greedy = np.zeros(len(sequences)), np.zeros(len(sequences), bool)
    lengths = [len(sequence) - 1 for sequence in sequences]  # that pass through: the last token is not read
    with (torch.inference_mode(), evaluating(model), rotaries(model) as rotary,
          batches.progress_bar(lengths, "scoring answers", progress) as advance):
        size = 1 if passes_alone(model, [sequence[:-1] for sequence in sequences], rotary) else batch_size
        for rows in batches.of_size(lengths, size, rotary.kind):
            rotary.reset()
            joint[rows], greedy[rows] = _batch(model, [sequences[row] for row in rows],
                                               np.array([starts[row] for row in rows]))
            advance(rows)
    return Scores(joint, greedy)


def _batch(model, sequences: Sequence[np.ndarray], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array(list(map(len, sequences)))
    # Padded on the right and causal: no real token sees the padding. The last token is scored, but scores none.
    ids, last = batches.padded([sequence[:-1] for sequence in sequences])
    mask = torch.arange(ids.shape[1]) <= last[:, None]
    # Where a model can leave out the logits of the first positions, nothing but answers passes through its large head.
    takes = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": int(ids.shape[1] - starts.min() + 1)} if "logits_to_keep" in takes else {}
    device = devices_of(model)[0]
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), **options).logits
    counts = lengths - starts
    row = np.repeat(np.arange(len(sequences)), counts)
    answers = np.concatenate([sequence[start:] for sequence, start in zip(sequences, starts, strict=True)])
    before = np.concatenate([np.arange(start, length) for start, length in zip(starts, lengths, strict=True)]) - 1
    scores = logits[row, before - (ids.shape[1] - logits.shape[1])]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    targets = torch.from_numpy(answers).to(scores.device, torch.int64)
    each = scores.gather(1, targets[:, None])[:, 0].double().cpu().numpy()
    missed = (scores.argmax(-1) != targets).cpu().numpy()
    return np.bincount(row, each, len(sequences)), np.bincount(row, missed, len(sequences)) == 0
