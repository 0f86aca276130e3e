"""Geometry of one model on texts or on a probe: what is measured, how, and on what a measurement depends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from warnings import warn

from tqdm import tqdm

from reptrace.measures import registry, spectra, within
from reptrace.measures.measure import OF_THE_HEAD, OF_THE_RUN, REFERENCES, REGISTRY
from reptrace.measures.moments import products_dtype
from reptrace.records.store import out_of_disk
from reptrace.sweeps.jobs import Job, Opened, Part
from reptrace.sweeps.located import place
from reptrace.sweeps.references import keep, states_of_reference
from reptrace.texts.given import as_texts
from reptrace.texts.probes import Probe, TokenizingError, first_tokens, in_order

# Raised by hand when the library measures differently from the same inputs: records of older methods are then redone.
METHOD = 3
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
    measures : names in `registry.REGISTRY`, default ("rankme", "alpha")
        The spectrum and its participation ratio, stable rank and variance shares are measured in any case.
    """

    layers: Sequence[int | str] | str = ("final",)
    ranks: tuple[int, int] = RANKS
    batch_size: int | str = 16
    measures: tuple[str, ...] = registry.DEFAULT

    def __post_init__(self):
        one = isinstance(self.layers, (str, int)) and self.layers != "all"
        object.__setattr__(self, "layers", (self.layers,) if one else self.layers)
        object.__setattr__(self, "ranks", tuple(self.ranks))
        object.__setattr__(self, "measures", registry.chosen(self.measures))
        first, last = self.ranks
        if not 1 <= first < last - 1:
            raise ValueError(f"ranks must be 1-based, first and last of at least three, got {tuple(self.ranks)}.")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f'batch_size must be positive or "auto", got {self.batch_size}.')

    @property
    def identity(self) -> dict:
        others = {"measures": sorted(self.measures)} if set(self.measures) != set(registry.DEFAULT) else {}
        return {"layers": self.layers if isinstance(self.layers, str) else list(self.layers),
                "ranks": list(self.ranks), "batch_size": self.batch_size, **others}

    @property
    def needs(self) -> set[str]:
        return registry.needed(self.measures)


@dataclass(frozen=True, eq=False)
class GeometryPart(Part):
    """Geometry on a probe, at every chosen layer: a row a layer, with the status "measured".

    What fails beside what could be measured is a row of its own, with the status "failed" and the reason: a layer whose
    states do not vary, or a measure (of one layer; of none where it is known before the forward pass). Where nothing
    of what was asked for can be measured at a layer, there is that row alone. So a measured row holds nothing but what
    was measured, every gap is one in whatever counts failures, and the record, which has one, is made anew.

    ValueError where it has fewer sequences than one of the measures can be told from.
    """

    probe: Probe = field(repr=False)
    settings: Settings

    def __post_init__(self):
        registry.check_sequences(self.settings.measures, len(self.probe.sequences))

    @property
    def head(self) -> bool:
        return not self.settings.needs.isdisjoint(OF_THE_HEAD)

    @property
    def references(self) -> frozenset[str]:
        return frozenset(self.settings.needs.intersection(REFERENCES))

    def identity(self, job: Job) -> dict:
        compared = {name: job.references[name][1].weights if name in job.references else None
                    for name in self.references}
        return {"probe": self.probe.fingerprint, "method": METHOD, **self.settings.identity,
                "device": job.opening.device, "dtype": job.opening.dtype, **compared}

    def facts(self, job: Job) -> dict:
        return {**place(job.checkpoint), "weights": job.at.weights, **(job.at.stored or {}), **facts_of(self.probe),
                "batch_size": str(self.settings.batch_size)}

    def prepare(self, opened: Opened, progress: bool) -> None:
        for make in self._references(opened, progress).values():
            with suppress(Exception):  # told by the rows
                make()

    def rows(self, opened: Opened, progress: bool) -> list[dict]:
        import torch

        from reptrace.models.decoders import text_decoder

        model, settings = opened.model, self.settings
        device = next(model.parameters()).device
        others, refused = self._before_the_pass(opened, progress)
        left = [name for name in settings.measures if name not in refused]
        if refused and not left:
            return [_gap(refused)]
        for name, error in refused.items():  # now: a pass may take hours
            tqdm.write(f"{opened.job.checkpoint.label}: {name} will be missing: {error}", file=sys.stderr)
        made = partial(keep, opened, self) if self.references.intersection(OF_THE_RUN) else None
        budget, found = _geometries(model, self.probe.sequences, settings.layers, settings.batch_size, settings.ranks,
                                    progress, left, others, made)
        common = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                  "dtype_forward": opened.job.opening.dtype, "dtype_solve": "float64", "centred": True,
                  "quantity": "covariance eigenvalue", "parameters": text_decoder(model).num_parameters(),
                  "batch_tokens": budget}
        kept = torch.promote_types(next(model.parameters()).dtype, torch.float32)  # of the features
        rows = []
        for layer, each in found.items():
            here = {**common, "layer": str(layer)}
            if each.spectrum and (each.columns or not left):
                covariance = str(products_dtype(kept, len(each.spectrum.eigenvalues))).removeprefix("torch.")
                rows.append({**here, **_summary(each.spectrum, each.columns), "dtype_covariance": covariance})
            if each.failed:
                rows.append({**here, **_gap(each.failed, f"layer {layer}")})
        return [*rows, *([{**common, **_gap(refused)}] if refused else [])]

    def _references(self, opened: Opened, progress: bool) -> dict[str, Callable]:
        return {name: partial(states_of_reference, name, opened, self, progress) for name in sorted(self.references)}

    def _before_the_pass(self, opened: Opened, progress: bool) -> tuple[dict, dict[str, Exception]]:
        """What measures need besides the layers' states, by need; and the measures that cannot be told, with the
        reason."""
        needs, samples = self.settings.needs, len(self.probe.sequences)
        given, missing = _tried({**self._references(opened, progress), **_of_the_weights(opened, needs)})
        refused = {}
        for entry in map(REGISTRY.get, self.settings.measures):
            lacking = [missing[need] for need in entry.needs if need in missing]
            if lacking:
                refused[entry.name] = lacking[0]
            else:
                refused |= _tried({entry.name: partial(entry.check, given, samples)})[1]
        return given, refused


def facts_of(probe: Probe) -> dict:
    return {"probe": probe.name, "probe_fingerprint": probe.fingerprint, "probe_seed": probe.seed,
            "sequences": len(probe.sequences), "max_length": probe.max_length, "min_length": probe.min_length}


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
    at_layer = _geometries(model, kept, (layer,), batch_size, ranks, progress)[1][layer]
    for error in at_layer.failed.values():
        raise error
    found = at_layer.spectrum
    if found.dominated:
        warn(found.few, stacklevel=2)
    return found


@dataclass(frozen=True)
class _AtLayer:
    """The spectrum (None where there is none), columns of the measures, and what failed: a measure's name, or "" of
    the spectrum and so of all, with the reason."""

    spectrum: spectra.Geometry | None
    columns: Mapping
    failed: Mapping[str, Exception]


def _geometries(model, sequences, layers, batch_size, ranks, progress: bool, measures: Sequence[str] = (),
                others: Mapping | None = None, made: Callable | None = None) -> tuple[int, dict]:
    """The token budget of the forward pass, and layer -> `_AtLayer`.

    `others`: what measures need besides the layers' features. `made` is called with these, to keep them. All is solved
    on the device that the model is on.
    """
    from reptrace.models.hidden_states import extract

    of_all_tokens = {name: within.REDUCTIONS[name] for name in registry.needed(measures) & set(within.REDUCTIONS)}
    found = extract(model, sequences, layers, batch_size, progress, of_all_tokens)
    device = next(model.parameters()).device
    on = device if device.type == "cuda" else "cpu"
    geometries = {}
    if made:
        made(found.features)
    for layer, matrix in found.features.items():
        features = matrix.to(on)
        given, failed = _tried({"spectrum": partial(spectra.geometry, features, ranks and tuple(ranks), shorten=True)})
        if failed:
            geometries[layer] = _AtLayer(None, {}, {"": failed["spectrum"]})
            continue
        given |= {"features": features, "layers": found.features,
                  **{name: each[layer] for name, each in found.reduced.items()}, **(others or {})}
        for name in set(REFERENCES).intersection(given):
            states = given[name]  # by layer; none of its own where this is the checkpoint itself
            given[name] = None if states is None else states[str(layer)].to(on) if states else features
        each, failed = _tried({name: partial(registry.measured, [name], given) for name in measures})
        columns = {column: value for found_of in each.values() for column, value in found_of.items()}
        geometries[layer] = _AtLayer(given["spectrum"], columns, failed)
    return found.token_budget, geometries


def _tried(makers: Mapping[str, Callable]) -> tuple[dict, dict[str, Exception]]:
    """What can be made, and of the rest why not: whatever goes wrong with one, the others stay."""
    made, failed = {}, {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except Exception as error:
            if out_of_disk(error):
                raise
            failed[name] = error.with_traceback(None)  # it would keep a layer's tensors
    return made, failed


def _gap(failed: Mapping[str, Exception], where: str = "") -> dict:
    """What a row says of what could not be measured."""
    reasons = [f"{type(error).__name__}: {', '.join(filter(None, (where, name)))}: {error}" for name, error in
               failed.items()]
    return {"status": "failed", "reason": "; ".join(reasons)}


def _of_the_weights(opened: Opened, needs: set[str]) -> dict[str, Callable]:
    """What makes what measures need of a model's own weights, once for all layers and probes."""
    from reptrace.models import matrices

    makers = {"unembedding": matrices.unembedding, "head": matrices.head_of, "matrices": matrices.spectra_of}
    return {need: partial(opened.once, need, partial(make, opened.model)) for need, make in makers.items()
            if need in needs}


def _summary(found: spectra.Geometry, columns: Mapping) -> dict:
    s = found.eigenvalues
    return {
        "width": len(s), **columns,
        "participation_ratio": spectra.participation_ratio(s), "stable_rank": spectra.stable_rank(s),
        **{f"share_top{k}": spectra.variance_share(s, k) for k in SHARES if k <= len(s)},
        "total_variance": float(s.sum()), "eigenvalues": s.tolist(),
    }
