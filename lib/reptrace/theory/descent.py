"""Gradient descent on features and classifier, from many starts at once.

S seeds advance together, with no loop over them: the axis of the seeds lies last in memory, and every product of the
small matrices is one elementwise operation over it and a sum, as a batched matrix product of matrices this small is
several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reptrace.theory.losses import check_loss
from reptrace.theory.starts import Start
from reptrace.theory.trajectories import Trajectories, measure

# Numbers in the largest temporary of one step, d b V S: at 1 MB it stays in the cache of one core.
CPU_NUMBERS, GPU_NUMBERS = 2**17, 2**27
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


def descend(start: Start, *, rate: float, steps: int, loss: str = "cross-entropy", momentum: float = 0.0,
            adam: bool = False, weight_decay: float = 0.0, batch: int | None = None, record: int | Sequence[int] = 150,
            keep_weights: bool = False, device: str | None = None) -> Trajectories:
    """Gradient descent from every start at once.

    Parameters
    ----------
    rate : float
        Step size; a step is `rate` units of the time of gradient flow.
    steps : int
    loss : "cross-entropy" or "squared"
    momentum : float, default 0, below 1
        Heavy ball, v = momentum v + gradient, as in torch.optim.SGD.
    adam : bool, default False
        Adam (betas 0.9 and 0.999, epsilon 1e-8) in place of plain descent; for orthonormal inputs, no momentum.
    weight_decay : float, default 0
        Before each step weights are multiplied by 1 - rate * weight_decay (decoupled, as in torch.optim.AdamW).
    batch : int, default None, all
        Samples a step, without replacement from an order drawn anew each epoch from the seed (the last b modulo
        `batch` of an order are left out); the gradient is scaled by b / batch.
    record : int or sequence of int, default 150
        How many steps to record at most, log-spaced and with 0 and the last; or which.
    keep_weights : bool, default False
        Return F and W at the recorded steps.
    device : str, default "cuda" if there is one, else "cpu"

    Raises
    ------
    ValueError
        Says what was wrong. Divergence is no error: see `Trajectories.diverged`.
    """
    steps_recorded = _steps_recorded(steps, record)
    _check_options(start, rate, loss, momentum, adam, weight_decay, batch)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seeds, b, d = start.features.shape
    numbers = b * d * start.classifier.shape[2]
    at_once = max(64, (CPU_NUMBERS if device == "cpu" else GPU_NUMBERS) // numbers)
    parts = []
    for first in range(0, seeds, at_once):
        chunk = slice(first, first + at_once)
        part = Start(start.features[chunk], start.classifier[chunk], start.labels, start.seeds[chunk], start.gram)
        descent = _Descent(part, rate, loss, momentum, adam, weight_decay, batch, device)
        features, classifier, diverged = descent.run(steps_recorded)
        measured = measure(features, classifier, start.labels, loss)
        parts.append({**measured, "diverged": diverged,
                      **({"features": features, "classifier": classifier} if keep_weights else {})})
    return Trajectories(steps_recorded, **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


class _Descent:
    """One chunk of seeds on its device. F is held as (d, b, 1, S) and W as (d, 1, V, S), so that F * W is the products
    of all logits, summed over the first axis."""

    def __init__(self, start: Start, rate, loss, momentum, adam, weight_decay, batch, device):
        seeds, b, d = start.features.shape
        classes = start.classifier.shape[2]
        options = {"dtype": torch.float64, "device": device}
        self.rate, self.loss, self.momentum, self.adam, self.batch = rate, loss, momentum, adam, batch
        self.keep = 1 - rate * weight_decay
        self.F = torch.tensor(start.features.transpose(2, 1, 0)[:, :, None], **options).contiguous()
        self.W = torch.tensor(start.classifier.transpose(1, 2, 0)[:, None], **options).contiguous()
        self.Y = torch.tensor(np.eye(classes)[start.labels][:, :, None], **options)
        self.K = None if start.gram is None else torch.tensor(start.gram, **options)
        self.E = torch.empty(b, classes, seeds, **options)
        self.products = torch.empty(d, b, classes, seeds, **options)
        self.memory = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (self.F, self.W)]
        self.orders = [np.random.default_rng([seed, 1]) for seed in start.seeds]
        self.alive = torch.zeros(seeds, **options)

    def run(self, recorded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """F and W at the recorded steps, (S, T, b, d) and (S, T, d, V), and the step of divergence or -1."""
        features, classifier, step = [], [], 0
        for target in recorded:
            while step < target:
                step += 1
                self.step(step)
            features.append(self.F[:, :, 0].permute(2, 1, 0).cpu().numpy().copy())
            classifier.append(self.W[:, 0].permute(2, 0, 1).cpu().numpy().copy())
        alive = self.alive.cpu().numpy().astype(int)
        diverged = np.where(alive < step, alive + 1, -1)
        features, classifier = np.stack(features, 1), np.stack(classifier, 1)
        gone = (diverged[:, None] >= 0) & (np.asarray(recorded) >= diverged[:, None])
        features[gone], classifier[gone] = np.nan, np.nan
        return features, classifier, diverged

    def step(self, number: int) -> None:
        gradients = self.gradients(number)
        for p, gradient, memory in zip((self.F, self.W), gradients, self.memory, strict=True):
            self.update(p, gradient, memory, number)
        # W alone tells: F, once not finite, makes it so in the next step
        self.alive += torch.isfinite(self.W.square().sum((0, 1, 2)))

    def gradients(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        E, products = self.E, self.products
        torch.mul(self.F, self.W, out=products)
        torch.sum(products, 0, out=E)
        if self.loss == "cross-entropy":
            E -= E.amax(1, keepdim=True)
            E.exp_()
            E /= E.sum(1, keepdim=True)
        E -= self.Y
        if self.batch:
            E *= self.chosen(number)
        dF = torch.sum(torch.mul(E, self.W, out=products), 2, keepdim=True)
        dW = torch.sum(torch.mul(E, self.F, out=products), 1, keepdim=True)
        if self.K is not None:
            dF = torch.tensordot(self.K, dF, ([1], [1])).transpose(0, 1).contiguous()
        return dF, dW

    def update(self, p, gradient, memory, number: int) -> None:
        if self.keep != 1:
            p.mul_(self.keep)
        first, second = memory
        if self.adam:
            (beta1, beta2), k = ADAM_BETAS, number
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            p.addcdiv_(first / (1 - beta1**k), (second / (1 - beta2**k)).sqrt_().add_(ADAM_EPSILON), value=-self.rate)
        elif self.momentum:
            p.sub_(first.mul_(self.momentum).add_(gradient), alpha=self.rate)
        else:
            p.sub_(gradient, alpha=self.rate)

    def chosen(self, number: int) -> torch.Tensor:
        """Weights of the samples of this step's mini-batch, (b, 1, S): b / batch or 0."""
        b = len(self.Y)
        place = (number - 1) % (b // self.batch)
        if place == 0:
            self.ranks = torch.tensor(np.stack([rng.permutation(b) for rng in self.orders], 1), device=self.E.device)
        return ((self.ranks // self.batch == place) * (b / self.batch))[:, None]


def _steps_recorded(steps: int, record) -> np.ndarray:
    if int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}.")
    if isinstance(record, (int, np.integer)):
        if record < 2:
            raise ValueError(f"at least 2 steps must be recorded, the start and the last, got {record}.")
        return np.unique(np.concatenate([[0], np.geomspace(steps, 1, record - 1).round().astype(int)]))
    chosen = np.unique(np.asarray(record, dtype=int))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > steps:
        raise ValueError(f"the steps to record must lie in 0..{steps}, got {list(record)[:5]}.")
    return np.union1d([0, steps], chosen)


def _check_options(start: Start, rate, loss, momentum, adam, weight_decay, batch) -> None:
    check_loss(loss)
    b = len(start.labels)
    if not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"rate must be positive and finite, got {rate}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in 0..1 and below 1, got {momentum}.")
    if not (weight_decay >= 0 and rate * weight_decay < 1):
        raise ValueError(f"weight_decay must not be negative, and rate * weight_decay below 1, got {weight_decay}.")
    if adam and (momentum or start.gram is not None):
        raise ValueError("adam goes without momentum, and with orthonormal inputs only (it is not the same descent "
                         "seen through other inputs).")
    if batch is not None and not 1 <= batch <= b:
        raise ValueError(f"batch must lie in 1..{b}, the number of samples, got {batch}.")
