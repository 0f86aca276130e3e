"""How often the toy model shows the three phases, as a function of its start, of the size that counts, and of the time.

    make toy

From the start that Fig 4 seems to have, from that start with one thing changed, and from random ones: the shares of 400
seeds, by three measures, at three times and for a range of sizes. Writes data/results/toy_starts.csv, in half an hour.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from reptrace.records.store import provenance, write_atomically
from reptrace.report.profiles import ROOT
from reptrace.theory.descent import descend
from reptrace.theory.phases import phases, prevalence, turns_late
from reptrace.theory.starts import Start, coincident, constructed, start
from reptrace.theory.trajectories import Trajectories

OUT = ROOT / "data" / "results" / "toy_starts.csv"
SEEDS = 400
RATE = 0.25 / 6  # of the sum over samples: 0.25 of the mean over Fig 4's six
TIMES = (12.5, 125.0, 1250.0)  # steps times rate; Fig 4's 300 steps are the first
FIGURE = (0.01, 0.01, 0.002)  # below what Fig 4's curve shows: 1.6, 5.9 and 0.45 %, as others read it off
SIZES = (FIGURE, *((size,) * 3 for size in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)))  # collapse, expansion, fall
FIGURE_4, UNIFORM, EIGHT, EIGHT_UNIFORM = (2, 2, 1, 1), (2, 2, 2, 2), (12, 6, 4, 3, 2, 2, 2, 1), (4,) * 8


@dataclass(frozen=True)
class Begin:
    """One start of the table. `kind`: "constructed", "random directions", "pair" (normal, with a coincident pair),
    "normal" or "balanced". `random`: standard deviation of the jitter, or of a normal start's entries."""

    name: str
    kind: str = "constructed"
    random: float = 1e-3
    counts: tuple[int, ...] = FIGURE_4
    width: int = 2
    loss: str = "cross-entropy"

    def begun(self) -> Start:
        if self.kind in ("constructed", "random directions"):
            directions = "random" if self.kind == "random directions" else "figure"
            return constructed(self.counts, self.width, directions=directions, jitter=self.random, seeds=SEEDS)
        begun = start(self.counts, self.width, scale=self.random, balanced=self.kind == "balanced", seeds=SEEDS)
        return coincident(begun) if self.kind == "pair" else begun

    def run(self) -> Trajectories:
        first, last = (round(end / RATE) for end in (TIMES[0], TIMES[-1]))
        record = np.union1d(np.linspace(0, first, 151).round(), np.geomspace(first, last, 150).round()).astype(int)
        return descend(self.begun(), rate=RATE, steps=last, loss=self.loss, record=record, device="cpu")


def controls(skewed: tuple[int, ...], uniform: tuple[int, ...]) -> dict[str, dict]:
    """The paper's controls, a cause or two taken away, as changes of a `Begin`, by name."""
    enough = len(skewed) - 1
    return {"uniform classes": {"counts": uniform}, f"no bottleneck, d = {enough}": {"counts": skewed, "width": enough},
            "no bottleneck, uniform": {"counts": uniform, "width": enough},
            "squared error": {"counts": skewed, "loss": "squared"},
            "squared error, uniform": {"counts": uniform, "loss": "squared"}}


def begins() -> list[Begin]:
    """Fig 4's start and changes of it, then random starts, then the paper's controls from both, and with eight classes,
    the random starts whose RankMe often falls."""
    changes = controls(FIGURE_4, UNIFORM) | {"eight classes": {"counts": EIGHT}}
    return [Begin("constructed"),
            *(Begin(f"constructed, jitter {jitter:g}", random=jitter) for jitter in (0.1, 0.01, 1e-4, 1e-5)),
            Begin("constructed, random directions", "random directions"),
            Begin("normal 0.3 with a coincident pair", "pair", 0.3),
            *(Begin(f"normal {scale:g}", "normal", scale) for scale in (0.1, 0.3, 1.0)),
            Begin("balanced 0.3", "balanced", 0.3),
            *(Begin(f"constructed, {name}", **change) for name, change in changes.items()),
            *(Begin(f"normal 0.3, {name}", "normal", 0.3, **change) for name, change in changes.items()),
            *(Begin(f"normal 0.3, eight classes, {name}", "normal", 0.3, **change)
              for name, change in controls(EIGHT, EIGHT_UNIFORM).items())]


def rows(begin: Begin) -> list[dict]:
    """A row for each measure, time and size."""
    started = time.perf_counter(), time.process_time()
    runs = begin.run()
    ratio = runs.feature_values[..., 1] / runs.feature_values[..., 0]
    measures = {"RankMe, uncentred": runs.rankme_uncentred, "RankMe, centred": runs.rankme_centred,
                "second by first singular value": ratio}
    found = []
    for name, values in measures.items():
        for until in TIMES:
            kept = runs.steps <= round(until / RATE)
            found += [{"measure": name, "time": until, "size": size[0], "fall_size": size[2],
                       **shares(runs.steps[kept], values[:, kept], runs.loss[:, kept], size)} for size in SIZES]
    said = {"start": begin.name, "kind": begin.kind, "random": begin.random, "counts": " ".join(map(str, begin.counts)),
            "width": begin.width, "loss": begin.loss, "rate": RATE, "seeds": SEEDS}
    spent = {"wall_seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
    return [said | row | spent for row in found]


def shares(steps, values, loss, size) -> dict[str, float]:
    """Of the seeds: collapse; expansion; a late fall after it, lasting or passing, collapse or not; all three phases,
    with such a late fall or any, and those whose fall lasts and whose passes."""
    found = phases(steps, values, size)
    three = found.lasting | found.passing
    falls = found.shows_expansion & found.shows_any_fall & turns_late(found.any_turn, loss)
    shown = {"collapse": found.shows_collapse, "expansion": found.shows_expansion, "falls": falls, "three": three,
             "late": three & falls, "lasting": found.lasting, "passing": found.passing}
    return {column: value for name, which in shown.items()
            for column, value in zip((name, f"{name}_low", f"{name}_high"), prevalence(which), strict=True)}


def main() -> None:
    torch.set_num_threads(1)
    made, table, plan = provenance(), [], begins()
    for number, begin in enumerate(plan, 1):
        table += [row | made for row in rows(begin)]
        print(f"{number}/{len(plan)} {begin.name}: {table[-1]['processor_seconds']:.0f} s", flush=True)
    write_atomically(OUT, pd.DataFrame(table).to_csv(index=False, float_format="%.4g").encode())
    print(f"{len(plan)} starts: {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
