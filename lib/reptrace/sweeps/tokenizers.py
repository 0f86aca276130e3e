"""The tokenizer of a run, and whether a probe's sequences fit its models."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence

from tqdm import tqdm

from reptrace.checkpoints import weights
from reptrace.checkpoints.listing import Checkpoint
from reptrace.models.positions import context
from reptrace.support import arguments
from reptrace.sweeps.located import on_hub

ASKED_FOR_TOKENIZER = 3  # checkpoints of a stage on the hub


def tokenizer_of(points: Sequence[Checkpoint], max_length: int, trust: Sequence[str] = ()):
    """The tokenizer of a run: its last checkpoint's, or that of the nearest one before which has one.

    Raises
    ------
    FileNotFoundError, ValueError
        None of them has one that can be opened: what is wrong with the last one's.
    ValueError
        The probe's sequences would be longer than the models' context.
    """
    from reptrace.models.loading import load_tokenizer

    trust = arguments.trusted(trust)
    point, (config, tokenizer), failed = _last_that_opens(points, lambda point: (
        configuration_of(point, trust),
        load_tokenizer(*_where(point), trust_remote_code=arguments.is_trusted(point.model, trust))))
    check_length(config, max_length, point.label)
    if failed:
        tqdm.write(f"the tokenizer is that of {point.label}: of {len(failed)} later checkpoints none has one that "
                   f"can be opened ({failed[0]})", file=sys.stderr)
    return tokenizer


def configuration_of_run(points: Sequence[Checkpoint], max_length: int, trust: Sequence[str] = ()):
    """The configuration of the last checkpoint of a run that has one which can be opened; errors as of
    `tokenizer_of`."""
    trust = arguments.trusted(trust)
    point, config, _ = _last_that_opens(points, lambda point: configuration_of(point, trust))
    check_length(config, max_length, point.label)
    return config


def configuration_of(point: Checkpoint, trust: Sequence[str] = ()):
    from transformers import AutoConfig

    from reptrace.models.loading import from_pretrained

    return from_pretrained(AutoConfig, *_where(point), trust_remote_code=arguments.is_trusted(point.model, trust))


def check_length(config, max_length: int, label: str) -> None:
    """ValueError where sequences would be longer than a model's context."""
    reach = context(config)
    if reach and max_length > reach:
        raise ValueError(f"sequences of up to {max_length} tokens were asked for, the context of {label} is {reach}: "
                         "lower the maximum length (max_length, --max-length).")


def _where(point: Checkpoint) -> tuple[str, str | None, str | None]:
    revision = None if weights.is_here(point.model) else point.commit or point.revision
    return point.model, revision, point.cache_dir


def _last_that_opens(points: Sequence[Checkpoint], opened: Callable) -> tuple[Checkpoint, object, list[Exception]]:
    """The last checkpoint of which something can be opened, what that is, and what is wrong with those after it."""
    failed: list[Exception] = []
    for point in _with_tokenizers(points):
        try:
            return point, opened(point), failed
        except (OSError, ValueError, ImportError) as error:
            failed.append(error)
    raise failed[0]


def _with_tokenizers(points: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Where to look for a run's tokenizer, in turn: backwards through its checkpoints, good ones first. On the hub,
    where asking takes time, through the last ones of each stage."""
    backwards = [point for point in reversed(points) if not point.fault] or list(reversed(points))
    seen: Counter[tuple] = Counter()
    kept = []
    for point in backwards:
        seen[point.model, point.stage] += 1
        if not on_hub(point) or seen[point.model, point.stage] <= ASKED_FOR_TOKENIZER:
            kept.append(point)
    return kept
