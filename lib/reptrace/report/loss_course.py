"""Whether a training loss only falls, judged against the scatter of its batches."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reptrace.measures.phases import find_phases


def only_falls(log: pd.DataFrame) -> str:
    """"yes", "no" where it rises somewhere by more than its scatter, or "undecided" without a log or a fall.

    Parameters
    ----------
    log : columns step, tokens and loss, the mean over the steps since the row before, in order of steps from 1 on

    Notes
    -----
    A row of n steps has the error s / sqrt(n), where s is the scatter of single batches. It is taken from neighbouring
    rows of the second half of training, where little of what sets them apart is the fall itself.
    """
    if len(log) < 3:
        return "undecided"
    steps, loss = np.diff(log.step, prepend=0), log.loss.to_numpy()
    late = log.step.to_numpy()[1:] > log.step.iloc[-1] / 2
    weight = 1 / steps[1:] + 1 / steps[:-1]
    scatter = np.sqrt(np.mean((np.diff(loss) ** 2 / weight)[late]))
    found = find_phases(log.tokens, loss, scatter / np.sqrt(steps))
    rises = found.expansion is not None or any(wiggle.ratio > 1 for wiggle in found.wiggles)
    return "no" if rises else "yes" if found.collapse else "undecided"
