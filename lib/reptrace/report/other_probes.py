"""The runs of a profile on other probes than its own: other texts, fewer sequences, shorter ones.

Measured where it is not in the store, by the same sweeps, and kept with what the other pages were told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from reptrace.report.profiles import FINAL, ROOT, HubProfile, Profile, scale_of
from reptrace.report.verdicts import FEWEST
from reptrace.sweeps.dispatch import run as done
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.subsets import SubsetsPart
from reptrace.sweeps.sweep import table_of, trace_groups
from reptrace.texts import corpora
from reptrace.texts.probes import Probe, shuffled

SHUFFLED = "the same tokens, shuffled"
ENOUGH = 2  # sequences, in widths of the model: fewer say little of a spectrum
CHARACTERS = 32  # of a document, a token wanted: its beginning is enough, and a source file may be a megabyte
SHORTEST = 8  # tokens
_ROW = ("status", "reason", "model", "revision", "step", "tokens", "sequences", "layer", "width", "rankme",
        "rankme_stderr", "alpha", "alpha_stderr", "half_variance", "largest_influence", "wall_seconds")


def seeds_of_one_size(profile: Profile | HubProfile) -> list:
    """The runs that differ by their seed alone, of the size with the most; all runs where these are too few."""
    most = max(profile.sizes_of_runs, key=len)
    return most if len(most) >= FEWEST else list(profile.runs)


def one_of_each_size(profile: Profile | HubProfile) -> list:
    """The first run of each size; all runs where these are too few."""
    firsts = [runs[0] for runs in profile.sizes_of_runs]
    return firsts if len(firsts) >= FEWEST else list(profile.runs)


def scale(profile: Profile | HubProfile, runs: Sequence) -> str:
    """Of some of its runs what `Profile.scale` is of all."""
    sizes = ([run for run in its if run in runs] for its in profile.sizes_of_runs)
    return scale_of([its for its in sizes if its])


def on_texts(profile: Profile | HubProfile, runs: Sequence, names: Sequence[str], sequences: int) -> dict:
    """Geometry of some runs on other texts, and on the profile's own with its tokens shuffled: a table a run.

    Parameters
    ----------
    names : of texts, see `corpora.open_text`
    sequences : of each probe; of a text that has fewer, as many as there are, but `ENOUGH` widths of the model

    Returns
    -------
    dict of run -> table as of `Profile.trace`, with a column `text` (`SHUFFLED` for the control). A text that has too
    few sequences for a run is a row of status "refused" with the reason.
    """
    def measured() -> pd.DataFrame:
        texts = {name: _heads(_opened(profile, name, sequences), profile.context_of(runs[0])) for name in names}
        probes, refused = {}, []
        for run in runs:
            probes[run], why = _probes(profile, run, texts, sequences)
            refused += why
        placed = profile.placed
        settings = Settings(FINAL, tuple(profile.alpha_ranks), placed["batch_size"])
        tables = trace_groups([(profile.points(run), list(its.values())) for run, its in probes.items()],
                              profile.store, settings, placed["opening"], placed["means"])
        named = [table.assign(run=profile.labels[run], text=table.probe_fingerprint.map(
            {probe.fingerprint: name for name, probe in its.items()}))
            for (run, its), table in zip(probes.items(), tables, strict=True)]
        return pd.concat([*named, pd.DataFrame(refused)]).reindex(columns=["run", "text", *_ROW])

    return _by_run(profile, runs, profile.asked("texts", measured))


def _opened(profile: Profile | HubProfile, name: str, sequences: int) -> corpora.Corpus:
    inside = ROOT / name
    return corpora.open_text(inside if inside.is_file() else name, 4 * sequences, profile.folder / "corpora")


def _heads(corpus: corpora.Corpus, context: int) -> corpora.Corpus:
    """The beginnings of the documents, of which a probe has no more."""
    return corpora.Corpus(corpus.name, [text[: CHARACTERS * context] for text in corpus.documents])


def _probes(profile: Profile | HubProfile, run, texts: Mapping[str, corpora.Corpus], sequences: int
            ) -> tuple[dict[str, Probe], list[dict]]:
    """The probes of a run by text, the control among them, and a row for each text that is too small."""
    found, refused = {}, []
    for name, corpus in texts.items():
        try:
            found[name] = profile.probe_of(run, corpus, sequences, profile.min_length, round(ENOUGH * run.width))
        except ValueError as error:
            refused.append({"run": profile.labels[run], "text": name, "status": "refused", "reason": str(error)})
    own = profile.probe(run)
    found[SHUFFLED] = shuffled(Probe(own.name, own.sequences[:sequences], own.max_length, own.min_length, own.seed))
    return found, refused


def by_subsets(profile: Profile | HubProfile, runs: Sequence, sequences: int) -> dict:
    """Geometry of some runs on disjoint subsets of each size, and at shorter lengths, see `SubsetsPart`: a table a run.

    The probe has sequences of the full context alone, and is not that of `Profile.trace`.
    """
    def measured() -> pd.DataFrame:
        placed, tables, groups = profile.placed, [], []
        for run in runs:
            context = profile.context_of(run)
            probe = _own_of_full_length(profile, run, sequences, context)
            part = SubsetsPart(probe, lengths(context), tuple(profile.alpha_ranks), placed["batch_size"])
            groups.append((profile.points(run), [part]))
        jobs = done(groups, profile.store, placed["opening"], placed["means"])
        for run, (points, parts), its in zip(runs, groups, jobs, strict=True):
            tables.append(table_of(points, parts, its, profile.store).assign(run=profile.labels[run]))
        return pd.concat(tables).reindex(columns=["run", *_ROW, "length", "times_width", "used", "draw",
                                                  "alpha_last_rank"])

    return _by_run(profile, runs, profile.asked("subsets", measured))


def _own_of_full_length(profile: Profile | HubProfile, run, sequences: int, context: int) -> Probe:
    text = profile.texts[1] if isinstance(profile, Profile) else profile.spec.corpus(profile.folder / "corpora")
    return profile.probe_of(run, text, sequences, context, round(ENOUGH * run.width))


def lengths(context: int) -> tuple[int, ...]:
    """Doubling from `SHORTEST` to the context, in tokens."""
    found = [SHORTEST]
    while 2 * found[-1] < context:
        found.append(2 * found[-1])
    return tuple(found if found[-1] >= context else [*found, context])


def _by_run(profile: Profile | HubProfile, runs: Sequence, table: pd.DataFrame) -> dict:
    return {run: table[table.run == profile.labels[run]].reset_index(drop=True) for run in runs}
