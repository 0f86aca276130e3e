"""A causal LM with the leading eigendirections of its probe covariance removed from what its LM head receives, or with
only those kept (Table 8 of Li et al. 2025).

h is the last hidden state of any token, after the final norm; m the mean and V the first k eigenvectors of the
covariance of the probe's last tokens, centred as everywhere here. Two ways to treat the mean:

    about "mean":   removed  h - V V'(h - m),  kept  m + V V'(h - m)   the mean always reaches the head
    about "origin": removed  h - V V' h,       kept  V V' h            the mean is projected like the rest

They differ by the part of m that lies along V (removed) or across it (kept). About the mean, removing all d directions,
or keeping none, leaves the same logits for every token, those of m; about the origin it leaves zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

KINDS, ABOUT, CHOSEN = ("remove", "keep"), ("mean", "origin"), ("leading", "random")


@dataclass(frozen=True)
class Projection:
    """What is done to the states, by numbers and names, for records: see `projected`.

    `chosen` says which k directions: the "leading" eigenvectors, or as many "random" ones, drawn with `seed`.
    """

    k: int
    kind: str = "remove"
    about: str = "mean"
    chosen: str = "leading"
    seed: int = 0

    def __post_init__(self):
        if self.chosen not in CHOSEN:
            raise ValueError(f"chosen must be one of {CHOSEN}, got {self.chosen!r}.")
        _check_names(self.kind, self.about)

    def applied(self, model: nn.Module, mean: torch.Tensor, vectors: torch.Tensor) -> AbstractContextManager[nn.Module]:
        """`projected`, along these vectors, or along random ones of their width."""
        columns = random_directions(len(vectors), self.seed) if self.chosen == "random" else vectors
        return projected(model, mean, columns, self.k, self.kind, self.about)


class Directions(NamedTuple):
    """`mean`, shape (d,), and `vectors`, shape (d, d), orthonormal columns, the leading first; float64, on the CPU."""

    mean: torch.Tensor
    vectors: torch.Tensor


def directions(features: torch.Tensor) -> Directions:
    """Mean and covariance eigenvectors of features, by falling eigenvalue.

    Parameters
    ----------
    features : tensor or array, shape (M, d), such as `hidden_states.last_token_states(model, sequences)["final"]`
        Covariance and eigenvectors (torch.linalg.eigh) are computed in float64 on the CPU. With M - 1 < d, the
        eigenvectors from the M-th on have eigenvalue 0 and could be any others across the first.

    Raises
    ------
    ValueError
        Fewer than two features, or values that are not finite.
    """
    features = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"directions need features of shape (M, d) with M >= 2, got {tuple(features.shape)}.")
    if not torch.isfinite(features).all():
        raise ValueError("the features hold NaN or infinity.")
    mean = features.mean(0)
    centred = features - mean
    return Directions(mean, torch.linalg.eigh(centred.T @ centred / len(features)).eigenvectors.flip(1))


def random_directions(width: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal columns drawn uniformly (Haar): shape (width, width), float64. Their first k are the control for k
    eigenvectors."""
    drawn = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    columns, triangle = torch.linalg.qr(drawn)
    return columns * triangle.diagonal().sign()  # without it QR's own choice of signs, not the uniform law


@contextmanager
def projected(model: nn.Module, mean: torch.Tensor, vectors: torch.Tensor, k: int, kind: str = "remove",
              about: str = "mean") -> Iterator[nn.Module]:
    """The model with the first k directions removed, or only those kept, in every token's state before the LM head.

        with projected(model, *directions(features), k=10):
            rows = evaluation.evaluate(model, tokenizer, ["sciq"], batch_size=16)

    It is undone on leaving, also after an exception. The decoder itself stays as it is, so `hidden_states` reads the
    same states inside as outside.

    Parameters
    ----------
    model : transformers causal LM; what goes into its output embeddings is projected
        In float32 at least, in float64 for a float64 model, and given back in the model's dtype.
    mean, vectors : tensors of shape (d,) and (d, d) or (d, j >= k), see `directions` and `random_directions`
    k : int, 0 to d
    kind : "remove" or "keep", default "remove"
    about : "mean" or "origin", default "mean"; see above

    Raises
    ------
    ValueError
        k below 0 or above the number of directions; an unknown kind or about; directions of another width.
    TypeError
        A model without an LM head.
    """
    head = _head(model)
    mean, basis = _checked(head, mean, vectors, k, kind, about)
    weight = head.weight
    device = "cpu" if weight.device.type == "meta" else weight.device  # meta: put away by accelerate
    dtype = torch.promote_types(weight.dtype, torch.float32)
    offset, columns = (mean if about == "mean" else 0 * mean).to(device, dtype), basis.to(device, dtype)

    def project(module, args):
        hidden, *rest = args
        center, basis = offset.to(hidden.device), columns.to(hidden.device)  # as they are on a model's one device
        along = (hidden.to(dtype) - center) @ basis @ basis.T
        return ((hidden.to(dtype) - along if kind == "remove" else center + along).to(hidden.dtype), *rest)

    handle = head.register_forward_pre_hook(project)
    try:
        yield model
    finally:
        handle.remove()


def _head(model: nn.Module) -> nn.Module:
    found = getattr(model, "get_output_embeddings", lambda: None)()
    if found is None:
        raise TypeError(f"{type(model).__name__} has no LM head to project the hidden states for: open the model with "
                        "one (loading.load(..., head=True)).")
    return found


def _checked(head: nn.Module, mean, vectors, k: int, kind: str, about: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and the first k columns, once they are known to fit the model."""
    _check_names(kind, about)
    mean, vectors = torch.as_tensor(mean), torch.as_tensor(vectors)
    width = head.weight.shape[1]
    if mean.shape != (width,) or vectors.ndim != 2 or len(vectors) != width:
        raise ValueError(f"the model's width is {width}; mean and vectors must be of shapes ({width},) and ({width}, "
                         f"...), got {tuple(mean.shape)} and {tuple(vectors.shape)}: of another model?")
    if not 0 <= k <= vectors.shape[1]:
        raise ValueError(f"k must lie between 0 and the number of directions, {vectors.shape[1]}, got {k}.")
    return mean, vectors[:, :k]


def _check_names(kind: str, about: str) -> None:
    if kind not in KINDS or about not in ABOUT:
        raise ValueError(f"kind must be one of {KINDS} and about one of {ABOUT}, got {kind!r} and {about!r}.")
