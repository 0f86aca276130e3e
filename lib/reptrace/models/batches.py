"""Which sequences pass through a model together: batches of like lengths, as large as the memory allows.

Sequences are taken longest first, so that memory peaks at once and little is padded, and batches hold a fixed number of
tokens, padding included: the token budget. Here too is what is known about memory: how much is free, what running out
of it looks like, and the error that says what would have fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from numbers import Integral

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

AUTO = "auto"
# Sequences of the longest length in a batch, where the memory is not known.
SEQUENCES = 16
# More tokens in a batch no longer speed up a GPU's products, but leave more padding.
GPU_TOKENS = 32_768
# Share of a GPU's free memory that a batch may take by the estimate below; the rest is for what it overlooks.
GPU_SHARE = 0.8


class TooLittleMemoryError(MemoryError):
    """A batch, or the model itself, does not fit into memory; the message says what would."""


def check_batch_size(batch_size: int | str) -> None:
    number = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if batch_size != AUTO and not (number and batch_size >= 1):
        raise ValueError(f'batch_size must be a positive whole number or "{AUTO}", got {batch_size!r}.')


def token_budget(decoder: nn.Module, longest: int, batch_size: int | str, devices: Sequence[torch.device]) -> int:
    """Tokens a batch, padding included: `batch_size` sequences of the longest length, or what suits the devices.

    On a CPU never more than keeps activations in its cache, whatever `batch_size`. "auto" on GPUs: a power of two (so
    that some megabytes more or less do not change the batches, and with them the rounding of bfloat16) that fits into
    the free memory of the fullest, at most 32,768. "auto" elsewhere: 16 sequences of the longest length.
    """
    kinds = {device.type for device in devices}
    budget = (SEQUENCES if batch_size == AUTO else batch_size) * longest
    if "cpu" in kinds:
        cache = max(512, 2**18 // decoder.config.hidden_size)
        return cache if batch_size == AUTO else min(budget, cache)
    if batch_size == AUTO and kinds == {"cuda"}:
        free = min(free_bytes(device) for device in devices)
        fits = int(GPU_SHARE * free / bytes_a_token(decoder))
        return min(GPU_TOKENS, 1 << max(1, fits).bit_length() - 1)
    return budget


def bytes_a_token(decoder: nn.Module) -> int:
    """Memory that a block takes for each token at its peak, estimated from above.

    Alive together in the MLP: the residual, its norm, the attention's output (a width each), and up to four
    intermediates of a gated MLP; in the attention: queries, keys and values, before and after rotation, which Olmo 2
    does in float32. The attention matrix is not counted: SDPA does not form it.
    """
    width = decoder.config.hidden_size
    inner = getattr(decoder.config, "intermediate_size", None) or 4 * width
    return next(decoder.parameters()).element_size() * (8 * width + 4 * inner)


def free_bytes(device: torch.device) -> int | None:
    """Memory free on a device, in bytes: a GPU's, or what Linux calls available; None where that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "cpu":
        try:
            with open("/proc/meminfo") as file:
                return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            pass
    return None


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """TooLittleMemoryError where so many bytes are known not to be free: better than an end by the system."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise TooLittleMemoryError(f"{what} needs {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free: try "
                                   'dtype="bfloat16", or device="auto", which spreads it over all GPUs, the CPU and '
                                   "the disk.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch's own class on GPUs, plain RuntimeErrors elsewhere."""
    told = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told))


def largest(rows: list[int], fits: Callable[[list[int]], bool]) -> int:
    """How many of the rows pass through together, by trying halves; 0: not even one."""
    count = len(rows) // 2
    while count and not fits(rows[:count]):
        count //= 2
    return count


def too_little(decoder: nn.Module, devices: Sequence[torch.device], length: int, tried: int, fit: int,
               longest: int) -> TooLittleMemoryError:
    """The error that says how many sequences of a length fit, and which batch_size that is where the longest count."""
    where = " and ".join(map(str, devices))
    if fit:
        return TooLittleMemoryError(
            f"a batch of {tried} sequences of {length} tokens does not fit into the memory of {where}, {fit} of them "
            f'do: try batch_size={max(1, fit * length // longest)}, or batch_size="{AUTO}".')
    size = sum(parameter.nbytes for parameter in decoder.parameters()) / 1e9
    dtype = str(next(decoder.parameters()).dtype).removeprefix("torch.")
    return TooLittleMemoryError(
        f"not even one sequence of {length} tokens fits into the memory of {where} beside the model's {size:.1f} GB in "
        f'{dtype}: try load(..., device="{AUTO}"), over several GPUs, another dtype, or shorter sequences.')


def by_length(lengths: Sequence[int]) -> list[int]:
    """Row numbers, the longest first; rows of the same length stay in order."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def of_size(lengths: Sequence[int], size: int, kind: Callable[[int], object]) -> Iterator[list[int]]:
    """Rows in batches of at most `size` sequences, those of like length together, and only lengths of one kind."""
    order, start = by_length(lengths), 0
    while start < len(order):
        rows = alike(order[start : start + size], lambda row: kind(lengths[row]))
        yield rows
        start += len(rows)


def alike(rows: Sequence[int], kind: Callable[[int], object]) -> list[int]:
    """The rows before the first whose kind is another than that of the first row."""
    first = kind(rows[0])
    return list(takewhile(lambda row: kind(row) == first, rows))


@contextmanager
def progress_bar(lengths: Sequence[int], what: str, shown: bool) -> Iterator[Callable[[Sequence[int]], None]]:
    """A bar over sequences of these lengths, in tokens, of which the time left is told: gives a function that takes the
    rows just done."""
    done = 0
    with tqdm(total=sum(lengths), desc=what, unit="tok", unit_scale=True, disable=not shown, leave=False,
              bar_format="{desc}: {percentage:3.0f}%{postfix} |{bar}| [{elapsed}<{remaining}, {rate_fmt}]") as bar:

        def advance(rows: Sequence[int]) -> None:
            nonlocal done
            done += len(rows)
            bar.set_postfix_str(f"{done:,} of {len(lengths):,} sequences", refresh=False)
            bar.update(sum(lengths[row] for row in rows))

        yield advance


def padded(sequences: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right with 0, shape (batch, longest), and the position of each last token (batch,)."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    ids = np.zeros((len(sequences), lengths.max()), np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(sequences)
    return torch.from_numpy(ids), torch.from_numpy(lengths - 1)
