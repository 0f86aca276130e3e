"""One checkpoint on its probes -> rows: what is measured, how, and on what a measurement depends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from warnings import warn

from tqdm import tqdm

from reptrace.checkpoints import hub, weights
from reptrace.checkpoints.suites import Checkpoint
from reptrace.measures.moments import products_dtype
from reptrace.records.store import attempt
from reptrace.support import arguments
from reptrace.texts.given import as_texts
from reptrace.texts.probes import Probe, TokenizingError, first_tokens, in_order

# Raised by hand when the library measures differently from the same inputs: records of older methods are then redone.
METHOD = 2
RANKS = (12, 100)
SHARES = (1, 10)


@dataclass(frozen=True)
class Settings:
    """How every checkpoint of a sweep is measured; what decides the numbers is part of a record's identity.

    Parameters
    ----------
    layers, batch_size : see `hidden_states.last_token_states`
    ranks : (int, int), default (12, 100)
        alpha's window, 1-based, both ends fitted; shortened where the spectrum ends before (`alpha_last_rank` says so),
        and no alpha (nan) where fewer than three ranks are left.
    device, dtype : see `loading.placement`
    trust : repositories whose own code may run; default none
    """

    layers: Sequence[int | str] | str = ("final",)
    ranks: tuple[int, int] = RANKS
    batch_size: int | str = 16
    device: str | None = None
    dtype: str | None = None
    trust: tuple[str, ...] = ()

    def __post_init__(self):
        one = isinstance(self.layers, (str, int)) and self.layers != "all"
        object.__setattr__(self, "layers", (self.layers,) if one else self.layers)
        object.__setattr__(self, "trust", arguments.trusted(self.trust))
        first, last = self.ranks
        if not 1 <= first < last - 1:
            raise ValueError(f"ranks must be 1-based, first and last of at least three, got {tuple(self.ranks)}.")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f'batch_size must be positive or "auto", got {self.batch_size}.')

    @property
    def identity(self) -> dict:
        return {"layers": self.layers if isinstance(self.layers, str) else list(self.layers),
                "ranks": list(self.ranks), "batch_size": self.batch_size, "device": self.device, "dtype": self.dtype}


@dataclass(frozen=True, eq=False)
class Job:
    """One checkpoint with the probes that it is to be measured on, and where its weights are (see `sweep.Located`)."""

    checkpoint: Checkpoint
    probes: tuple[Probe, ...] = field(repr=False)
    settings: Settings
    weights: str | None = None
    files: hub.Files | None = None
    trouble: str = ""
    stamp: tuple = ()

    def identity(self, probe: Probe) -> dict:
        """What a measurement depends on: the very weights, the very tokens and the settings."""
        return {**identity_of(self.checkpoint, self.weights, self.settings.trust), "probe": probe.fingerprint,
                "method": METHOD, **self.settings.identity}

    def facts(self, probe: Probe) -> dict:
        """Columns of its record that are known beforehand."""
        return {**place(self.checkpoint), "weights": self.weights, **facts_of(probe),
                "batch_size": str(self.settings.batch_size)}


def identity_of(checkpoint: Checkpoint, weights: str | None, trust: Sequence[str]) -> dict:
    """What of a record's identity says which model it is of; code of its own counts where it may run."""
    own_code = {"own_code": True} if arguments.is_trusted(checkpoint.model, trust) else {}
    return {"model": checkpoint.model if checkpoint.revision else Path(checkpoint.model).name,
            "revision": checkpoint.revision, "weights": weights, **own_code}


def place(checkpoint: Checkpoint) -> dict:
    """Where a checkpoint stands in its run: not part of a measurement's identity, so never taken from the record."""
    return {"model": checkpoint.model, "revision": checkpoint.revision, "stage": checkpoint.stage,
            "step": checkpoint.step, "tokens": checkpoint.tokens, "fault": checkpoint.fault}


def facts_of(probe: Probe) -> dict:
    return {"probe": probe.name, "probe_fingerprint": probe.fingerprint, "probe_seed": probe.seed,
            "sequences": len(probe.sequences), "max_length": probe.max_length, "min_length": probe.min_length}


def measure_job(job: Job, cache_dir: str | Path | None = None, progress: bool = False) -> list[list[dict]]:
    """Rows of a job's probes, a list for each, failures included; the weights are opened once."""
    model = attempt(partial(_opened, job, cache_dir))
    if "status" in model[0]:  # it could not be opened: every probe has the same gap
        return [model for _ in job.probes]
    return [attempt(partial(_measured, job, model[0]["model"], probe, progress)) for probe in job.probes]


def measure(model, texts: Sequence[str], tokenizer=None, revision: str | None = None, layer: int | str = "final",
            max_length: int = 512, min_length: int = 1, batch_size: int | str = "auto",
            ranks: tuple[int, int] = RANKS, trust_remote_code: bool = False, progress: bool = False):
    """Geometry of a model's representation of some texts: eigenvalues, RankMe and alpha with their intervals.

    To the last digit what `python -m reptrace trace` gives for the same texts and settings.

    Parameters
    ----------
    model : transformers model, or a repository or folder by name
    texts : list of strings, or another sequence of them; the order does not matter
        M different ones (a text that stands there twice counts once): more than the model's width, or RankMe is biased
        down.
    tokenizer : transformers tokenizer; default the one stored with the named model
    revision : str, optional, of a named repository
    layer, batch_size : see `hidden_states.last_token_states`
    max_length, min_length : int, default 512 and 1
        Texts are cut to their first max_length tokens (`probes.first_tokens`). Blank ones, and those below min_length,
        are passed over, and their number is said on standard error.
    ranks : (int, int), default (12, 100), shortened where the spectrum is shorter (`.alpha.ranks` says so)
    trust_remote_code : bool, default False; run Python code that comes with the named model, see `loading.load`
    progress : bool, default False; show a progress bar

    Returns
    -------
    spectra.Geometry

    Warns
    -----
    UserWarning
        A few of the texts make up most of the variance, so that RankMe is theirs: see `spectra.dominated`.
    """
    from reptrace.models.loading import load, load_tokenizer

    texts, min_length = as_texts(texts), max(1, min_length)
    if max_length < min_length:
        raise ValueError(f"texts cannot be cut at {max_length} tokens and have {min_length} at least: raise max_length "
                         "or lower min_length.")
    if isinstance(model, (str, os.PathLike)):
        trust = {"trust_remote_code": trust_remote_code}
        tokenizer = tokenizer or load_tokenizer(str(model), revision, **trust)
        model = load(str(model), revision, **trust)
    elif tokenizer is None:
        raise ValueError("a model object does not bring its tokenizer: pass tokenizer=...")
    different = in_order([text for text in texts if text.strip()])  # a file's rows without text are passed over, too
    try:
        kept = [ids for ids in first_tokens(tokenizer, different, max_length) if len(ids) >= min_length]
    except TokenizingError as error:
        number = texts.index(different[error.index])
        raise TokenizingError(f"texts[{number}]", number, error.reason) from error
    if len(kept) < 2:
        lower = ", or lower min_length" if len(different) > 1 and min_length > 1 else ""
        raise ValueError(f"{len(kept)} of {len(different)} different texts have at least {min_length} tokens, a "
                         f"spectrum needs two or more: bring more text{lower}.")
    blank, short = sum(not text.strip() for text in texts), len(different) - len(kept)
    twice = len(texts) - blank - len(different)
    if blank or short or twice:  # said where the command line says it
        tqdm.write(f"passed over: {blank} blank texts, {twice} that stand there before, {short} of fewer than "
                   f"{min_length} tokens; {len(kept)} were measured", file=sys.stderr)
    found = _geometries(model, kept, (layer,), batch_size, ranks, progress)[1][layer]
    if found.dominated:
        warn(found.few, stacklevel=2)
    return found


def _opened(job: Job, cache_dir: str | Path | None) -> list[dict]:
    point = job.checkpoint
    return [{"model": open_at(point, job, cache_dir, job.settings.device, job.settings.dtype,
                              trust_remote_code=arguments.is_trusted(point.model, job.settings.trust))}]


def open_at(checkpoint: Checkpoint, at, cache_dir: str | Path | None, device: str | None, dtype: str | None, *,
            trust_remote_code: bool, head: bool = False):
    """`loading.load` of a checkpoint where it was located, so that what opens is what its identity says.

    `at` is a `sweep.Located`, or a job with the same attributes; `cache_dir`, where its files were fetched to.
    """
    from huggingface_hub import constants

    from reptrace.models.loading import load

    folder = os.path.isdir(checkpoint.model)
    if folder and at.trouble:
        raise ValueError(at.trouble)
    if at.trouble:  # what lies complete in the user's cache will do; nothing is fetched past the checks and the budget
        cache_dir = checkpoint.cache_dir or constants.HF_HUB_CACHE
    try:
        # by its commit, so that it is the same even if the branch moves meanwhile
        model = load(checkpoint.model, None if folder else at.weights, cache_dir or checkpoint.cache_dir, device, dtype,
                     trust_remote_code=trust_remote_code, head=head)
    except FileNotFoundError as error:
        if at.trouble:
            raise hub.HubError(at.trouble) from error
        raise
    check_unchanged(checkpoint, at, trust_remote_code)
    return model


def check_unchanged(checkpoint: Checkpoint, at, own_code: bool) -> None:
    """ValueError where a folder's files are no longer those that its identity was taken from.

    To be called after a measurement, too: weights are mapped into memory, and change with their file.
    """
    if os.path.isdir(checkpoint.model) and at.stamp != weights.stamp(checkpoint.model, own_code):
        raise ValueError(f"the files of {checkpoint.model!r} were written anew while it was measured, or waited for "
                         "it: run again once they stay as they are.")


def _measured(job: Job, model, probe: Probe, progress: bool) -> list[dict]:
    rows = _rows(model, probe, job.settings, progress)
    check_unchanged(job.checkpoint, job, arguments.is_trusted(job.checkpoint.model, job.settings.trust))
    return rows


def _rows(model, probe: Probe, settings: Settings, progress: bool) -> list[dict]:
    import torch

    from reptrace.models.decoders import text_decoder

    device = next(model.parameters()).device
    budget, found = _geometries(model, probe.sequences, settings.layers, settings.batch_size, settings.ranks, progress)
    common = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
              "dtype_forward": settings.dtype, "dtype_solve": "float64", "centred": True,
              "quantity": "covariance eigenvalue", "parameters": text_decoder(model).num_parameters(),
              "batch_tokens": budget}
    kept = torch.promote_types(next(model.parameters()).dtype, torch.float32)  # of the features
    return [{**common, "layer": str(layer), **_summary(each),
             "dtype_covariance": str(products_dtype(kept, len(each.eigenvalues))).removeprefix("torch.")}
            for layer, each in found.items()]


def _geometries(model, sequences, layers, batch_size, ranks, progress: bool) -> tuple[int, dict]:
    """The token budget of the forward pass, and the geometry at each layer, on the device that the model is on."""
    from reptrace.measures.spectra import geometry
    from reptrace.models.hidden_states import extract

    found, device = extract(model, sequences, layers, batch_size, progress), next(model.parameters()).device
    on = device if device.type == "cuda" else "cpu"
    geometries = {}
    for layer, matrix in found.features.items():
        try:
            geometries[layer] = geometry(matrix.to(on), ranks and tuple(ranks), shorten=True)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from error
    return found.token_budget, geometries


def _summary(found) -> dict:
    from reptrace.measures import spectra

    s, fit = found.eigenvalues, found.alpha
    nan = float("nan")
    return {
        "width": len(s), "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
        "largest_influence": found.largest_influence, "half_variance": found.half_variance,
        "alpha": fit.alpha if fit else nan, "alpha_stderr": found.alpha_stderr,
        "alpha_fit_stderr": fit.stderr if fit else nan, "alpha_r2": fit.r2 if fit else nan,
        "alpha_first_rank": fit.ranks[0] if fit else None, "alpha_last_rank": fit.ranks[1] if fit else None,
        "participation_ratio": spectra.participation_ratio(s), "stable_rank": spectra.stable_rank(s),
        **{f"share_top{k}": spectra.variance_share(s, k) for k in SHARES if k <= len(s)},
        "total_variance": float(s.sum()), "eigenvalues": s.tolist(),
    }
