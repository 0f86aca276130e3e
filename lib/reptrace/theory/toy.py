"""The toy model of Li et al. 2025 (arXiv 2509.23024, section 4): features and a linear classifier learned together.

b samples with orthonormal inputs, so that each has its own row of features F (b x d); a classifier W (d x V); logits
F W. Full-batch gradient descent on the sum over the samples, with P the softmax of the logits and Y the one-hot labels:

    cross-entropy  -sum_k ln P[k, y_k]        E = P - Y      dF = E W^T
    squared error  1/2 ||F W - Y||^2          E = F W - Y    dW = F^T E

How to use it:

    begun = start((9, 3, 2, 1), 2, scale=0.1, seeds=64)  # features (S, b, d), classifier (S, d, V), labels (b,)
    runs = descend(begun, rate=0.02, steps=10_000)       # steps (T,), loss (S, T), rankme_centred (S, T), ...
    found = phases(runs.steps, runs.rankme_centred)      # arrays over the seeds
    prevalence(found.all_three)                          # share of the seeds, with a 95 % interval
    linearized(begun, times)                             # features and classifier while logits are near 0

Everything is float64. S seeds advance together, with no loop over them: the axis of the seeds lies last in memory, and
every product of the small matrices is one elementwise operation over it and a sum, as a batched matrix product of
matrices this small is several times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax, xlogy
from scipy.stats import binomtest

LOSSES = ("cross-entropy", "squared")
# Numbers in the largest temporary of one step, d b V S: at 1 MB it stays in the cache of one core.
CPU_NUMBERS, GPU_NUMBERS = 2**17, 2**27
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
MEASURED_AT_ONCE = 20_000  # matrices


@dataclass(frozen=True)
class Start:
    """Where S descents begin.

    Attributes
    ----------
    features : array, shape (S, b, d), float64
    classifier : array, shape (S, d, V), float64
    labels : array of int, shape (b,)
        Class of each sample, 0 to V - 1.
    seeds : tuple of int
        Of each draw; they also set the order of mini-batches.
    gram : array, shape (b, b), or None
        Inner products of the inputs; None: orthonormal inputs.
    """

    features: np.ndarray
    classifier: np.ndarray
    labels: np.ndarray
    seeds: tuple[int, ...]
    gram: np.ndarray | None = None


@dataclass(frozen=True)
class Trajectories:
    """S descents at T recorded steps; from the step of divergence on, nan.

    Attributes
    ----------
    steps : array of int, shape (T,)
        The first is 0, the start.
    loss : array, shape (S, T)
        Sum over the samples; nats where it is cross-entropy.
    rankme_centred, rankme_uncentred : array, shape (S, T)
        exp(entropy) of the shares of the eigenvalues of F_c^T F_c (rows centred) and of F^T F.
    feature_values : array, shape (S, T, min(b, d))
        Singular values of F, largest first.
    classifier_values : array, shape (S, T, min(d, V))
        Singular values of W, largest first.
    alignment : array, shape (S, T, min(b, d, V))
        |cosine| of the i-th right singular vector of F with the i-th left one of W: 1 where balanced.
    accuracy : array, shape (S, T, V)
        Share of each class's samples that have their largest logit there.
    diverged : array of int, shape (S,)
        First step after which a squared norm of the weights is not finite in float64; -1: none.
    features, classifier : array, shapes (S, T, b, d) and (S, T, d, V), or None
        The weights, if they were to be kept.
    """

    steps: np.ndarray
    loss: np.ndarray
    rankme_centred: np.ndarray
    rankme_uncentred: np.ndarray
    feature_values: np.ndarray
    classifier_values: np.ndarray
    alignment: np.ndarray
    accuracy: np.ndarray
    diverged: np.ndarray
    features: np.ndarray | None = None
    classifier: np.ndarray | None = None


@dataclass(frozen=True)
class Phases:
    """Phases of trajectories of RankMe, each field an array over them (a single number for one trajectory).

    Attributes
    ----------
    collapse_end, turn : int
        Index of the minimum that ends the collapse, and of the maximum after it; -1 where RankMe never grows.
    collapse : float
        1 - minimum / highest value before it. Where RankMe never grows, of the lowest value.
    expansion : float
        Maximum / minimum - 1.
    fall : float
        1 - lowest value after the maximum / maximum.
    shows_collapse, shows_expansion, shows_fall : bool
        Whether each is larger than the size asked for; all False where the trajectory holds a nan.
    """

    collapse_end: np.ndarray
    turn: np.ndarray
    collapse: np.ndarray
    expansion: np.ndarray
    fall: np.ndarray
    shows_collapse: np.ndarray
    shows_expansion: np.ndarray
    shows_fall: np.ndarray

    @property
    def all_three(self) -> np.ndarray:
        return self.shows_collapse & self.shows_expansion & self.shows_fall

    def spans(self, seed: int, last: int) -> list[tuple[str, int, int]]:
        """(phase, first index, last index) of one trajectory of those along a single axis, for line styles.

        `last` is the trajectory's last index. Phases that it does not show have no span.
        """
        low, high = int(self.collapse_end[seed]), int(self.turn[seed])
        if low < 0:
            return [("warmup", 0, last)] if self.shows_collapse[seed] else []
        high = high if self.shows_fall[seed] else last
        spans = [("warmup", 0, low), ("entropy-seeking", low, high), ("compression-seeking", high, last)]
        return spans[0 if self.shows_collapse[seed] else 1 : 3 if self.shows_fall[seed] else 2]


def start(counts: Sequence[int], width: int, *, scale: float = 0.1, balanced: bool = False,
          seeds: int | Sequence[int] = 1, gram=None) -> Start:
    """Random features and classifiers, one of each a seed; a seed gives the same draw whichever others come with it.

    Parameters
    ----------
    counts : sequence of int, length V
        Samples of each class, all positive; b is their sum.
    width : int
        d.
    scale : float, default 0.1
        Standard deviation of the independent normal entries of F and W.
    balanced : bool, default False
        Draw W alone and choose F with F^T F = W W^T: W's singular values, its left singular vectors as right ones, and
        b x min(d, V) random orthonormal columns.
    seeds : int n, for 0..n-1, or a sequence
    gram : array, shape (b, b), default None
        Inner products of the inputs, positive definite. F is then L times the normal draw, L the Cholesky factor, as it
        would be were a normal matrix of input weights multiplied by such inputs.

    Raises
    ------
    ValueError
        Says which of them was wrong.
    """
    counts, seeds = _counts(counts), _seeds(seeds)
    b, classes = sum(counts), len(counts)
    if int(width) != width or width < 1:
        raise ValueError(f"width (d) must be a whole number of at least 1, got {width}.")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}: from 0 nothing moves.")
    if balanced and (gram is not None or b < min(width, classes)):
        raise ValueError("a balanced start needs orthonormal inputs (gram=None) and at least min(width, classes) "
                         f"samples, got {b} samples, width {width}, {classes} classes.")
    draws = [np.random.default_rng(seed) for seed in seeds]
    features = scale * np.stack([rng.standard_normal((b, width)) for rng in draws])
    classifier = scale * np.stack([rng.standard_normal((width, classes)) for rng in draws])
    if balanced:
        u, s, _ = np.linalg.svd(classifier, full_matrices=False)
        columns = np.linalg.qr(np.stack([rng.standard_normal((b, s.shape[-1])) for rng in draws]))[0]
        features = columns * s[:, None, :] @ u.swapaxes(1, 2)
    if gram is not None:
        gram = _gram(gram, b)
        features = np.linalg.cholesky(gram) @ features
    return Start(features, classifier, np.repeat(np.arange(classes), counts), seeds, gram)


def zipf_counts(classes: int, exponent: float, samples: int) -> tuple[int, ...]:
    """Samples of each class in proportion to rank^-exponent, rounded, each at least 1; their sum is near `samples`."""
    shares = np.arange(1, classes + 1) ** -float(exponent)
    return tuple(np.maximum(1, np.round(samples * shares / shares.sum())).astype(int).tolist())


def alike_inputs(counts: Sequence[int], cosine: float, among: str = "class") -> np.ndarray:
    """`gram` of unit inputs with this cosine (0 to below 1) between any two of one class, or, among="all", any two."""
    if among not in ("class", "all") or not 0 <= cosine < 1:
        raise ValueError(f'among must be "class" or "all" and the cosine in 0..1 and below 1, got {among!r}, {cosine}.')
    labels = np.repeat(np.arange(len(counts)), _counts(counts))
    same = (labels[:, None] == labels) if among == "class" else np.ones((len(labels), len(labels)))
    return (1 - cosine) * np.eye(len(labels)) + cosine * same


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


def measure(features, classifier, labels, loss: str = "cross-entropy") -> dict[str, np.ndarray]:
    """Loss, RankMe, singular values, alignment and accuracy of weights of shapes (..., b, d) and (..., d, V).

    Returns the fields of `Trajectories` of those names, with the leading axes of the weights. Where a weight is not
    finite, or so large that its square is not, all are nan.
    """
    leading = features.shape[:-2]
    features = features.reshape(-1, *features.shape[-2:])
    classifier = classifier.reshape(-1, *classifier.shape[-2:])
    parts = [_measure(features[k : k + MEASURED_AT_ONCE], classifier[k : k + MEASURED_AT_ONCE], labels, loss)
             for k in range(0, len(features), MEASURED_AT_ONCE)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: values.reshape(*leading, *values.shape[1:]) for name, values in joined.items()}


def phases(steps, rankme, size: float = 0.02) -> Phases:
    """Collapse, expansion and later fall of trajectories that carry no noise.

    The collapse ends at the first minimum that lies more than `size`, relatively, below the highest value so far and
    from which RankMe then grows by more than `size`; so a rise before the collapse does not count. Where no fall is
    followed by growth, the minimum is the first one (the start, most often) from which RankMe grows by more than
    `size`, and there is no collapse. The turn is the highest value from the minimum on, and the fall goes down to the
    lowest value after it: a dip that is outgrown later is no fall.

    Parameters
    ----------
    steps : array, shape (T,), increasing
    rankme : array, shape (..., T)
    size : float, default 0.02
        Relative size beyond which a collapse, an expansion or a fall counts as shown.
    """
    steps, r = np.asarray(steps), np.asarray(rankme, dtype=float)
    if steps.ndim != 1 or r.shape[-1:] != steps.shape or len(steps) < 2 or not (np.diff(steps) > 0).all():
        raise ValueError("steps must increase, and the last axis of rankme must have their length, at least 2; got "
                         f"shapes {steps.shape} and {r.shape}.")
    if not 0 < size < 1:
        raise ValueError(f"size is a share between 0 and 1, got {size}.")
    whole = np.isfinite(r).all(-1)
    r = np.where(whole[..., None], r, 1.0)
    index = np.arange(len(steps))
    fell_at = (r < (1 - size) * np.maximum.accumulate(r, -1)).argmax(-1)  # 0: never
    grows, low_at = _first_minimum(r, fell_at, size)
    grows_from_start, first_low = _first_minimum(r, np.zeros_like(fell_at), size)
    low_at = np.where(grows, low_at, first_low)
    grows = grows | grows_from_start
    turn_at = np.where(index >= low_at[..., None], r, -np.inf).argmax(-1)
    low, high = (np.take_along_axis(r, at[..., None], -1)[..., 0] for at in (low_at, turn_at))
    collapse = 1 - low / np.where(index <= low_at[..., None], r, -np.inf).max(-1)
    expansion = np.where(grows, high / low - 1, 0.0)
    fall = np.where(grows, 1 - np.where(index >= turn_at[..., None], r, np.inf).min(-1) / high, 0.0)
    ends = [np.where(whole & grows, at, -1)[()] for at in (low_at, turn_at)]
    sizes = [np.where(whole, change, np.nan)[()] for change in (collapse, expansion, fall)]
    return Phases(*ends, *sizes, *((whole & (change > size))[()] for change in (collapse, expansion, fall)))


def turns_late(found: Phases, loss) -> np.ndarray:
    """Whether the turn comes when half of all the loss that a trajectory ever loses is lost; bool, as `found`.

    What RankMe does before that is the start's doing: a dip and a rise while the logits are still near 0, then the
    collapse, look like three phases to a detector that sees RankMe alone. `loss` has shape (..., T).
    """
    loss = np.asarray(loss, dtype=float)
    at_turn = np.take_along_axis(loss, np.asarray(found.turn)[..., None], -1)[..., 0]
    return (np.asarray(found.turn) >= 0) & (at_turn <= (loss[..., 0] + loss.min(-1)) / 2)


def prevalence(shown, level: float = 0.95) -> tuple[float, float, float]:
    """Share of True among seeds, and its Wilson interval: (share, low, high)."""
    shown = np.asarray(shown, dtype=bool).ravel()
    found = binomtest(int(shown.sum()), len(shown)).proportion_ci(level, method="wilson")
    return float(shown.mean()), float(found.low), float(found.high)


def linearized(start: Start, times, loss: str = "cross-entropy") -> tuple[np.ndarray, np.ndarray]:
    """Gradient flow with the error fixed at its value for zero logits: features (S, T, b, d), classifier (S, T, d, V).

    Near F W = 0 the error is -D, D = Y - 1/V (cross-entropy, P = 1/V) or D = Y (squared). Then dF/dt = D W^T and
    dW/dt = F^T D are linear, and D = A diag(s) B^T takes them apart: X = A^T F and Z = B^T W^T follow dX/dt = s Z,
    dZ/dt = s X, hence X(t) = cosh(s t) X(0) + sinh(s t) Z(0) and the same with X and Z exchanged; what lies outside the
    columns of A and B stays. Theorem 2 of the paper, for any start, balanced or not.

    Parameters
    ----------
    start : Start, with orthonormal inputs
    times : array, shape (T,)
        Time of gradient flow: steps times rate.
    """
    if start.gram is not None:
        raise ValueError("the linearized dynamics are for orthonormal inputs, gram=None.")
    _known_loss(loss)
    classes = start.classifier.shape[-1]
    drive = np.eye(classes)[start.labels] - (1 / classes if loss == "cross-entropy" else 0.0)
    a, s, bt = np.linalg.svd(drive, full_matrices=False)
    angle = s[:, None] * np.asarray(times, dtype=float)[:, None, None]
    x = (a.T @ start.features)[:, None]
    z = (bt @ start.classifier.swapaxes(1, 2))[:, None]
    moved_x = (np.cosh(angle) - 1) * x + np.sinh(angle) * z
    moved_z = (np.cosh(angle) - 1) * z + np.sinh(angle) * x
    return start.features[:, None] + a @ moved_x, start.classifier[:, None] + (bt.T @ moved_z).swapaxes(2, 3)


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


@np.errstate(over="ignore", invalid="ignore")  # shortly before weights diverge
def _measure(features, classifier, labels, loss: str) -> dict[str, np.ndarray]:
    finite = np.isfinite((features**2).sum((1, 2)) + (classifier**2).sum((1, 2)))
    features, classifier = (np.where(finite[:, None, None], m, 0.0) for m in (features, classifier))
    logits = features @ classifier
    hit = logits.argmax(-1) == labels
    _, feature_values, right = np.linalg.svd(features, full_matrices=False)
    left, classifier_values, _ = np.linalg.svd(classifier, full_matrices=False)
    r = min(right.shape[1], left.shape[2])
    centred = features - features.mean(1, keepdims=True)
    found = {"loss": _losses(logits, labels, loss),
             "rankme_centred": _effective_rank(np.linalg.svd(centred, compute_uv=False) ** 2),
             "rankme_uncentred": _effective_rank(feature_values**2),
             "feature_values": feature_values, "classifier_values": classifier_values,
             "alignment": np.abs(np.einsum("nid,ndi->ni", right[:, :r], left[:, :, :r])),
             "accuracy": np.stack([hit[:, labels == c].mean(1) for c in range(logits.shape[-1])], -1)}
    return {name: np.where(finite.reshape(-1, *[1] * (v.ndim - 1)), v, np.nan) for name, v in found.items()}


def _losses(logits, labels, loss: str) -> np.ndarray:
    if loss == "squared":
        return 0.5 * ((logits - np.eye(logits.shape[-1])[labels]) ** 2).sum((1, 2))
    return -log_softmax(logits, axis=-1)[:, np.arange(len(labels)), labels].sum(1)


def _first_minimum(r, begin, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether r grows by more than `size` above its lowest value since `begin`, and where the lowest before that is."""
    index = np.arange(r.shape[-1])
    later = np.where(index >= begin[..., None], r, np.inf)
    grown = (index > begin[..., None]) & (later > (1 + size) * np.minimum.accumulate(later, -1))
    until = np.where(grown.any(-1), grown.argmax(-1), r.shape[-1])
    return grown.any(-1), np.where(index < until[..., None], later, np.inf).argmin(-1)


def _effective_rank(eigenvalues) -> np.ndarray:
    """As `spectra.rankme`, over the last axis; nan where all are 0."""
    largest = eigenvalues[..., :1]
    s = np.divide(eigenvalues, largest, out=np.full_like(eigenvalues, np.nan), where=largest > 0)
    p = s / s.sum(-1, keepdims=True)
    return np.exp(-xlogy(p, p).sum(-1))


def _counts(counts) -> list[int]:
    counts = list(np.asarray(counts).ravel().tolist())
    if len(counts) < 2:
        raise ValueError(f"counts needs at least two classes, got {counts}: with one there is nothing to learn.")
    if any(count != int(count) or count < 1 for count in counts):
        raise ValueError(f"counts must be positive whole numbers, samples of each class, got {counts}.")
    return [int(count) for count in counts]


def _seeds(seeds) -> tuple[int, ...]:
    chosen = tuple(range(seeds)) if isinstance(seeds, (int, np.integer)) else tuple(int(seed) for seed in seeds)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"seeds must be a positive number of them, or a sequence of numbers from 0 up, got {seeds}.")
    return chosen


def _gram(gram, b: int) -> np.ndarray:
    gram = np.asarray(gram, dtype=float)
    if gram.shape != (b, b) or not np.allclose(gram, gram.T) or np.linalg.eigvalsh(gram)[0] <= 0:
        raise ValueError(f"gram must be a positive definite matrix of shape ({b}, {b}), the inner products of the "
                         f"inputs; got shape {gram.shape}.")
    return gram


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


def _known_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}.")


def _check_options(start: Start, rate, loss, momentum, adam, weight_decay, batch) -> None:
    _known_loss(loss)
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
