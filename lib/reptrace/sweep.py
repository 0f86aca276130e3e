"""Checkpoints x one probe -> records: what is missing is measured, what is there is read."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from reptrace.corpora import Probe
from reptrace.moments import products_dtype
from reptrace.processes import end_with_parent
from reptrace.records import Store
from reptrace.suites import Checkpoint, commit_of

# Raised by hand when the library measures differently from the same inputs: records of older methods are then redone.
METHOD = 1
RANKS = (12, 100)
SHARES = (1, 10)
MEASURED = ("layer", "rankme", "rankme_stderr", "alpha", "alpha_stderr", "alpha_r2", "wall_seconds")


def measure(model, texts: Sequence[str], tokenizer=None, revision: str | None = None, layer: int | str = "final",
            max_length: int = 512, min_length: int = 1, batch_size: int = 16, ranks: tuple[int, int] = RANKS):
    """Geometry of a model's representation of some texts: eigenvalues, RankMe and alpha with their intervals.

    Parameters
    ----------
    model : transformers model, or a repository or folder by name
    texts : M strings; more than the model's width of them, or RankMe is biased down
    tokenizer : transformers tokenizer; default the one stored with the named model
    revision : str, optional, of a named repository
    layer, batch_size : see `hidden_states.last_token_states`
    max_length, min_length : int, default 512 and 1, tokens; texts are cut at the first, passed over below the second
    ranks : (int, int), default (12, 100), shortened where the spectrum is shorter (`.alpha.ranks` says so)

    Returns
    -------
    spectra.Geometry
    """
    from reptrace.hidden_states import last_token_states, load, load_tokenizer
    from reptrace.spectra import geometry

    if isinstance(model, (str, os.PathLike)):
        tokenizer = tokenizer or load_tokenizer(str(model), revision)
        model = load(str(model), revision)
    elif tokenizer is None:
        raise ValueError("a model object does not bring its tokenizer: pass tokenizer=...")
    ids = tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
    kept = [sequence for sequence in ids if len(sequence) >= max(1, min_length)]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} of {len(ids)} texts have at least {max(1, min_length)} tokens, a spectrum needs "
                         "two or more: bring more text, or lower min_length.")
    return geometry(last_token_states(model, kept, (layer,), batch_size)[layer], ranks, shorten=True)


def trace(checkpoints: Sequence[Checkpoint], probe: Probe, store: Store, layers: Sequence[int | str] | str = ("final",),
          ranks: tuple[int, int] = RANKS, batch_size: int = 16, workers: int = 1, device: str | None = None,
          dtype: str | None = None, progress: bool = True) -> pd.DataFrame:
    """Spectrum, RankMe and alpha of every checkpoint at every chosen layer, with standard errors.

    A checkpoint already in the store with the same weights, probe and settings is not measured again; one that failed
    is tried again. A failure is a row with status "failed" and its reason.

    Parameters
    ----------
    checkpoints : list of Checkpoint (`suites.checkpoints` lists those of a folder or repository)
    probe : Probe
    store : Store
    layers : see `hidden_states.last_token_states`
    ranks : (int, int), default (12, 100)
        alpha's window, 1-based, both ends fitted; shortened where the spectrum ends before (`alpha_last_rank` says so),
        and no alpha (nan) where fewer than three ranks are left.
    batch_size : int, default 16
    workers : int, default 1
        Checkpoints measured side by side, each by a process with one thread; worth it for small models on a CPU.
    device, dtype : see `hidden_states.placement`

    Returns
    -------
    pandas.DataFrame, a row per checkpoint and layer, in the order given, gaps included.
    """
    from reptrace.hidden_states import placement

    first, last = ranks
    if not 1 <= first < last - 1:
        raise ValueError(f"ranks must be 1-based, first and last of at least three, got {tuple(ranks)}.")
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be positive, got {batch_size} and {workers}.")
    device, dtype = placement(device, dtype)
    settings = {"layers": layers if isinstance(layers, str) else list(layers), "ranks": [first, last],
                "batch_size": batch_size, "device": device, "dtype": dtype}
    work = [(checkpoint, identity_of(checkpoint, probe, settings)) for checkpoint in checkpoints]
    missing = [item for item in work if not store.done(item[1])]
    job = partial(_measure, probe=probe, store=store, settings=settings)
    bar = partial(tqdm, total=len(missing), desc="tracing", unit="checkpoint", disable=not progress or not missing)
    if workers > 1 and len(missing) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            list(bar(pool.map(job, missing)))
    else:
        for item in bar(missing):
            job(item)
    tables = [store.table([identity]).assign(**_place(checkpoint)) for checkpoint, identity in work]
    table = pd.concat(tables, ignore_index=True)
    return table.reindex(columns=[*table.columns, *(name for name in MEASURED if name not in table)])


def identity_of(checkpoint: Checkpoint, probe: Probe, settings: dict) -> dict:
    """What a measurement depends on: the very weights, the very tokens and the settings."""
    return {"model": checkpoint.model if checkpoint.revision else Path(checkpoint.model).name,
            "revision": checkpoint.revision, "weights": commit_of(checkpoint) or _weights_hash(checkpoint.model),
            "probe": probe.fingerprint, "method": METHOD, **settings}


def _place(checkpoint: Checkpoint) -> dict:
    """Where a checkpoint stands in its run: not part of a measurement's identity, so never taken from the record."""
    return {"model": checkpoint.model, "revision": checkpoint.revision, "step": checkpoint.step,
            "tokens": checkpoint.tokens}


def _measure(item: tuple[Checkpoint, dict], probe: Probe, store: Store, settings: dict) -> None:
    checkpoint, identity = item
    facts = {**_place(checkpoint), "weights": identity["weights"], "probe": probe.name,
             "probe_fingerprint": probe.fingerprint, "probe_seed": probe.seed, "sequences": len(probe.sequences),
             "max_length": probe.max_length, "min_length": probe.min_length, "batch_size": settings["batch_size"]}
    store.measure(identity, partial(_rows, checkpoint, identity["weights"], probe, settings), facts)


def _rows(checkpoint: Checkpoint, commit: str, probe: Probe, settings: dict) -> list[dict]:
    import torch

    from reptrace import spectra
    from reptrace.hidden_states import last_token_states, load

    # by its commit, so that what is measured is what the identity says even if the branch moves meanwhile
    revision = None if os.path.isdir(checkpoint.model) else commit
    model = load(checkpoint.model, revision, checkpoint.cache_dir, settings["device"], settings["dtype"])
    cuda = settings["device"].startswith("cuda")
    common = {"device": torch.cuda.get_device_name(settings["device"]) if cuda else settings["device"],
              "dtype_forward": settings["dtype"],
              "dtype_solve": "float64", "centred": True,
              "quantity": "covariance eigenvalue", "parameters": model.num_parameters()}
    features = last_token_states(model, probe.sequences, settings["layers"], settings["batch_size"])
    return [{**common, "layer": str(layer), **_summary(spectra, matrix, settings["ranks"])}
            for layer, matrix in features.items()]


def _summary(spectra, matrix, ranks) -> dict:
    found = spectra.geometry(matrix, tuple(ranks), shorten=True)
    s, fit = found.eigenvalues, found.alpha
    nan = float("nan")
    return {
        "dtype_covariance": str(products_dtype(matrix.dtype, len(s))).removeprefix("torch."),
        "width": len(s), "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
        "alpha": fit.alpha if fit else nan, "alpha_stderr": found.alpha_stderr,
        "alpha_fit_stderr": fit.stderr if fit else nan, "alpha_r2": fit.r2 if fit else nan,
        "alpha_first_rank": fit.ranks[0] if fit else None, "alpha_last_rank": fit.ranks[1] if fit else None,
        "participation_ratio": spectra.participation_ratio(s), "stable_rank": spectra.stable_rank(s),
        **{f"share_top{k}": spectra.variance_share(s, k) for k in SHARES if k <= len(s)},
        "total_variance": float(s.sum()), "eigenvalues": s.tolist(),
    }


def _weights_hash(folder: str) -> str:
    """SHA-256 of a plain folder's configuration and weight files, shortened; "none" where there is no such file."""
    digest = hashlib.sha256()
    patterns = ("config.json", "model*.safetensors", "pytorch_model*.bin")
    files = sorted(path for pattern in patterns for path in Path(folder).glob(pattern))
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:40] if files else "none"


def _start_worker() -> None:
    """One thread, and an end as soon as the parent's."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    end_with_parent()

