"""How often the toy model goes through the three phases, over settings: every setting tried is in the table.

    make toy

Two maps (skew of the classes by width, start scale and balance; then with inputs that are alike within a class), and
single causes and pairs of them on top of a few bases. Writes data/results/toy_prevalence.csv; on one core it takes
about half an hour.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import torch

from reptrace.records.store import provenance, write_atomically
from reptrace.report.profiles import ROOT
from reptrace.theory.descent import descend
from reptrace.theory.losses import LOSSES
from reptrace.theory.phases import phases, prevalence, turns_late
from reptrace.theory.starts import alike_inputs, start, zipf_counts
from reptrace.theory.trajectories import Trajectories

OUT = ROOT / "data" / "results" / "toy_prevalence.csv"
SEEDS = 64
SIZE, LARGE = 0.02, 0.10  # relative changes of RankMe that count, and that count as a large fall


@dataclass(frozen=True)
class Setting:
    """One row of the table; the options are those of `start` and `descend`."""

    group: str
    cause: str
    classes: int = 8
    samples: int = 32  # aimed at; every class has at least one
    skew: float = 1.0
    width: int = 2
    scale: float = 0.1
    balanced: bool = False
    alike: str = "none"  # inputs with a cosine above 0: none, of one class, all
    cosine: float = 0.0
    loss: str = "cross-entropy"
    rate: float = 0.05
    steps: int = 5000
    momentum: float = 0.0
    adam: bool = False
    weight_decay: float = 0.0
    batch: int | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        return zipf_counts(self.classes, self.skew, self.samples)

    def run(self) -> Trajectories:
        begun = start(self.counts, self.width, scale=self.scale, balanced=self.balanced, seeds=SEEDS,
                          gram=alike_inputs(self.counts, self.cosine, self.alike) if self.cosine else None)
        return descend(begun, rate=self.rate, steps=self.steps, loss=self.loss, momentum=self.momentum,
                       adam=self.adam, weight_decay=self.weight_decay, batch=self.batch, device="cpu")


def main() -> None:
    torch.set_num_threads(1)
    made, rows, started = provenance(), [], time.time()
    plan = settings()
    for setting in plan:
        rows.append({**row(setting), **made})
        print(f"{len(rows)}/{len(plan)} {time.time() - started:.0f} s  {setting.group}: {setting.cause}, "
              f"d = {setting.width}: {rows[-1]['late']:.2f}", flush=True)
    write_atomically(OUT, pd.DataFrame(rows).to_csv(index=False, float_format="%.4g").encode())
    print(f"{len(rows)} settings: {OUT.relative_to(ROOT)}")


def settings() -> list[Setting]:
    maps = [Setting("map", "skew, width, start", classes, samples, skew, width, scale, balanced)
            for (classes, samples, widths) in ((4, 15, (2, 3, 4)), (8, 32, (2, 3, 4, 7)))
            for width, skew, scale, balanced in product(widths, (0.0, 0.5, 1.0, 1.5, 2.0), (0.03, 0.3, 1.0),
                                                        (False, True))]
    alike = [Setting("map alike", "inputs alike within a class", skew=skew, width=width, alike="class", cosine=0.9,
                     rate=0.01, steps=10_000)
             for width, skew in product((2, 3, 4, 7), (0.0, 0.5, 1.0, 1.5, 2.0))]
    return [*causes(), *pairs(), *alike, *controls(), *maps]


def causes() -> list[Setting]:
    """One cause at a time, on a tight and on a wide bottleneck."""
    changes = {
        "base": {}, "16 classes": {"classes": 16, "samples": 64}, "24 classes": {"classes": 24, "samples": 96},
        "16 samples": {"samples": 16}, "96 samples": {"samples": 96},
        "ten times longer": {"steps": 50_000}, "rate 0.2": {"rate": 0.2}, "rate 0.4": {"rate": 0.4},
        "momentum 0.9": {"momentum": 0.9},
        **{f"weight decay {w}": {"weight_decay": w} for w in (0.01, 0.1, 0.3, 0.5, 0.7)},
        **{f"Adam, rate {rate}": {"adam": True, "rate": rate} for rate in (0.001, 0.01, 0.05)},
        "Adam, rate 0.01, weight decay 0.1": {"adam": True, "rate": 0.01, "weight_decay": 0.1},
        "mini-batches of 8": {"batch": 8, "rate": 0.02, "steps": 10_000},
        "mini-batches of 2": {"batch": 2, "rate": 0.01, "steps": 20_000},
        **{f"all inputs alike, cosine {c}": {"alike": "all", "cosine": c, "rate": 0.01, "steps": 10_000}
           for c in (0.5, 0.9)},
        **{f"inputs alike within a class, cosine {c}": {"alike": "class", "cosine": c, "rate": 0.01, "steps": 10_000}
           for c in (0.3, 0.6, 0.9, 0.99)},
        "squared error": {"loss": "squared", "rate": 0.02}}
    return [Setting("cause", name, width=width, **change) for width in (2, 4) for name, change in changes.items()]


def pairs() -> list[Setting]:
    """A second cause beside inputs that are alike within a class."""
    base = Setting("pair", "", alike="class", cosine=0.9, rate=0.01, steps=10_000)
    changes = {"4 classes": {"classes": 4, "samples": 15}, "16 classes": {"classes": 16, "samples": 64},
               "24 classes": {"classes": 24, "samples": 96}, "96 samples": {"samples": 96, "rate": 0.004},
               "four times longer": {"steps": 40_000}, "momentum 0.9": {"momentum": 0.9, "rate": 0.002},
               "weight decay 0.1": {"weight_decay": 0.1}, "weight decay 0.5": {"weight_decay": 0.5},
               "mini-batches of 8": {"batch": 8, "rate": 0.004, "steps": 25_000},
               "scale 0.01": {"scale": 0.01}, "scale 0.5": {"scale": 0.5},
               "squared error": {"loss": "squared", "rate": 0.005}}
    return [replace(base, cause=f"alike within a class, {name}", width=width, **change)
            for width in (2, 4) for name, change in changes.items()]


def controls() -> list[Setting]:
    """The paper's: eight samples of four classes, and the skewed classes of the map; squared error, d >= V - 1."""
    return [Setting("control", "uniform" if skew == 0 else "skewed", 4, 8 if skew == 0 else 15, skew, width, 0.1,
                    balanced, loss=loss, rate=0.05, steps=10_000)
            for loss, skew, width, balanced in product(LOSSES, (0.0, 1.0), (2, 3, 4), (False, True))]


def row(setting: Setting) -> dict:
    started = time.perf_counter()
    runs = setting.run()
    found, other = (phases(runs.steps, r, SIZE) for r in (runs.rankme_centred, runs.rankme_uncentred))
    late = found.all_three & turns_late(found.turn, runs.loss)
    shares = {}
    for name, shown in {"collapse": found.shows_collapse, "expansion": found.shows_expansion, "fall": found.shows_fall,
                        "all_three": found.all_three, "late": late, "large_fall": late & (found.fall > LARGE),
                        "late_uncentred": other.all_three & turns_late(other.turn, runs.loss)}.items():
        shares |= dict(zip((name, f"{name}_low", f"{name}_high"), prevalence(shown), strict=True))
    whole = runs.diverged < 0
    return {**asdict(setting), "counts": " ".join(map(str, setting.counts)), "seeds": SEEDS, **shares,
            "largest_fall": np.max(found.fall[late], initial=0.0), "diverged": 1 - whole.mean(),
            "learned": (runs.accuracy[:, -1] == 1).all(-1).mean(),
            "final_loss": np.median(runs.loss[whole, -1]) if whole.any() else None,
            "wall_seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
