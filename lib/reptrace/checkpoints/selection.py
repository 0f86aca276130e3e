"""Which checkpoints to measure when each costs gigabytes: spread on a log scale, then more where the curve bends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist

import numpy as np
import pandas as pd

from reptrace.checkpoints.listing import Checkpoint, as_checkpoints

LEVEL = 0.05  # of finding a bend anywhere in a stage that is straight but for noise
NOTHING = 1e-6  # relative error of RankMe that is none


def spread(checkpoints: Sequence[Checkpoint], count: int | None) -> list[Checkpoint]:
    """`count` of them, first and last of every stage included, each next one the farthest from those chosen.

    Distance is that of log2(step + 1) within a stage. A larger count adds to what a smaller one chose, so a sweep can
    be made denser later and nothing is measured twice. Checkpoints with a known fault are never chosen.

    Parameters
    ----------
    checkpoints : list of Checkpoint, stages together and in order of steps
    count : int or None
        None: all without a fault.
    """
    good = [point for point in as_checkpoints(checkpoints) if not point.fault]
    if count is None or count >= len(good):
        return good
    stages = [list(group) for _, group in groupby(range(len(good)), key=lambda k: (good[k].model, good[k].stage))]
    chosen = sorted({k for stage in stages for k in (stage[0], stage[-1])})
    if count < len(chosen):
        raise ValueError(f"at least {len(chosen)} checkpoints are needed, first and last of each stage; got {count}.")
    place = np.array([1e6 * number + _place(good[k]) for number, stage in enumerate(stages) for k in stage])
    while len(chosen) < count:
        distance = np.abs(place[:, None] - place[chosen]).min(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return [good[k] for k in sorted(chosen)]


def with_faults(chosen: Sequence[Checkpoint], points: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The chosen ones and those with a known fault, in the suite's order."""
    wanted = set(chosen)
    return [point for point in points if point in wanted or point.fault]


def refine(table: pd.DataFrame, checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """Up to `count` checkpoints to measure next: one each in the gaps where interpolation is worst.

    Between two measured steps, h apart in log2(step + 1), a straight line through ln RankMe errs by about
    h^2 |y''| / 8, y'' being the mean of the second differences at the gap's ends (0 at the ends of a stage), less what
    noise alone would give somewhere in 19 of 20 stages. The checkpoint nearest to the middle of each of the worst gaps
    is taken.

    Parameters
    ----------
    table : of one suite, columns model, revision, stage, step, status, rankme, rankme_stderr (one layer, one probe)
    checkpoints : list of Checkpoint; the whole suite
    """
    good = table[table.status == "measured"]
    ranked: list[tuple[float, Checkpoint]] = []
    for (model, stage), rows in good.groupby(["model", "stage"], dropna=False, sort=False):
        rows = rows[rows.step.notna()].sort_values("step")
        free = [point for point in checkpoints if not point.fault and point.step is not None
                and point.model == model and (point.stage == stage or pd.isna(stage))]
        ranked += _gaps(rows, free) if len(rows) > 2 else []
    ranked.sort(key=lambda pair: -pair[0])
    return [point for _, point in ranked[:count]]


def _gaps(rows: pd.DataFrame, free: list[Checkpoint]) -> list[tuple[float, Checkpoint]]:
    """Estimated error and best candidate of every gap of one stage that holds unmeasured checkpoints and a bend."""
    x = np.log2(rows.step.to_numpy(float) + 1)
    y, noise = np.log(rows.rankme.to_numpy(float)), (rows.rankme_stderr / rows.rankme).fillna(0).to_numpy(float)
    left, right = np.diff(x)[:-1], np.diff(x)[1:]
    slopes = np.diff(y) / np.diff(x)
    scale = 2 / (left + right)
    bend = np.abs(np.diff(slopes)) * scale
    doubt = scale * np.sqrt((noise[:-2] / left) ** 2 + (noise[1:-1] * (1 / left + 1 / right)) ** 2
                            + (noise[2:] / right) ** 2)
    sure = NormalDist().inv_cdf(1 - LEVEL / 2 / len(bend))
    bend = np.concatenate([[0], (bend - sure * doubt).clip(min=0), [0]])
    found = []
    for k in range(len(x) - 1):
        inside = [point for point in free if x[k] < _place(point) < x[k + 1]]
        error = (bend[k] + bend[k + 1]) / 2 * (x[k + 1] - x[k]) ** 2 / 8
        if inside and error > NOTHING:
            middle = (x[k] + x[k + 1]) / 2
            found.append((error, min(inside, key=lambda point: abs(_place(point) - middle))))
    return found


def _place(checkpoint: Checkpoint) -> float:
    return math.log2((checkpoint.step or 0) + 1)
