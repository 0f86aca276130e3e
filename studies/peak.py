"""What a device can do at most: operations a second in a large matrix product."""

from __future__ import annotations

import time

import torch


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second in a large square product: the best of several, which nothing on this device exceeds."""
    size, times = (8192, 20) if device == "cuda" else (2048, 1)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait()
        started = time.perf_counter()
        for _ in range(times):
            left @ right
        wait()
        best = min(best, (time.perf_counter() - started) / times)
    return 2 * size**3 / best


def wait() -> None:
    """A GPU works on after the call that started it has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
