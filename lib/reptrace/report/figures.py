"""One style, one palette, and panels of trajectories. Draws what it is given and computes nothing."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from pandas.io.formats.style import Styler

from reptrace.measures.phases import PHASES, Phases
from reptrace.measures.spectra import dominated

PHASE_COLOURS = {"warmup": "#9e9e9e", "entropy-seeking": "#4c9f70", "compression-seeking": "#c9684f",
                  "later": "#8a7fb5"}
PHASE_LINES = {"warmup": ":", "entropy-seeking": "-", "compression-seeking": "--", "later": "-."}
QUANTITIES = {"rankme": "RankMe (eigenvalues, centred)", "alpha": r"$\alpha$-ReQ",
              "loss": "training loss (nats a token)",
              "gradient_norm": "gradient norm", "learning_rate": "learning rate", "tokens": "training tokens"}
# One meaning a colour: sizes and layers take `palette`, phases the colours above, all else one of these.
OURS, OTHER = "#2a6f97", "#b5651d"  # what is computed here, and what is set beside it: another loss, another direction
PUBLISHED = "#8d5a97"  # a value that others published
CONTEXT = "#bbbbbb"  # what is only there to compare with: chance, an axis, runs behind the one that is told of
FAULT = "crimson"  # a checkpoint that could not be measured, or has the weights of another
FEW = "darkorange"  # a value that a few sequences decide
GAPS = {"failed": ("x", FAULT), "quarantined": ("|", "grey")}  # marks of checkpoints without a number
COLUMN = 2.5  # inches, width of one panel: three of them fill a page of the book


@contextmanager
def style():
    """The report's look, for the figures drawn inside; nothing outside changes."""
    look = {"figure.dpi": 140, "savefig.dpi": 160, "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8,
            "legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
            "figure.constrained_layout.use": True, "svg.fonttype": "none"}
    with sns.axes_style("ticks"), plt.rc_context(look):
        yield


def palette(models: Sequence[str]) -> dict[str, tuple]:
    """One colour a model, from light (small) to dark (large), in the order given; readable without colour vision."""
    return dict(zip(models, sns.color_palette("crest", len(models)), strict=True))


def grid(rows: int, columns: int, height: float = 2.2, width: float = COLUMN, **options):
    """Figure and array of axes, (rows, columns), each `width` by `height` inches.

    The figure is not left open in pyplot: a notebook shows it by naming it on a cell's last line, once.
    """
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options)
    plt.close(figure)
    return figure, axes


def trajectory(ax, table: pd.DataFrame, quantity: str, phases: Phases | None = None, colour="black",
               label: str | None = None, shade: bool = True) -> None:
    """A quantity by tokens: line style by phase, 95 % interval as a band; gaps and known faults marked at the bottom.

    Parameters
    ----------
    table : columns `tokens`, the quantity, `<quantity>_stderr` and `status`, in order of tokens
    phases : of RankMe, whatever the quantity drawn; None draws one solid line
    shade : bool, default True; colour the background by phase
    """
    table = table.reset_index(drop=True)
    x, y, half = table["tokens"], table[quantity], 1.96 * table[f"{quantity}_stderr"]
    token_axis(ax, x)
    ax.fill_between(x, y - half, y + half, color=colour, alpha=0.25, linewidth=0)
    spans = phases.spans if phases and phases.spans else [(None, 0, len(table) - 1)]
    for name, first, last in spans:
        part = slice(first, last + 1)
        ax.plot(x[part], y[part], color=colour, linestyle=PHASE_LINES.get(name, "-"), marker=".", markersize=3.5)
        if shade and name:
            ax.axvspan(x[first], x[last], color=PHASE_COLOURS[name], alpha=0.13, linewidth=0)
    if label:
        ax.plot([], [], color=colour, label=label)
    for status, (marker, shade_of) in GAPS.items():
        gaps = table.loc[table["status"] == status, "tokens"]
        if len(gaps):
            ax.plot(gaps, np.full(len(gaps), 0.03), marker, color=shade_of, transform=ax.get_xaxis_transform())
    doubted = table.reindex(columns=["same_weights_as", "same_geometry_as"]).notna().any(axis=1)
    if doubted.any():
        ax.plot(x[doubted], y[doubted], "o", color=FAULT, markerfacecolor="none", markersize=6)
    few = _few(table)
    if quantity == "rankme" and few.any():
        ax.plot(x[few], y[few], "D", color=FEW, markerfacecolor="none", markersize=5,
                label="that of a few sequences")
        ax.legend(fontsize=6)
    ax.set_ylabel(QUANTITIES.get(quantity, quantity))


def _few(table: pd.DataFrame) -> pd.Series:
    """Rows whose RankMe is that of a few sequences."""
    if "half_variance" not in table:
        return pd.Series(False, table.index)
    return pd.Series(dominated(table.half_variance, table.largest_influence, table.sequences,
                               (table.rankme_stderr / table.rankme).astype(float)), table.index)


def phase_line(ax, x, y, spans, colour="black", label: str | None = None, shade: bool = False) -> None:
    """A curve, or a path in the plane, its line style by phase; `spans` is a list of (phase, first, last index)."""
    for name, first, last in spans or [(None, 0, len(x) - 1)]:
        part = slice(first, last + 1)
        ax.plot(x[part], y[part], color=colour, linestyle=PHASE_LINES.get(name, "-"), linewidth=1.2)
        if shade and name:
            ax.axvspan(x[first], x[last], color=PHASE_COLOURS[name], alpha=0.13, linewidth=0)
    if label:
        ax.plot([], [], color=colour, label=label)


def runs_and_mean(ax, curves: pd.DataFrame, colour, label: str | None = None, line: str = "-") -> None:
    """A thin line a run, their mean as a thick one, and a band for its interval: the columns of `over_runs.by_runs`."""
    ax.plot(curves.index, curves.drop(columns=["mean", "low", "high"]), line, color=colour, linewidth=0.6, alpha=0.5)
    ax.plot(curves.index, curves["mean"], line, color=colour, linewidth=1.8, label=label)
    ax.fill_between(curves.index, curves.low, curves.high, color=colour, alpha=0.15, linewidth=0)


def step_axis(ax, steps, name: str = "step") -> None:
    """Logarithmic axis of optimizer steps, with room for step 0 at its left end."""
    token_axis(ax, steps)
    ax.set_xlabel(name)


def token_axis(ax, tokens) -> None:
    """Logarithmic axis of training tokens, with room for step 0 at its left end."""
    later = np.asarray(tokens, dtype=float)
    ax.set_xscale("symlog", linthresh=later[later > 0].min(), linscale=0.4)
    ax.xaxis.set_minor_locator(plt.NullLocator())
    if later.min() == 0:
        decades = np.arange(np.ceil(np.log10(later[later > 0].min())), np.log10(later.max()) + 1e-9)
        ax.set_xticks([0, *10**decades])
    ax.set_xlabel(QUANTITIES["tokens"])


def phase_legend(figure, names: Sequence[str] = PHASES) -> None:
    """What shading and line styles mean, below the panels; `names`: what the phases are called."""
    handles = [(Patch(color=PHASE_COLOURS[name], alpha=0.3), Line2D([], [], color="black", linestyle=PHASE_LINES[name]))
               for name in PHASES]
    figure.legend(handles, names, handlelength=3, ncols=len(PHASES), loc="outside lower center")


def intervals(ax, rows: Sequence[Mapping], scale: str = "log") -> None:
    """Points with intervals, a row each: keys `label`, `colour`, `x`, `low`, `high`; hollow if `published` is true."""
    for height, row in enumerate(rows):
        low, high = row.get("low"), row.get("high")
        if low is not None and high is not None:
            ax.plot([low, high], [height, height], color=row["colour"], linewidth=2, alpha=0.6, solid_capstyle="butt")
        ax.plot(row["x"], height, "o", color=row["colour"], markersize=4,
                markerfacecolor="white" if row.get("published") else row["colour"])
    ax.set_yticks(range(len(rows)), [row["label"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xscale(scale)
    if scale == "log":
        few_decades(ax.xaxis)


def few_decades(axis) -> None:
    """More labelled ticks on a logarithmic axis of less than three decades, where one would be too few."""
    low, high = axis.get_view_interval()
    if high / low < 1000:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def turns(ax, runs: pd.DataFrame, law, per_parameter: bool = False) -> None:
    """Where RankMe turns by the number of parameters, a marker a suite, with a suite's line of the law and its range.

    Parameters
    ----------
    runs : columns suite, parameters, turn, low, high (tokens), published
        An arrow: the turn was not seen, and lies above; seeds of one size stand side by side.
    law : turn_law.Law
        The shade lies between the lines of the smallest and the largest exponent of its interval.
    per_parameter : bool, default False
        Tokens a parameter in place of tokens.
    """
    for (suite, its), marker in zip(runs.groupby("suite", sort=False), "osD^vh", strict=False):
        colour = PUBLISHED if its.published.all() else OURS
        seed = its.groupby("parameters").cumcount() - (its.groupby("parameters").parameters.transform("size") - 1) / 2
        x, unit = its.parameters * 1.12**seed, its.parameters if per_parameter else 1
        seen, turn, low, high = its.turn.notna(), its.turn / unit, its.low / unit, its.high / unit
        ax.vlines(x[seen], low[seen], high.where(np.isfinite(high), turn)[seen], colour, linewidth=1, alpha=0.6)
        ax.plot(x[seen], turn[seen], marker, color=colour, markersize=4, label=suite,
                markerfacecolor="white" if its.published.all() else colour)
        ax.plot(x[~seen], low[~seen], marker=r"$\uparrow$", color=colour, markersize=7, linestyle="none")
        if suite in law.intercepts:
            line = np.geomspace(its.parameters.min() / 1.3, its.parameters.max() * 1.3, 50)
            best, *ends = (np.exp(intercept) * line ** (exponent - per_parameter) for intercept, exponent in zip(
                law.intercepts[suite], (law.exponent, law.low, law.high), strict=True))
            ax.plot(line, best, color=colour, linewidth=1)
            ax.fill_between(line, np.minimum(*ends), np.maximum(*ends), color=colour, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="parameters",
           ylabel="turn (tokens a parameter)" if per_parameter else "turn (training tokens)")
    few_decades(ax.yaxis)


def spectrum(ax, eigenvalues, fit=None, colour="black", label: str | None = None) -> None:
    """Share of the variance by rank (1-based), both logarithmic, with the fitted power law over its window."""
    s = np.asarray(eigenvalues)
    s = s[s > 0]
    ax.loglog(np.arange(1, len(s) + 1), s / s.sum(), ".", markersize=3, color=colour, label=label)
    if fit is not None:
        i = np.array(fit.ranks)
        ax.loglog(i, np.exp(fit.intercept) * i**-fit.alpha / s.sum(), "-", color=colour, linewidth=1.5)
    ax.set_xlabel("rank $i$")
    ax.set_ylabel("share of variance $p_i$")


def run_picture(table: pd.DataFrame, phases: Mapping[str, Phases | None], axis: str = "tokens"):
    """RankMe and alpha of one run, a line a layer; with one layer, phases are shaded."""
    with style():
        figure, axes = grid(1, 2)
        colours = palette(list(phases))
        for layer, found in phases.items():
            gaps = (table["status"] == "failed") & table["layer"].isna()  # of all layers
            rows = table[(table["layer"] == layer) | gaps].assign(tokens=lambda t: t[axis])
            for ax, quantity in zip(axes[0], ("rankme", "alpha"), strict=True):
                trajectory(ax, rows, quantity, found, colours[layer], layer, shade=len(phases) == 1)
                ax.set_xlabel(QUANTITIES.get(axis, axis))
        if len(phases) > 1:
            axes[0, 1].legend(title="layer")
        else:
            phase_legend(figure)
    return figure


def overview(tables: Sequence[pd.DataFrame], phases: Sequence[Phases], groups: Sequence[str]):
    """RankMe by tokens of all runs in one panel, from 0, its letters large enough for a phone.

    `groups`: of each run, what it has in common with others of its colour, in order of size. Each run tints the
    background by its phases, so that a tint is the stronger, the more of them agree.
    """
    sizes = list(dict.fromkeys(groups))
    scale = sns.color_palette("crest", as_cmap=True)  # that of `palette`, to its ends, where a few are further apart
    colours = dict(zip(sizes, scale(np.linspace(1, 0.2, len(sizes))[::-1]), strict=True))
    large = {"font.size": 10, "axes.labelsize": 10, "legend.fontsize": 9, "lines.linewidth": 1.8,
             "lines.dotted_pattern": (1, 1.5), "lines.dashed_pattern": (4, 1.5)}
    with style(), plt.rc_context(large):
        figure, axes = grid(1, 1, height=3.1, width=4.6)
        ax = axes[0, 0]
        labelled = set()
        for table, found, group in zip(tables, phases, groups, strict=True):
            label = None if group in labelled else re.sub("^d = ", "width ", group)
            trajectory(ax, table, "rankme", found, colours[group], label, shade=False)
            labelled.add(group)
            for name, first, last in found.spans if found else ():
                ax.axvspan(table.tokens.iloc[first], table.tokens.iloc[last], color=PHASE_COLOURS[name],
                           alpha=0.45 / len(tables), linewidth=0)
        for line in ax.lines:
            if line.get_marker() == ".":  # the dots would fill the gaps of a dashed line
                line.set_marker("")
        ax.set_ylim(bottom=0)
        ax.set_ylabel("RankMe (directions in use)")
        ax.legend(loc="best")
        phase_legend(figure, ("collapse", "spreading", "gathering"))
    return figure


def show(figure, caption: str, alt: str) -> None:
    """Show a figure in a notebook's cell, which shows no other.

    Parameters
    ----------
    caption : Markdown; what is drawn and how to read it. The book puts a number before it
    alt : plain text for who can't see the figure; what it shows, that is, its finding
    """
    display(figure, metadata={"reptrace": {"caption": caption, "alt": alt}})


def table(frame: pd.DataFrame | pd.Series, caption: str, form: str | Mapping[str, str] | None = None,
          index: bool = True) -> Styler:
    """A table in the book's one style, to be shown: numbers to the right, words to the left, gaps as a dash.

    Parameters
    ----------
    caption : plain text; what the rows are
    form : format of all numbers, or by column, as "{:,.0f}"
    index : bool, default True; whether row names are shown
    """
    frame = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if isinstance(form, str):
        form = dict.fromkeys(frame.select_dtypes("number"), form)
    # The caption wraps at the page's width, also where the table is wider and scrolls (book/_static/book.css).
    shown = frame.style.format(form, na_rep="–").set_caption(f'<span class="fits">{html.escape(caption)}</span>')
    left = [{"selector": f".col{place}", "props": f"text-align: left; min-width: {_narrowest(column)}em"}
            for place, (_, column) in enumerate(frame.items()) if not _numbers(column)]
    shown = shown.set_table_styles([*left, {"selector": ".row_heading", "props": "text-align: left"}])
    return shown if index else shown.hide(axis="index")


def _numbers(column: pd.Series) -> bool:
    """Whether a column is one of numbers, also as text: "0.43 (0.40 to 0.47)", "3 of 3"."""
    return all(re.fullmatch(r"(?:[-+−–±×~<>≤≥%.,:()\[\]/\d\s]|to|of|and|nan|None|e)*", str(value)) for value in column)


def _narrowest(column: pd.Series) -> int:
    """Width of a column of words in letters' heights: its longest text, or some words of it, to be wrapped."""
    return min(column.astype(str).str.len().max(), 24) // 2


def save(figure, path: str | Path) -> Path:
    """Write a figure, SVG or PNG by its name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def svg(figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure: without a date, and with ids that are no chance."""
    content = BytesIO()
    with plt.rc_context({"svg.hashsalt": "reptrace", "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()
