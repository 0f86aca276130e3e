"""Streaming count, mean and centred co-moments of feature vectors.

Batches are merged by the pairwise update of Chan, Golub & LeVeque (1983): every batch is centred by its own mean
before its outer product is taken, so nothing like E[xx] - mean mean^T, which cancels catastrophically, is ever formed.
Memory is O(d^2) however many vectors pass by, and two accumulators merge in any order.
"""

from __future__ import annotations

import torch

# Rows converted to float64 at a time: enough for a full-speed product, small beside the d x d result.
BLOCK_ROWS = 2048


class Moments:
    """Running mean and co-moment of d-dimensional vectors, accumulated in float64.

    Parameters
    ----------
    width : int
        Number of dimensions d.
    device : str or torch.device, default "cpu"
        Where the sums are kept; batches are moved there. A device without float64 (Apple's MPS) is refused: the
        batches are small beside a forward pass, so accumulate on the CPU instead.

    Attributes
    ----------
    count : int
        Vectors seen.
    mean : torch.Tensor, shape (d,), float64
    comoment : torch.Tensor, shape (d, d), float64
        Sum of (x - mean)(x - mean)^T over the vectors seen. Not yet divided by the count.
    """

    def __init__(self, width: int, device: str | torch.device = "cpu"):
        if int(width) != width or width < 1:
            raise ValueError(f"width must be a positive integer, got {width!r}.")
        if torch.device(device).type == "mps":
            raise ValueError('float64 is needed for the sums, and MPS has none: use device="cpu".')
        self.count = 0
        self.mean = torch.zeros(int(width), dtype=torch.float64, device=device)
        self.comoment = torch.zeros(int(width), int(width), dtype=torch.float64, device=device)

    def update(self, batch: torch.Tensor) -> Moments:
        """Add a batch of vectors, shape (n, d), any floating dtype, any device. Returns self."""
        if batch.ndim != 2 or batch.shape[1] != self.mean.shape[0]:
            raise ValueError(f"expected a batch of shape (n, {self.mean.shape[0]}), got {tuple(batch.shape)}.")
        if not batch.is_floating_point():
            raise TypeError(f"expected floating-point vectors, got {batch.dtype}: convert them first.")
        for block in batch.split(BLOCK_ROWS):
            if len(block) == 0:
                continue
            block = block.detach().to(self.mean.device, torch.float64)
            # Shifting by the first row first makes the mean exact where the vectors do not vary.
            first = block[0]
            block = block - first
            mean = block.mean(0)
            block -= mean
            self._absorb(len(block), first + mean, block.T @ block)
        return self

    def merge(self, other: Moments) -> Moments:
        """Add what another accumulator has seen; the other one is left as it is. Returns self."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"cannot merge moments of width {len(other.mean)} into width {len(self.mean)}.")
        if other.count:
            device = self.mean.device
            self._absorb(other.count, other.mean.to(device), other.comoment.to(device))
        return self

    def covariance(self) -> torch.Tensor:
        """Centred covariance, comoment / count, shape (d, d), float64 (divided by M, not M - 1, as in the paper)."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, got {self.count}.")
        return self.comoment / self.count

    def _absorb(self, count: int, mean: torch.Tensor, comoment: torch.Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.comoment += comoment
        if self.count:
            self.comoment.addr_(delta, delta, alpha=self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total
