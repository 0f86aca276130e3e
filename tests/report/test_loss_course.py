"""Whether a loss only falls. Trusted: losses we planted, with batches of a scatter we planted, and binomial bounds."""

import numpy as np
import pandas as pd
import scipy.stats

from reptrace.report.loss_course import only_falls

LOGGED = np.unique(np.r_[2 ** np.arange(11), np.linspace(100, 2000, 40)]).astype(int)


def log(curve, seed, scatter=0.1):
    """Means since the row before of a loss a step with the scatter of its batches."""
    steps = np.arange(1, LOGGED[-1] + 1)
    single = curve(steps) + scatter * np.random.default_rng(seed).standard_normal(len(steps))
    means = [part.mean() for part in np.split(single, LOGGED)[:-1]]
    return pd.DataFrame({"step": LOGGED, "tokens": 4096 * LOGGED, "loss": means})


def falling(steps):
    return 4 + 3.6 * np.exp(-steps / 150)


def test_a_loss_that_only_falls_is_seldom_said_to_rise():
    said = [only_falls(log(falling, seed)) for seed in range(100)]
    assert said.count("no") <= scipy.stats.binom.ppf(0.999, 100, 0.05) and set(said) <= {"yes", "no"}


def test_a_rise_of_several_scatters_of_a_mean_is_seen():
    def bump(steps):
        return falling(steps) + 0.3 * (np.abs(steps - 1000) < 150)  # means of 50 steps: errors of 0.014

    assert [only_falls(log(bump, seed)) for seed in range(20)] == ["no"] * 20


def test_without_a_log_or_a_fall_nothing_is_decided():
    assert only_falls(pd.DataFrame(columns=["step", "tokens", "loss"], dtype=float)) == "undecided"
    level = [only_falls(log(lambda steps: 4.0 + 0 * steps, seed)) for seed in range(100)]
    # tried for falls and for rises, each at its own 5 %
    assert level.count("undecided") >= scipy.stats.binom.ppf(0.001, 100, 0.9)
