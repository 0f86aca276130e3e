"""Trusted: what matplotlib says it holds. A figure must show the very numbers it was given."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from reptrace.measures.phases import find_phases
from reptrace.measures.spectra import alpha_req
from reptrace.report import figures


@pytest.fixture
def run():
    tokens = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256]) * 1000.0
    rankme = np.array([20, 18, 12, 5, 4, 8, 16, 24, 23, 20.0])
    return pd.DataFrame({"tokens": tokens, "rankme": rankme, "rankme_stderr": 0.1, "status": "measured",
                         "layer": "final", "alpha": 1.0, "alpha_stderr": 0.01})


def test_a_trajectory_shows_every_value_once_a_phase_in_its_style(run):
    phases = find_phases(run.tokens, run.rankme, run.rankme_stderr)
    with figures.style():
        figure, axes = figures.grid(1, 1)
        figures.trajectory(axes[0, 0], run, "rankme", phases)
    styles = [line.get_linestyle() for line in axes[0, 0].lines]
    assert styles == [":", "-", "--"]
    drawn = np.unique(np.concatenate([line.get_xydata() for line in axes[0, 0].lines]), axis=0)
    np.testing.assert_array_equal(drawn, run[["tokens", "rankme"]].to_numpy())
    figure.canvas.draw()
    left, right = axes[0, 0].get_xlim()
    assert left <= 0 and right >= run.tokens.max()


def test_runs_are_thin_lines_their_mean_a_thick_one_and_its_interval_a_band():
    curves = pd.DataFrame({0: [1.0, 2], 1: [3.0, 6], "mean": [2.0, 4], "low": [1.5, 3], "high": [2.5, 5]}, [10, 20])
    with figures.style():
        _, axes = figures.grid(1, 1)
        figures.runs_and_mean(axes[0, 0], curves, "black", "ours")
    *thin, thick = axes[0, 0].lines
    assert [list(line.get_ydata()) for line in (*thin, thick)] == [[1, 2], [3, 6], [2, 4]]
    assert thick.get_linewidth() > 2 * thin[0].get_linewidth() and thick.get_label() == "ours"
    (band,) = axes[0, 0].collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(10, 1.5), (20, 3), (10, 2.5), (20, 5)}


def test_a_failed_checkpoint_is_a_mark_and_a_gap(run):
    run.loc[3, ["rankme", "rankme_stderr", "alpha", "alpha_stderr"]] = np.nan
    run.loc[3, "status"] = "failed"
    with figures.style():
        _, axes = figures.grid(1, 1)
        figures.trajectory(axes[0, 0], run, "rankme", find_phases(run.tokens, run.rankme, run.rankme_stderr))
    (mark,) = [line for line in axes[0, 0].lines if line.get_marker() == "x"]
    assert list(mark.get_xdata()) == [4000.0]


def test_known_faults_and_doubted_checkpoints_are_marked(run):
    run.loc[3, ["rankme", "rankme_stderr"]] = np.nan
    run.loc[3, "status"] = "quarantined"
    run["same_weights_as"] = [None] * 9 + ["step1"]
    run["same_geometry_as"] = [None, "step7", *[None] * 8]
    with figures.style():
        _, axes = figures.grid(1, 1)
        figures.trajectory(axes[0, 0], run, "rankme", find_phases(run.tokens, run.rankme, run.rankme_stderr))
    marks = {line.get_marker(): list(line.get_xdata()) for line in axes[0, 0].lines}
    assert marks["|"] == [4000.0] and marks["o"] == [1000.0, 256000.0]


def test_values_that_a_few_sequences_decide_are_marked_and_the_mark_is_explained(run):
    run["sequences"], run["half_variance"] = 1000, [400, 20, 21, 1, 300, 400, 400, 400, 400, 400]
    run["largest_influence"], run.loc[9, "rankme_stderr"] = [0.01] * 9 + [0.2], 1.0  # 5 % of the value
    with figures.style():
        _, axes = figures.grid(1, 2)
        for ax, quantity in zip(axes[0], ("rankme", "alpha"), strict=True):
            figures.trajectory(ax, run, quantity)
    (mark,) = [line for line in axes[0, 0].lines if line.get_marker() == "D"]
    assert list(mark.get_xdata()) == [1000.0, 4000.0, 256_000.0]
    (explained,) = axes[0, 0].get_legend().get_texts()
    assert explained.get_text() == "that of a few sequences"
    assert not [line for line in axes[0, 1].lines if line.get_marker() == "D"]  # alpha is not moved by them


def test_the_fitted_line_lies_on_a_power_law():
    s = np.arange(1, 201) ** -1.5
    with figures.style():
        _, axes = figures.grid(1, 1)
        figures.spectrum(axes[0, 0], s, alpha_req(s))
    points, line = (line.get_xydata() for line in axes[0, 0].lines)
    assert line[:, 0].tolist() == [12, 100]
    np.testing.assert_allclose(line[:, 1], points[[11, 99], 1], rtol=1e-9)  # float64 least squares of an exact line


def test_style_leaves_nothing_behind_and_grids_are_not_left_open():
    before = dict(plt.rcParams)
    with figures.style():
        figures.grid(2, 2)
    assert dict(plt.rcParams) == before and plt.get_fignums() == []


def test_colours_are_one_a_model_and_different():
    colours = figures.palette(["a", "b", "c"])
    assert list(colours) == ["a", "b", "c"] and len(set(colours.values())) == 3


def test_one_meaning_a_colour():
    named = [figures.OURS, figures.OTHER, figures.PUBLISHED, figures.CONTEXT, figures.FAULT, figures.FEW]
    colours = np.array([to_rgb(colour) for colour in [*named, *figures.PHASE_COLOURS.values()]])
    apart = np.abs(colours[:, None] - colours[None]).sum(-1)[np.triu_indices(len(colours), 1)]
    assert apart.min() > 0.1, "two colours that nobody tells apart"


def test_columns_of_numbers_stand_to_the_right_and_words_to_the_left():
    frame = pd.DataFrame({"n": [1.5, None], "of": ["3 of 3", "–"], "interval": ["0.4 (0.1 to 3e-4)", "±1 %"],
                          "word": ["yes", "no"], "mixed": ["d = 16", "32"], "flag": [True, False]}, index=["a", "b"])
    markup = figures.table(frame, "Some <rows>", "{:.2f}").to_html()
    left = set(re.findall(r"\.col(\d) \{[^}]*text-align: left", markup))
    assert left == {"3", "4", "5"} and "Some &lt;rows&gt;" in markup and ">1.50<" in markup and ">–<" in markup


def test_a_run_s_picture_is_written_whole(run, tmp_path):
    phases = {"final": find_phases(run.tokens, run.rankme, run.rankme_stderr)}
    path = figures.save(figures.run_picture(run, phases), tmp_path / "new" / "picture.svg")
    text = path.read_text()
    assert text.rstrip().endswith("</svg>") and "compression-seeking" in text


def test_the_opening_pages_figure_starts_at_0_and_names_sizes_and_phases_in_plain_words(run):
    phases = find_phases(run.tokens, run.rankme, run.rankme_stderr)
    figure = figures.overview([run, run, run], [phases, phases, None], ["d = 16", "d = 16", "d = 32, layers 4"])
    (ax,) = figure.axes
    assert ax.get_ylim()[0] == 0
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["width 16", "width 32, layers 4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["collapse", "spreading", "gathering"]
    assert len(ax.patches) == 6, "the phases of two runs tint it; the third has none"
