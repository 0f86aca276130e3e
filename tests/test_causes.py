"""The study of causes: its plan, its tracked tables, and its paired interval.

Trusted: a run's name, which hashes all that was set for it, so that a table that names a run can be checked against its
own columns and against the plan; the detector applied anew to the tracked curves; a closed form for the paired ratio.
"""

import sys
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from reptrace.measures.phases import claims, find_phases
from reptrace.report.profiles import ROOT
from reptrace.training.runs import Run

sys.path.insert(0, str(ROOT / "studies"))
import causes

PLAN = yaml.safe_load(causes.PLAN.read_text())


@pytest.fixture(scope="module")
def runs():
    return pd.read_csv(causes.RESULTS / "causes.csv")


@pytest.fixture(scope="module")
def older():
    return pd.read_csv(causes.RESULTS / "causes_older.csv")


@pytest.fixture(scope="module")
def curves():
    return pd.read_csv(causes.RESULTS / "causes_curves.csv")


def named(row) -> str:
    """The name of the run that a row of the table describes."""
    steps = row["tokens"] // (row["batch"] * row["context"])
    setting = {field.name: row[field.name] for field in fields(Run) if field.name in row}
    setting = {key: value.item() if hasattr(value, "item") else value for key, value in setting.items()}
    if "study" in row:
        setting["recipe"] = 1
    return Run(**setting, steps=int(steps), corpus=row["corpus_fingerprint"]).repository


def test_every_row_s_settings_are_those_that_its_run_is_named_by(runs, older):
    for table in (runs, older):
        assert table.apply(named, axis=1).tolist() == table.repository.tolist()


def test_the_older_studies_have_the_same_conditions_but_for_the_sizes_of_vocabularies(runs, older):
    def large(names):
        return set(names[~names.str.startswith("V =")]) - {"constant rate", "decaying rate"}

    for _, study in older.groupby("study"):
        assert large(study.condition) == large(runs.condition) and len(study) == len(runs)
        assert (study.corpus_fingerprint == runs.corpus_fingerprint.iloc[0]).all()
    assert set(older.columns) - {"study"} < set(runs.columns)


def test_the_tables_hold_every_condition_of_the_plan_with_every_seed(runs, curves):
    assert runs.groupby("condition", sort=False).seed.apply(list).to_dict() == dict.fromkeys(
        PLAN["conditions"], PLAN["common"]["seeds"])
    assert len(PLAN["common"]["seeds"]) >= 3
    assert set(curves.repository) == set(runs.repository)
    for name, condition in PLAN["conditions"].items():
        rows = runs[runs.condition == name]
        for key, value in {**PLAN["common"], **condition.get("changes", {})}.items():
            # tokens are whole steps; seeds were compared above
            assert key in ("seeds", "tokens") or (rows[key] == value).all(), (name, key)
        said = {True: "yes", False: "no"}
        for phase in causes.MOVES:
            expected = said.get(condition["predicted"].get(phase))
            assert rows[f"predicted_{phase}"].isna().all() if expected is None else (
                rows[f"predicted_{phase}"] == expected).all()


def test_what_the_table_claims_is_what_the_detector_finds_in_the_curves(runs, curves):
    for row in runs.itertuples():
        its = curves[curves.repository == row.repository]
        raw, averaged = (its[its.weights == weights] for weights in ("raw", "averaged"))
        assert raw.tokens.iloc[0] == 0 and raw.tokens.iloc[-1] == averaged.tokens.iloc[-1] == row.tokens
        for prefix, curve in (("", raw), ("averaged_", pd.concat([raw[raw.tokens < averaged.tokens.min()],
                                                                     averaged], ignore_index=True))):
            found = claims(find_phases(curve.tokens, curve.rankme, curve.rankme_stderr))
            assert found == {phase: getattr(row, prefix + phase) for phase in causes.MOVES}
            assert curve.rankme.between(1, row.width).all()
            later = curve[curve.tokens >= curve.tokens[curve.rankme.idxmin()]]
            assert later.tokens[later.rankme.idxmax()] == getattr(row, prefix + "peak_tokens")


def test_every_table_says_what_made_it_and_is_small():
    paths = sorted(causes.RESULTS.glob("causes*.csv"))
    assert len(paths) == 5
    for path in paths:
        table = pd.read_csv(path)
        assert path.stat().st_size < 200_000
        if "repository" not in table or "code" in table:  # curves are joined to causes.csv by the run's name
            assert table.code.str.match(r"^\d+\.\d+\.\d+ \([0-9a-f]{12}").all() and table.packages.notna().all()


def test_flattened_and_swapped_texts_differ_in_their_skew_and_in_little_else():
    text = pd.read_csv(causes.RESULTS / "causes_texts.csv").set_index(["vocabulary", "frequencies"])
    natural, flat, swapped = (text.loc[2048, kind] for kind in ("natural", "flattened", "swapped"))
    assert flat.unigram_entropy > 0.999 * flat.uniform_entropy and flat.largest_share < 1.6 / 2048
    assert abs(swapped.unigram_entropy - natural.unigram_entropy) < 0.02 * natural.unigram_entropy
    assert abs(swapped.choice_entropy - flat.choice_entropy) < 0.1
    assert abs(swapped.bigram_entropy - flat.bigram_entropy) < 0.1 < flat.bigram_entropy - natural.bigram_entropy


def test_two_conditions_that_train_the_same_are_refused(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"document number {k}" for k in range(100)))
    plan = PLAN | {"corpus": str(text)}
    with pytest.raises(ValueError, match=r"two conditions of .* train the same runs"):
        causes.profiles(plan | {"conditions": {"one": {}, "another": {"changes": {"loss": "cross-entropy"}}}})


def test_a_paired_ratio_is_one_for_the_same_states_and_that_of_known_spectra_otherwise():
    states = torch.randn(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert causes.paired_ratio(states, states, draws=9) == (1, 1, 1)
    assert causes.paired_ratio(states, 3 * states, draws=2)[0] == pytest.approx(1, abs=1e-12)  # RankMe has no scale
    # exactly white states, then half of the directions dropped: RankMe falls from 8 to 4
    white = torch.linalg.qr(states - states.mean(0))[0]
    ratio, low, high = causes.paired_ratio(white, white * (torch.arange(8) < 4), draws=50)
    assert ratio == pytest.approx(0.5, abs=1e-9) and low <= ratio <= high and high - low < 0.01


def test_a_paired_interval_is_narrower_than_one_of_other_sequences_and_about_as_wide_as_the_error_it_makes():
    def pair(seed):
        draw = np.random.default_rng(seed)
        before = draw.standard_normal((500, 8)) * np.sqrt(1 / np.arange(1, 9))
        return torch.from_numpy(before), torch.from_numpy(before + 0.1 * draw.standard_normal((500, 8)))

    found = [causes.paired_ratio(*pair(seed), draws=40) for seed in range(40)]
    logs = np.log(found)
    half = (logs[:, 2] - logs[:, 1]).mean() / 2
    # the standard deviation of 40 ratios is known to 1 / sqrt(80), 11 %; three of these
    assert half / 1.96 == pytest.approx(logs[:, 0].std(), rel=0.34)
    unpaired = np.log([causes.paired_ratio(pair(seed)[0], pair(seed + 1)[1], draws=2)[0] for seed in range(40)])
    assert logs[:, 0].std() < unpaired.std() / 2
