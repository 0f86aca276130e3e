"""How likely answers are under a causal LM: no token passes through twice, and none through the LM head for nothing.

A small model spends most of a forward pass on logits that nobody reads: with a vocabulary of 2048 and a width of 16,
ten times as long as on its blocks. Only the states that score a token of an answer reach the head. And answers that go
on from the same tokens, as the choices of a question do, are branches of one row: each token of a branch sees the
tokens they share and its own branch, at the position that it would have alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from reptrace.models import batches
from reptrace.models.decoders import devices_of, vocabulary
from reptrace.models.independence import passes_alone
from reptrace.models.modes import evaluating
from reptrace.models.positions import context, rotaries, text_config
from reptrace.texts.token_ids import checked_sequences

# Architectures whose tokens know their place by rotary embeddings alone, and see all tokens that the mask lets them.
BRANCHING = ("gpt_neox", "llama", "olmo2")


class Scores(NamedTuple):
    """`log_probability` of each answer, (items,) float64, the sum over its tokens in nats; `greedy`, (items,) bool:
    whether each of its tokens is the most probable one."""

    log_probability: np.ndarray
    greedy: np.ndarray


class _Row(NamedTuple):
    """What passes through as one row of a batch: `ids`, with their `position` and their `branch` (0: what all share),
    each (tokens,). For each token of an answer: `targets`, `before`, where the state stands that scores it, and
    `item`."""

    ids: np.ndarray
    position: np.ndarray
    branch: np.ndarray
    targets: np.ndarray
    before: np.ndarray
    item: np.ndarray


def score(model, sequences: Sequence, starts: Sequence[int], batch_size: int, progress: bool = False) -> Scores:
    """Score the tokens of each sequence from its start on, given those before.

    Parameters
    ----------
    model : transformers causal LM, on its device, in its own dtype; the softmax is taken in float32 at least
    sequences : token-id sequences of two tokens or more
    starts : list of int, from 1
        Where each one's answer begins.
    batch_size : int, in rows, those of like length together
        A row is a sequence; or those with the same tokens before their answers, where the model lets them share them.
    progress : bool, default False
    """
    if not len(sequences):
        return Scores(np.zeros(0), np.zeros(0, bool))
    reach = context(model.config)  # of what is read, which the last token of a sequence is not
    sequences = checked_sequences(sequences, vocabulary(model), reach and reach + 1, least=2)
    joint, missed = np.zeros(len(sequences)), np.zeros(len(sequences))
    with torch.inference_mode(), evaluating(model), rotaries(model) as rotary:
        alone = passes_alone(model, [sequence[:-1] for sequence in sequences], rotary)
        branching = not alone and not rotary and _branches(model)
        groups = _sharing(sequences, starts) if branching else [[k] for k in range(len(sequences))]
        rows = [_row(sequences, starts[group[0]], group) for group in groups]
        lengths = [len(row.ids) for row in rows]
        with batches.progress_bar(lengths, "scoring answers", progress) as advance:
            for numbers in batches.of_size(lengths, 1 if alone else batch_size, rotary.kind):
                rotary.reset()
                batch = [rows[number] for number in numbers]
                item = np.concatenate([row.item for row in batch])
                each, wrong = _scored(_logits(model, batch, branching), [row.targets for row in batch])
                np.add.at(joint, item, each)
                np.add.at(missed, item, wrong)
                advance(numbers)
    return Scores(joint, missed == 0)


def _branches(model) -> bool:
    """Whether rows may branch: not in bfloat16, where sums in another order are other log-probabilities."""
    config = text_config(model.config)
    return (config.model_type in BRANCHING and config._attn_implementation in ("sdpa", "eager")
            and model.dtype in (torch.float32, torch.float64))


def _sharing(sequences: Sequence[np.ndarray], starts: Sequence[int]) -> list[list[int]]:
    """Sequences by the tokens before their answers, in groups whose answers together are no longer than these."""
    groups: list[list[int]] = []
    open_: dict[bytes, tuple[list[int], int]] = {}  # by what is shared: the last group, and tokens that it has room for
    for item, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        shared, own = sequence[:start].tobytes(), len(sequence) - start - 1
        group, room = open_.get(shared, ([], 0))
        if not group or own > room:
            group, room = [], start
            groups.append(group)
        group.append(item)
        open_[shared] = group, room - own
    return groups


def _row(sequences: Sequence[np.ndarray], start: int, group: Sequence[int]) -> _Row:
    """The row of sequences that share the tokens before their answers, of which there are `start`."""
    first = sequences[group[0]]
    if len(group) == 1:  # without the detour: most rows of free answers are of one
        read = np.arange(len(first) - 1)
        return _Row(first[:-1], read, np.zeros_like(read), first[start:], read[start - 1 :],
                    np.full(len(first) - start, group[0]))
    answers = [sequences[item][start:] for item in group]
    own = [len(answer) - 1 for answer in answers]  # tokens that are read: the last one of a sequence is not
    ends = np.cumsum([start, *own]).tolist()
    return _Row(
        ids=np.concatenate([first[:start], *(answer[:-1] for answer in answers)]),
        position=np.array([*range(start), *(start + k for n in own for k in range(n))]),
        branch=np.repeat(np.arange(len(group) + 1), [start, *own]),
        targets=np.concatenate(answers),
        before=np.array([k for at, n in zip(ends, own, strict=False) for k in (start - 1, *range(at, at + n))]),
        item=np.repeat(group, [n + 1 for n in own]))


def _logits(model, rows: Sequence[_Row], branching: bool) -> torch.Tensor:
    """Logits of the tokens of the answers, row after row: (tokens, vocabulary)."""
    device = devices_of(model)[0]
    # Padded on the right and causal: no real token sees the padding. The last token is scored, but scores none.
    ids, last = batches.padded([row.ids for row in rows])
    options = {} if branching else {"attention_mask": torch.arange(ids.shape[1]) <= last[:, None]}
    if any(row.branch[-1] for row in rows):
        branch, position = (batches.padded(each)[0] for each in
                            ([row.branch for row in rows], [row.position for row in rows]))
        seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        seen = seen & ((branch[:, None] == 0) | (branch[:, None] == branch[:, :, None]))
        options = {"attention_mask": seen[:, None], "position_ids": position}
    places = (np.repeat(np.arange(len(rows)), [len(row.before) for row in rows]),
              np.concatenate([row.before for row in rows]))
    with _only_at(model, places, ids.shape) as taken:
        logits = model(input_ids=ids.to(device), **{name: each.to(device) for name, each in options.items()}).logits
    return logits[0] if taken else logits[places]


@contextmanager
def _only_at(model, places: tuple[np.ndarray, np.ndarray], shape: torch.Size) -> Iterator[list]:
    """The LM head is given the states of these places alone, as (1, places, d). Gives a list that stays empty in a
    model that does not call its head on states of this shape, (batch, tokens)."""
    taken = []

    def take(module, args):
        hidden, *rest = args
        if hidden.shape[:-1] != shape:
            return None
        taken.append(True)
        return (hidden[places][None], *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(take, prepend=True)
    try:
        yield taken
    finally:
        handle.remove()


def _scored(logits: torch.Tensor, targets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ln P of each token, and whether another is more probable."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = torch.from_numpy(np.concatenate(targets)).to(logits.device, torch.int64)
    own = logits.gather(1, targets[:, None])[:, 0]
    wrong = own < logits.amax(-1)  # quicker than argmax, which is left to tell the first of equal ones
    first = (~wrong).nonzero()[:, 0]
    wrong[first] = logits[first].argmax(-1) != targets[first]
    return (own - logits.logsumexp(-1)).double().cpu().numpy(), wrong.cpu().numpy()
