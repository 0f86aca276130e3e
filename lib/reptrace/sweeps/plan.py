"""What a sweep would take before it is begun: bytes, operations and hours, by suite, for a named GPU.

Sizes are those of the hub's files where it can be asked, else parameters times the bytes a weight takes. Operations of
one forward pass without LM head, for each token: 2 for every weight outside the embeddings, and 4 x layers x width for
every token attended to, on average half of the length (Kaplan et al. 2020, table 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reptrace.checkpoints import hub
from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.selection import spread, with_faults
from reptrace.checkpoints.suites import Suite
from reptrace.checkpoints.weights import is_here
from reptrace.measures import registry
from reptrace.measures.measure import OF_THE_RUN
from reptrace.records.store import Store
from reptrace.support.arguments import near
from reptrace.sweeps.located import named
from reptrace.sweeps.references import BUDGET
from reptrace.texts.corpora import ProbeSpec

SHARE = 0.4  # of a GPU's peak that a forward pass is taken to reach; `make bench` measures yours
OVERHEAD = 30  # seconds a checkpoint: opening the weights, the covariance and its eigenvalues
HELD = 1 + len(OF_THE_RUN)  # checkpoints whose states a comparison takes
EXTRA_MEMORY = 1.2  # weights and a batch's activations, against the weights alone


@dataclass(frozen=True)
class GPU:
    """Peak of dense bfloat16 products in operations a second, and memory in bytes, as its maker states them."""

    peak: float
    memory: float


GPUS = {"H200": GPU(989e12, 141e9), "H100": GPU(989e12, 80e9), "A100-80GB": GPU(312e12, 80e9),
        "A100-40GB": GPU(312e12, 40e9), "L40S": GPU(362e12, 48e9), "RTX4090": GPU(165.2e12, 24e9),
        "RTX3090": GPU(71.2e12, 24e9)}


def estimate(suites: Sequence[Suite], probes: Sequence[ProbeSpec], count: int | None = None,
             tasks: Sequence[str] = (), gpu: str = "H100", gpus: int = 1, megabytes_a_second: float = 200,
             ask: bool = True, store: Store | None = None, faulty: bool = False,
             measures: Sequence[str] = registry.DEFAULT, layers: Sequence | str = ("final",),
             points: Sequence[Checkpoint] | None = None) -> pd.DataFrame:
    """A row a suite: what there is, what would be measured, and what that takes.

    Parameters
    ----------
    probes : list of ProbeSpec
        What each checkpoint is measured on; every sequence is counted as if it had the greatest length.
    count : as in `sweep`
    tasks : list of str
        Names of tasks that are asked. How much they compute is not known beforehand: with tasks alone, petaflop,
        gpu_hours and hours are nan.
    gpu : str, a key of GPUS
    gpus : int, default 1
        That measure side by side, one checkpoint each.
    megabytes_a_second : float, default 200
        Of downloading, all together.
    ask : bool, default True
        Ask the hub for branches and sizes.
    store : Store, optional
        What it holds already is counted off: a checkpoint with all of the tasks, and with a geometry on whatever text
        of the same measures where there are probes.
    faulty : bool, default False
        Those with a known fault are measured too.
    measures, layers : as in `measurement.Settings`
    points : list of Checkpoint, optional
        Of the one suite that is given, where it is no registered one (`suite_of`): a model's own.

    Returns
    -------
    pandas.DataFrame: suite, published, faulty, chosen, done (checkpoints), gb_each, gb_download, gb_disk (with the
    default budget of two checkpoints a GPU), gb_memory (of the GPU: weights in bfloat16 and a batch), petaflop,
    gpu_hours, download_hours, hours (the two overlap: the longer one), fits (into one GPU), sizes ("files" or
    "estimated"); nan where a suite's shape is not known. extra_passes: forward passes beside one a checkpoint and text,
    of references whose states are not kept yet: one where the budget of `references` holds those of four checkpoints,
    else up to three a checkpoint; gb_states: states kept for comparisons, at most that budget. What the measures
    compute is in petaflop and the hours (each alone: `by_measure`). names: "seen" (on the hub, now, or here), "listed"
    in the suite's file, or "not yet seen" (listed there from public text alone). What lies in a folder, or in a cache
    that the suite names, is not downloaded.
    """
    suites = [suites] if isinstance(suites, Suite) else list(suites)
    if not all(isinstance(suite, Suite) for suite in suites):
        raise TypeError("expected suites, as suites.suite(name) opens them, got "
                        f"{', '.join(type(suite).__name__ for suite in suites[:3])}.")
    if gpu not in GPUS:
        raise ValueError(f"there is no GPU {gpu!r} in the table.{near(gpu, GPUS)} It has {', '.join(GPUS)}.")
    machine = GPUS[gpu]
    asked = registry.chosen(measures)
    for spec in probes:
        registry.check_sequences(asked, spec.sequences)
    done = _done(store, asked if probes else (), tasks)
    return pd.DataFrame([_row(suite, suite.checkpoints(ask) if points is None else points, count, probes, done, machine,
                              gpus, megabytes_a_second, ask, faulty, asked, layers) for suite in suites])


def suite_of(name: str, config) -> Suite:
    """A model as a suite without stages, whose shape is that of a transformers configuration, as far as it tells it.

    A model is built on the device "meta", which takes no memory; one that needs code of its own is not, and its number
    of weights is not known.
    """
    import torch

    from reptrace.models.loading import parameters
    from reptrace.models.positions import text_config

    text = text_config(config)
    named = {"layers": "num_hidden_layers", "width": "hidden_size", "vocabulary": "vocab_size"}
    shape = {key: value for key, attribute in named.items() if (value := getattr(text, attribute, None))}
    tied, dtype = bool(getattr(text, "tie_word_embeddings", False)), getattr(config, "dtype", None) or "float32"
    shape |= {"tied": tied, "bytes_per_weight": getattr(torch, str(dtype).removeprefix("torch.")).itemsize}
    if set(named) <= set(shape):
        with suppress(ValueError, ImportError):  # no model can be built by it
            shape["parameters"] = parameters(name, config) + (0 if tied else shape["vocabulary"] * shape["width"])
    return Suite(name, (), shape)


def by_measure(suite: Suite, probe: ProbeSpec, checkpoints: int, measures: Sequence[str], layers: Sequence | str
               ) -> pd.DataFrame:
    """What each measure takes of so many checkpoints beside the spectrum: measure, petaflop, extra_passes, gb_states
    (before any budget); nan where the shape is not known."""
    costs = {name: _cost(suite.shape, [name], checkpoints, probe.sequences, layers) for name in measures}
    return pd.DataFrame([{"measure": name, "petaflop": each.operations / 1e15, "extra_passes": each.passes,
                          "gb_states": each.bytes / 1e9} for name, each in costs.items()])


def _row(suite: Suite, points: Sequence[Checkpoint], count, probes: Sequence[ProbeSpec], done: set, gpu: GPU, gpus: int,
         speed: float, ask: bool, faulty: bool, measures: Sequence[str], layers) -> dict:
    chosen = with_faults(spread(points, count), points) if faulty else spread(points, count)
    left = [point for point in chosen if (named(point), point.revision) not in done]
    fetched = [point for point in left if point.cache_dir is None and not is_here(point.model)]
    size, sizes = _bytes_each(suite, left or chosen, ask)
    operations = sum(_operations(suite.shape, spec.sequences * spec.max_length, spec.max_length) for spec in probes)
    operations = operations if probes else float("nan")
    costs = [_cost(suite.shape, measures, len(left), spec.sequences, layers) for spec in probes]
    states = sum(each.bytes for each in costs)
    # In the states' folder lie those of the first, the last, the previous checkpoint and this one; where it does not
    # hold all four, the first three are made anew for each.
    crowded = HELD * states > BUDGET * len(left)
    again = len(OF_THE_RUN) * len(left) if crowded else max((each.passes for each in costs), default=0)
    computed = _times(len(left) + again, operations) + sum(each.operations for each in costs)
    measuring = (computed / (gpu.peak * SHARE) + len(left) * OVERHEAD) / gpus / 3600
    downloads = len(fetched) + (again if fetched else 0)
    downloading = _times(downloads, size) / (speed * 1e6) / 3600
    memory = suite.shape.get("parameters", float("nan")) * 2 * EXTRA_MEMORY
    return {"suite": suite.name, "published": len(points), "faulty": sum(bool(point.fault) for point in points),
            "chosen": len(chosen), "done": len(chosen) - len(left), "gb_each": size / 1e9,
            "gb_download": _times(downloads, size) / 1e9,
            "gb_disk": _times(min(len(fetched), 2 * gpus), size) / 1e9, "gb_memory": memory / 1e9,
            "extra_passes": again * sum(each.passes > 0 for each in costs),
            "gb_states": (min(states, BUDGET) if states == states else states) / 1e9,
            "petaflop": computed / 1e15, "gpu_hours": measuring * gpus,
            "download_hours": downloading, "hours": max(measuring, downloading), "fits": "?" if memory != memory else
            "yes" if memory <= gpu.memory else "no", "sizes": sizes, "names": _named_by(suite, points)}


def _named_by(suite: Suite, points) -> str:
    """Who says that there are these checkpoints."""
    asked = any(point.commit or Path(point.model).is_dir() for point in points)
    return "seen" if asked else "not yet seen" if suite.unseen else "listed"


def _times(count: int, each: float) -> float:
    """Nothing of what is not known is nothing."""
    return count * each if count else 0.0


def _cost(shape, measures: Sequence[str], checkpoints: int, samples: int, layers) -> registry.Cost:
    """Of the measures; nan where they are some beside the spectra and the shape is not known."""
    if not {"layers", "width", "vocabulary"} <= set(shape):
        unknown = float("nan") if set(measures) - set(registry.DEFAULT) else 0.0
        return registry.Cost(unknown, registry.cost(measures, checkpoints, samples, 1).passes, unknown)
    count = shape["layers"] + 2 if layers == "all" else len(layers)
    return registry.cost(measures, checkpoints, samples, shape["width"], count, shape["vocabulary"], shape["layers"])


def _done(store: Store | None, measures: Sequence[str], tasks: Sequence[str]) -> set[tuple]:
    """(model, revision) of what a store holds in full, as records' identities name them."""
    table = store.table() if store else pd.DataFrame()
    if not len(table):
        return set()
    held: dict[str | None, set] = {task: set() for task in [*([None] if measures else []), *tasks]}
    failed = set(table.identity[table.status == "failed"])  # in part, too: such a record is made anew
    for identity in map(json.loads, set(table.identity) - failed):
        asked = identity.get("definition", {}).get("task")
        if asked is None and "probe" in identity and set(identity.get("measures", registry.DEFAULT)) != set(measures):
            continue
        held.get(asked, set()).add((identity["model"], identity["revision"]))
    return set.intersection(*held.values())


def _bytes_each(suite: Suite, points, ask: bool) -> tuple[float, str]:
    """Size of a checkpoint: of the last one's files on the hub, or estimated."""
    known = [point for point in points if point.commit and point.cache_dir is None] if ask and hub.reachable() else []
    if known:
        try:
            return hub.files(known[-1].model, known[-1].commit).bytes, "files"
        except hub.HubError:
            pass
    shape = suite.shape
    return shape.get("parameters", float("nan")) * shape.get("bytes_per_weight", 2), "estimated"


def _operations(shape, tokens: int, context: int) -> float:
    """Of one forward pass over so many tokens, without embeddings and LM head."""
    if not {"parameters", "layers", "width", "vocabulary"} <= set(shape):
        return float("nan")
    weights = shape["parameters"] - (1 if shape.get("tied") else 2) * shape["vocabulary"] * shape["width"]
    return tokens * (2 * weights + 2 * shape["layers"] * shape["width"] * context)
