"""How far RankMe, alpha and the phases' turns can be trusted with few sequences: bias, coverage, corrections.

    make estimators

By simulation, where the truth is known: rows drawn from planted spectra, from N = d/2 to 10 d, and stretches drawn from
all of the held-out text, through trained checkpoints of the default suite. Writes

    data/results/estimator_bias.csv      every estimator's mean and scatter against the truth
    data/results/estimator_coverage.csv  how often the 95 % intervals hold it, RankMe's, alpha's and the turns'
    data/results/estimator_windows.csv   alpha by window, with what else can be said of the line
    data/results/estimator_judged.csv    how often a spectrum is judged not to be a power law

What is measured stays in build/estimators, and a run that was interrupted goes on. About ten minutes of one core, with
the default suite trained; without, it is trained first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from reptrace.measures import estimators, power_law
from reptrace.measures.phases import find_phases
from reptrace.measures.spectra import alpha_req, eigenspectrum, geometry, rankme
from reptrace.records.store import Store, provenance, write_atomically
from reptrace.report.profiles import ROOT, Profile, final

RESULTS, BUILD = ROOT / "data" / "results", ROOT / "build" / "estimators"
WIDTH, RANKS = 64, (4, 31)  # the window of the default suite
RATIOS = (0.5, 1, 2, 4, 10)  # N / d
WIDE, WIDE_RATIOS = 256, (0.5, 1, 3.7)  # the last is that of the paper's 7B model
DRAWS, TRAINED_DRAWS, WIDE_DRAWS, TURN_DRAWS, JUDGED_DRAWS = 200, 200, 80, 100, 40
CHECKPOINTS, TURN_WIDTH = 24, 32  # of a planted trajectory
STATES = 16_384  # of a trained checkpoint at most: 25 times the largest N
WINDOWS = ((1, 10), (1, 31), (2, 16), (4, 16), (4, 31), (8, 31), (12, 31), (4, 48), (12, 48))
RECIPE = 4  # raised where the numbers would change

SPECTRA: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of ranks 1..d
    "alpha 0.5": lambda i: i**-0.5, "alpha 1": lambda i: i**-1.0, "alpha 2": lambda i: i**-2.0,
    "5 large, rest flat": lambda i: np.where(i <= 5, 20.0, 1.0)}
# No power laws over the window: that of few large ones, and three that look like one.
BROKEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "broken at 11, 0.5 to 1.5": lambda i: np.where(i <= 11, i**-0.5, 11.0 * i**-1.5),
    "broken at 11, 0.8 to 1.2": lambda i: np.where(i <= 11, i**-0.8, 11**0.4 * i**-1.2),
    "exponential": lambda i: np.exp(-i / 12)}
# Coordinates of unit variance, shape (N, d): normal, or a multivariate t of 5 degrees of freedom (kurtosis 9).
ROWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t of 5": lambda rng, shape: rng.standard_normal(shape) * np.sqrt(3 / rng.chisquare(5, (shape[0], 1)))}
TRAINED = ((0, "minimum"), (0, "peak"), (-1, "end"))  # run of the default suite, and where in it


@dataclass(frozen=True)
class Planted:
    """Rows of a known covariance."""

    spectrum: str
    rows: str
    width: int = WIDTH

    @property
    def eigenvalues(self) -> np.ndarray:
        return planted(self.spectrum, self.width)

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        return ROWS[self.rows](rng, (samples, self.width)) * np.sqrt(self.eigenvalues)

    @property
    def about(self) -> dict:
        kind = "planted" if self.width == WIDTH else "planted, wide"
        return {"kind": kind, "spectrum": self.spectrum, "rows": self.rows, "width": self.width}


@dataclass(frozen=True)
class Pool:
    """Rows drawn without replacement from all states that there are, whose spectrum is the truth."""

    name: str
    states: np.ndarray

    @property
    def width(self) -> int:
        return self.states.shape[1]

    @property
    def eigenvalues(self) -> np.ndarray:
        return eigenspectrum(self.states)

    def draw(self, rng: np.random.Generator, samples: int) -> np.ndarray:
        return self.states[rng.choice(len(self.states), samples, replace=False)]

    @property
    def about(self) -> dict:
        return {"kind": "trained", "spectrum": self.name, "rows": f"of {len(self.states)} states", "width": self.width}


def planted(spectrum: str, width: int) -> np.ndarray:
    s = {**SPECTRA, **BROKEN}[spectrum](np.arange(1.0, width + 1))
    return s / s.sum()


def main() -> None:
    torch.set_num_threads(1)
    store, jobs = Store(BUILD), list(plan())
    for identity, job in tqdm(jobs, unit="cell"):
        if not store.done(identity):
            store.write(identity, job())
    kept = store.table([identity for identity, _ in jobs])
    for table in ("bias", "coverage", "windows", "judged"):
        its = kept[kept.table == table].drop(columns=["table", "identity", "status", "reason"])
        its = its.dropna(axis=1, how="all")
        its = its[[*its.columns.difference(list(provenance()), sort=False), *provenance()]]
        write_atomically(RESULTS / f"estimator_{table}.csv", its.to_csv(index=False, float_format="%.5g").encode())
        print(f"data/results/estimator_{table}.csv: {len(its)} rows")


def plan() -> Iterator[tuple[Mapping, Callable[[], list[dict]]]]:
    """Every cell: what identifies it, and what computes its rows."""
    for spectrum in SPECTRA:
        for rows in ROWS:
            source = Planted(spectrum, rows)
            for ratio in RATIOS:
                yield (identity("planted", spectrum, rows, ratio),
                       lambda source=source, ratio=ratio: simulated(source, ratio, DRAWS))
            yield identity("windows", spectrum, rows), lambda source=source: windows(source)
            yield identity("settled", spectrum, rows), lambda source=source: settled(source, DRAWS)
    for spectrum in (*SPECTRA, *BROKEN):
        for rows, ratio in (("normal", 2), ("normal", 10), ("t of 5", 2), ("t of 5", 10)):
            yield (identity("judged", spectrum, rows, ratio),
                   lambda s=spectrum, r=rows, n=ratio: [judged(Planted(s, r), n, JUDGED_DRAWS)])
    for spectrum in ("alpha 0.5", "alpha 1", "alpha 2"):
        for ratio in WIDE_RATIOS:
            yield (identity("wide", spectrum, ratio),
                   lambda s=spectrum, n=ratio: simulated(Planted(s, "t of 5", WIDE), n, WIDE_DRAWS))
    for shape, probe in (("sharp", "same"), ("round", "same"), ("round", "fresh")):
        for ratio in RATIOS:
            yield identity("turns", shape, probe, ratio), lambda s=shape, p=probe, n=ratio: turns(s, p, n, TURN_DRAWS)
    for which in TRAINED:
        for ratio in RATIOS:
            yield (identity("trained", *which, ratio),
                   lambda which=which, ratio=ratio: simulated(pool(which), ratio, TRAINED_DRAWS))
        yield identity("windows", *which), lambda which=which: windows(pool(which))


def identity(part: str, *which) -> dict:
    return {"study": "estimators", "part": part, "which": list(map(str, which)), "recipe": RECIPE,
            "draws": [DRAWS, TRAINED_DRAWS, WIDE_DRAWS, TURN_DRAWS, JUDGED_DRAWS]}


def generator(*which) -> np.random.Generator:
    """Random numbers of a cell, the same whatever ran before it."""
    return np.random.default_rng(list("/".join(map(str, which)).encode()))


def simulated(source, ratio: float, draws: int) -> list[dict]:
    """Bias of every estimator, and coverage of the intervals, of RankMe and alpha: rows of two tables."""
    samples = round(ratio * source.width)
    rng = generator(*source.about.values(), ratio)
    values: dict[str, list] = {}
    intervals: dict[str, list] = {}
    for _ in range(draws):
        rows = source.draw(rng, samples)
        plain = geometry(rows, RANKS, shorten=True)
        better = estimators.extrapolated(rows, RANKS, shorten=True)
        values.setdefault("plain", []).append((plain.rankme, plain.alpha.alpha))
        values.setdefault("extrapolated in 1/N", []).append((better.rankme, better.alpha))
        intervals.setdefault("plain", []).append((plain.rankme_interval, plain.alpha_interval))
        intervals.setdefault("extrapolated in 1/N", []).append((better.rankme_interval, better.alpha_interval))
        for name, spectrum in (("linear shrinkage", estimators.linear(rows)),
                               ("nonlinear shrinkage", estimators.nonlinear(plain.eigenvalues, samples)),
                               ("cross-validated PCA", estimators.cross_validated(rows))):
            values.setdefault(name, []).append(read(spectrum))
    truth = np.array(read(source.eigenvalues))
    about = {**source.about, "ratio": ratio, "samples": samples, "draws": draws}
    bias = [{"table": "bias", **about, "estimator": name, "quantity": quantity, "truth": truth[k],
             "mean": np.mean(found, 0)[k], "bias": np.mean(found, 0)[k] / truth[k] - 1,
             "scatter": np.std(found, 0)[k] / truth[k]}
            for name, found in values.items() for k, quantity in enumerate(("RankMe", "alpha"))]
    same = np.mean(values["plain"], 0)
    targets = (("plain", "average at this N", same), ("plain", "infinitely many", truth),
               ("extrapolated in 1/N", "infinitely many", truth))
    return bias + [covered(about, name, quantity, target, np.array(intervals[name])[:, k], value[k])
                   for name, target, value in targets for k, quantity in enumerate(("RankMe", "alpha"))]


def settled(source, draws: int) -> list[dict]:
    """Coverage of the plain intervals of RankMe that are said to reach infinitely many sequences, at every N."""
    found, truth = [], rankme(source.eigenvalues)
    for ratio in (*RATIOS, 40, 100):
        rng, samples = generator(*source.about.values(), ratio, "settled"), round(ratio * source.width)
        plain = [geometry(source.draw(rng, samples), None) for _ in range(draws)]
        ends = np.array([each.rankme_interval if each.settled else (np.nan, np.nan) for each in plain])
        found.append(covered({**source.about, "ratio": ratio, "samples": samples, "draws": draws}, "plain, if settled",
                             "RankMe", "infinitely many", ends, truth))
    return found


def read(s: np.ndarray) -> tuple[float, float]:
    return rankme(s), alpha_req(s, RANKS, shorten=True).alpha


def covered(about: dict, interval: str, quantity: str, target: str, ends: np.ndarray, value) -> dict:
    """A row of the coverage of intervals, shape (draws, 2), of those that are given; of `draws` as many are."""
    given = ~np.isnan(ends).any(1)
    inside = ((ends[:, 0] <= value) & (value <= ends[:, 1]))[given]
    return {"table": "coverage", **about, "interval": interval, "quantity": quantity, "target": target,
            "given": int(given.sum()), "covered": inside.mean() if given.any() else np.nan,
            "half_width": np.median((ends[:, 1] - ends[:, 0])[given]) / 2 if given.any() else np.nan}


def windows(source) -> list[dict]:
    """alpha by window of one draw of 10 d rows and of the truth, and what judges the line."""
    rng = generator(*source.about.values(), "windows")
    samples = 10 * source.width
    rows = source.draw(rng, samples)
    plain = geometry(rows, None)
    fitting = [ranks for ranks in WINDOWS if ranks[1] <= source.width]
    best = power_law.cross_validated_window(rows, fitting)
    radii = power_law.squared_radii(rows)
    found = []
    for ranks in fitting:
        line = geometry(rows, ranks)
        judgement = power_law.power_law_judgement(plain.eigenvalues, samples, ranks, radii=radii, draws=99)
        likely, likely_stderr = power_law.likelihood_alpha(plain.eigenvalues, samples, ranks)
        tail, tail_stderr, distance = tail_fit(plain.eigenvalues, ranks)
        found.append({"table": "windows", **source.about, "samples": samples, "first": ranks[0], "last": ranks[1],
                      "truth": alpha_req(source.eigenvalues, ranks).alpha, "alpha": line.alpha.alpha,
                      "alpha_stderr": line.alpha_stderr, "r2": line.alpha.r2, "likelihood_alpha": likely,
                      "likelihood_stderr": likely_stderr, "tail_alpha": tail, "tail_stderr": tail_stderr,
                      "tail_distance": distance, "p_value": judgement.p_value, "departure": judgement.departure,
                      "rejected": judgement.rejected, "cross_validated": ranks == best})
    return found


def tail_fit(s: np.ndarray, ranks: tuple[int, int]) -> tuple[float, float, float]:
    """What the `powerlaw` package says of the eigenvalues down to the window's last rank, taken for a sample of a
    density of exponent 1 + 1/alpha: alpha, its standard error, and the largest distance between the distributions.
    The leading ranks are in it, as a distribution's tail has no upper end."""
    import powerlaw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its search of other parameters than the one that is asked for
        law = powerlaw.Fit(s, xmin=s[ranks[1] - 1], verbose=False).power_law
        alpha = 1 / (law.alpha - 1)
        return alpha, law.sigma * alpha**2, law.D


def judged(source: Planted, ratio: float, draws: int) -> dict:
    """How often a spectrum is judged to be no power law."""
    rng, samples = generator(*source.about.values(), ratio, "judged"), round(ratio * source.width)
    found = []
    for draw in range(draws):
        rows = source.draw(rng, samples)
        found.append(power_law.power_law_judgement(eigenspectrum(rows), samples, RANKS, draws=99, seed=draw,
                                                   radii=power_law.squared_radii(rows)))
    return {"table": "judged", **source.about, "ratio": ratio, "samples": samples, "draws": draws,
            "rejected": np.mean([each.rejected for each in found]),
            "departure": np.mean([each.departure for each in found]),
            "true_power_law": source.spectrum.startswith("alpha")}


def turns(shape: str, probe: str, ratio: float, draws: int) -> list[dict]:
    """Coverage of the turns' intervals on trajectories whose population's RankMe turns at a known place.

    Spectra are power laws whose exponent rises, falls and rises again along the logarithm of tokens, "sharp" in
    straight lines or "round" in half waves; the two turns lie anywhere between checkpoints. "same": all checkpoints
    have the same coordinates of rows, as of one probe's sequences whose states only stretch; "fresh": others each time.
    Half widths are in checkpoints.
    """
    rng, samples = generator("turns", shape, probe, ratio), round(ratio * TURN_WIDTH)
    found: dict[str, list] = {"collapse_end": [], "turn": []}
    i, tokens = np.arange(1.0, TURN_WIDTH + 1), np.geomspace(1e5, 1e8, CHECKPOINTS)
    u = np.linspace(0, 1, CHECKPOINTS)
    for _ in range(draws):
        bends = np.array([0.3, 0.7]) + rng.uniform(-0.5, 0.5, 2) / (CHECKPOINTS - 1)
        rows = ROWS["normal"](rng, (samples, TURN_WIDTH))
        values = []
        for alpha in exponent(u, bends, shape):
            rows = rows if probe == "same" else ROWS["normal"](rng, rows.shape)
            values.append(geometry(rows * i ** (-alpha / 2), None))
        phases = find_phases(tokens, [each.rankme for each in values], [each.rankme_stderr for each in values])
        for name, bend in zip(found, tokens[0] * (tokens[-1] / tokens[0]) ** bends, strict=True):
            turn = getattr(phases, name)
            found[name].append((*turn.interval, bend) if turn else (np.nan, np.nan, bend))
    about = {"kind": "planted", "spectrum": f"{shape} turns", "rows": f"normal, {probe} at all checkpoints",
             "width": TURN_WIDTH, "ratio": ratio, "samples": samples, "draws": draws}
    rows = []
    for name, ends in found.items():
        low, high, bend = np.log(np.array(ends) / tokens[0]).T / np.log(tokens[-1] / tokens[0]) * (CHECKPOINTS - 1)
        rows.append(covered(about, "detector of phases", name, "turn of infinitely many", np.column_stack([low, high]),
                            bend))
    return rows


def exponent(u: np.ndarray, bends: np.ndarray, shape: str) -> np.ndarray:
    """alpha along a trajectory, u from 0 to 1: from 0.2 up to 1.6, down to 0.6, and up to 1.1."""
    places, heights = np.array([0, *bends, 1]), np.array([0.2, 1.6, 0.6, 1.1])
    if shape == "sharp":
        return np.interp(u, places, heights)
    k = np.clip(np.searchsorted(places, u, side="right") - 1, 0, 2)
    along = (u - places[k]) / (places[k + 1] - places[k])
    return heights[k] + (heights[k + 1] - heights[k]) * (1 - np.cos(np.pi * along)) / 2


@cache
def profile() -> Profile:
    found = Profile.of(yaml.safe_load((ROOT / "notebooks/params/tiny.yaml").read_text()))
    found.train()
    return found


@cache
def pool(which: tuple[int, str]) -> Pool:
    """States of one checkpoint at the end of stretches of held-out text, each as long as a probe's sequences."""
    from transformers import GPTNeoXForCausalLM

    from reptrace.models.hidden_states import FINAL, last_token_states
    from reptrace.models.loading import from_pretrained

    number, place = which
    run = profile().runs[number]
    curve = final(pd.read_parquet(ROOT / "data/archive/trace.parquet"))
    curve = curve[curve.model == run.repository].reset_index(drop=True)
    lowest = int(curve.rankme.argmin())
    at = {"minimum": lowest, "peak": lowest + int(curve.rankme.iloc[lowest:].argmax()), "end": len(curve) - 1}[place]
    point = profile().suite.checkpoints(run)[at]
    model = from_pretrained(GPTNeoXForCausalLM, point.model, point.revision, profile().suite.hub).eval()
    states = last_token_states(model, stretches(run.context, run.vocabulary), (FINAL,), 256)[FINAL]
    states = states.double().numpy()
    values, vectors = np.linalg.eigh(np.cov(states.T))
    return Pool(f"d = {run.width}, {place}", states @ vectors[:, values > 1e-9 * values[-1]])  # the norm takes one out


@cache
def stretches(context: int, vocabulary: int) -> list[list[int]]:
    """Held-out text in stretches of `context` tokens, or as long as a document's end is; `STATES` of them by chance."""
    from reptrace.texts.probes import first_tokens, in_order

    documents = in_order(profile().texts[1].documents)
    cut = [tokens[at : at + context] for tokens in first_tokens(profile().suite.tokenizer(vocabulary), documents)
           for at in range(0, len(tokens), context)]
    kept = [list(each) for each in dict.fromkeys(map(tuple, cut)) if len(each) >= profile().min_length]
    return [kept[k] for k in np.random.default_rng(0).permutation(len(kept))[:STATES]]


if __name__ == "__main__":
    main()
