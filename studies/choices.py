"""Does the picture depend on how one measures? Every checkpoint of the default suite, by every choice.

    make choices

Trains what is missing of the suite, measures each checkpoint by the choices of choices.yaml, and writes two tables to
data/results: choices.parquet (RankMe and alpha, a row a checkpoint and choice) and choices_spikes.parquet (sequences
that one coordinate dominates, a row a checkpoint and layer). What is measured already is kept in build/choices and
read; it hangs on the settings and texts: delete that folder where the code has changed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from reptrace.checkpoints.suites import Checkpoint
from reptrace.measures.spectra import geometry
from reptrace.measures.spikes import spikes
from reptrace.measures.variants import variant
from reptrace.models.chosen_tokens import at, at_random, lengths, mean
from reptrace.models.hidden_states import FINAL, Extraction, extract
from reptrace.models.loading import load
from reptrace.records.store import Store, write_atomically
from reptrace.report.profiles import BATCH_SIZE, CORPORA, ROOT, Profile
from reptrace.support.fingerprints import fingerprint
from reptrace.support.processes import KEEP_BUFFERS, cores, end_with_parent
from reptrace.texts.corpora import open_text, probe

PLAN = Path(__file__).with_suffix(".yaml")
PARAMS = ROOT / "notebooks" / "params" / "tiny.yaml"
RESULTS, BUILD = ROOT / "data" / "results", ROOT / "build" / "choices"
LAST, ANY, MEAN = "last", "any", "mean"
REDUCTIONS = {ANY: at_random, MEAN: mean}
SEQUENCES = dict[tuple[str, bool], list[list[int]]]  # by text, and whether the tokens are shuffled


@dataclass(frozen=True)
class Choice:
    """A way of measuring; the defaults are the paper's.

    Parameters
    ----------
    token : "last", "any" (one at random), "mean" (over all), or k, 1-based: the k-th, the last of the first k
    before_norm : bool; the last block's output in place of what the final norm makes of it
    centred, singular : see `variants.variant`
    times_width : float; so many sequences, as a multiple of the model's width. 0: all
    text, shuffled, dtype : of the forward pass; shuffled: a sequence's tokens in random order
    """

    token: str | int = LAST
    before_norm: bool = False
    centred: bool = True
    singular: bool = False
    times_width: float = 0
    text: str = "docstrings"
    shuffled: bool = False
    dtype: str = "float32"

    @property
    def forward(self) -> tuple[str, bool, str]:
        """What choices share a forward pass by."""
        return self.text, self.shuffled, self.dtype


def main() -> None:
    started = time.perf_counter()
    plan = yaml.safe_load(PLAN.read_text())
    profile = Profile.of(yaml.safe_load(PARAMS.read_text()))
    profile.train()
    sequences = drawn(profile, plan["sequences"], chosen(plan))
    points = {run: profile.suite.checkpoints(run) for run in profile.runs}
    measure_missing([point for its in points.values() for point in its], plan, sequences, profile.alpha_ranks,
                    Store(BUILD), cores())
    labels = {run.repository: profile.labels[run] for run in profile.runs}
    for name, table in tables(labels, points.values(), plan, sequences, profile.alpha_ranks, Store(BUILD)).items():
        write_atomically(RESULTS / f"{name}.parquet", table.to_parquet(index=False))
        print(f"{len(table)} rows: data/results/{name}.parquet")
    spent = os.times()
    print(f"{time.perf_counter() - started:.0f} s, processor "
          f"{spent.user + spent.system + spent.children_user + spent.children_system:.0f} s")


def chosen(plan: Mapping) -> dict[str, Choice]:
    """The plan's choices by name."""
    return {name: Choice(**changes) for its in plan["plan"].values() for name, changes in its.items()}


def drawn(profile: Profile, counts: Mapping[str, int], choices: Mapping[str, Choice]) -> SEQUENCES:
    """The probe of each text, of so many documents, the first of its order; of docstrings, held-out ones.

    The suite's tokenizer and lengths serve all. Tokens are shuffled within their sequence, always alike.
    """
    run, rng, found = profile.runs[0], np.random.default_rng(0), {}
    tokenizer = profile.suite.tokenizer(run.vocabulary)
    for text in dict.fromkeys(choice.text for choice in choices.values()):
        corpus = profile.texts[1] if text == profile.corpus else open_text(text, cache=CORPORA)
        found[text, False] = probe(corpus, tokenizer, counts[text], run.context, profile.min_length).sequences
    for text in dict.fromkeys(choice.text for choice in choices.values() if choice.shuffled):
        found[text, True] = [rng.permutation(sequence).tolist() for sequence in found[text, False]]
    return found


def identity(point: Checkpoint, plan: Mapping, sequences: SEQUENCES, ranks: Sequence[int]) -> dict:
    """What a checkpoint's numbers hang on, but for the code."""
    marks = {f"{text}{' shuffled' * shuffled}": fingerprint(json.dumps(each).encode() for each in its)
             for (text, shuffled), its in sequences.items()}
    return {"study": "choices", "model": point.model, "revision": point.revision, "plan": dict(plan),
            "alpha_ranks": list(ranks), "probes": marks}


def measure_missing(points: Sequence[Checkpoint], plan: Mapping, sequences: SEQUENCES, ranks: Sequence[int],
                    store: Store, workers: int = 1) -> None:
    """Measure the checkpoints that the store lacks, `workers` at a time, each written when it is done."""
    missing = [point for point in points if not store.done(identity(point, plan, sequences, ranks))]
    os.environ.update(KEEP_BUFFERS)  # for the processes
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin,
                             (plan, sequences, ranks, store)) as pool:
        try:
            waiting = [pool.submit(_measure, point) for point in missing]
            for done in tqdm(as_completed(waiting), "choices", len(missing), unit="checkpoint", disable=not missing):
                done.result()
        except BaseException:  # what is measured is kept, and the rest left
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(*given) -> None:
    """What a process keeps for all the checkpoints that it measures."""
    global _measure_one
    end_with_parent()
    torch.set_num_threads(1)
    _measure_one = partial(measure_and_keep, *given)


def _measure(point: Checkpoint) -> None:
    _measure_one(point)


def measure_and_keep(plan: Mapping, sequences: SEQUENCES, ranks: Sequence[int], store: Store, point: Checkpoint
                     ) -> None:
    """A record of one checkpoint: rows of every choice, and rows of every layer's spikes."""
    store.write(identity(point, plan, sequences, ranks), measured(point, chosen(plan), sequences, ranks))


def measured(point: Checkpoint, choices: Mapping[str, Choice], sequences: SEQUENCES, ranks: Sequence[int]
             ) -> list[dict]:
    """The rows of one checkpoint: of every choice, and, from the pass of the first one, of every layer's spikes."""
    rows, common = [], {"step": point.step, "tokens": point.tokens}
    for forward in dict.fromkeys(choice.forward for choice in choices.values()):
        text, shuffled, dtype = forward
        its = {name: choice for name, choice in choices.items() if choice.forward == forward}
        model = load(point.model, point.revision, point.cache_dir, "cpu", dtype)
        first = not rows
        reductions = {str(token): REDUCTIONS.get(token) or partial(at, token - 1)
                      for token in dict.fromkeys(choice.token for choice in its.values()) if token != LAST}
        layers = "all" if first or any(choice.before_norm for choice in its.values()) else (FINAL,)
        found = extract(model, sequences[text, shuffled], layers, BATCH_SIZE,
                        reductions=reductions | ({"lengths": lengths} if first else {}))
        for name, choice in its.items():
            features = states(found, choice)
            rows.append(common | {"choice": name, "layer": None, "sequences": len(features),
                                  **asdict(variant(features, tuple(ranks), choice.centred, choice.singular))})
        if first:
            rows += [common | {"choice": None, "layer": str(layer), **of_layer(found, layer)}
                     for layer in found.features]
    return rows


def states(found: Extraction, choice: Choice) -> torch.Tensor:
    """The feature matrix of a choice, shape (M, d)."""
    blocks = [layer for layer in found.features if layer != FINAL]
    layer = blocks[-1] if choice.before_norm else FINAL
    features = found.features[layer] if choice.token == LAST else found.reduced[str(choice.token)][layer]
    return features[: round(choice.times_width * features.shape[1]) or None]


def of_layer(found: Extraction, layer: int | str) -> dict:
    """Spikes among a layer's last tokens, and how long the first token's state is beside the others'."""
    features = found.features[layer]
    first, later = found.reduced["lengths"][layer].double().unbind(1)
    read = geometry(features, None)
    return {"sequences": len(features), "rankme": read.rankme, "rankme_stderr": read.rankme_stderr, **spikes(features),
            "first_over_later": float((first / later).median())}


def tables(labels: Mapping[str, str], points: Iterable[Sequence[Checkpoint]], plan: Mapping, sequences: SEQUENCES,
           ranks: Sequence[int], store: Store) -> dict[str, pd.DataFrame]:
    """Both tables of all records; `labels`: of each repository, what its run is called."""
    changed = {name: factor for factor, its in plan["plan"].items() for name in its}
    frames = [store.read(store.path(identity(point, plan, sequences, ranks))).assign(
        model=point.model, run=labels[point.model]) for its in points for point in its]
    table = pd.concat(frames, ignore_index=True).drop(columns=["identity", "status", "reason"])
    choices = table[table.choice.notna()]
    choices = choices.assign(changed=choices.choice.map(changed))
    first = ["model", "run", "step", "tokens"]
    made = ["code", "packages", "python", "machine"]
    of_choice = ["changed", "choice", "sequences", "rankme", "rankme_stderr", "alpha", "alpha_stderr"]
    of_layer = ["layer", "sequences", "rankme", "rankme_stderr", "coordinate_share_median", "coordinate_share_largest",
                "massive", "one_coordinate", "rankme_rest", "rankme_rest_stderr", "first_over_later"]
    whole = dict.fromkeys(("massive", "one_coordinate"), int)
    return {"choices": choices[first + of_choice + made].reset_index(drop=True),
            "choices_spikes": table[table.layer.notna()][first + of_layer + made].astype(whole).reset_index(drop=True)}


if __name__ == "__main__":
    main()
