"""Settings tried for the default suite: train and trace each one, and write what it showed to one table.

    make settings

Every setting of settings.yaml is in the table, whatever it showed; what is trained and measured already is read.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml

from reptrace.measures.phases import claims, find_phases
from reptrace.records.store import provenance, write_atomically
from reptrace.report.profiles import ROOT, SUITE_KEYS, TRAINING_KEYS, Profile

PLAN = Path(__file__).with_suffix(".yaml")
OUT = ROOT / "data" / "results" / "settings_tried.csv"


def main() -> None:
    profile = Profile.of(yaml.safe_load(PLAN.read_text()))
    profile.train()
    rows = [row(profile, run, table) for run, table in profile.trace().items()]
    write_atomically(OUT, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g").encode())
    print(f"{len(rows)} settings: {OUT.relative_to(ROOT)}")


def row(profile: Profile, run, table) -> dict:
    """One setting: what was set, what RankMe did, which claims it decides, what it cost."""
    log, setting = profile.suite.log(run), asdict(run)
    phases = find_phases(table.tokens, table.rankme, table.rankme_stderr)
    return {
        **{key: setting[key] for key in ("width", "layers", "seed", "recipe", *TRAINING_KEYS, *SUITE_KEYS)},
        "parameters": run.parameters,
        "tokens": run.steps * run.tokens_per_step, "rankme_start": table.rankme.iloc[0],
        "rankme_minimum": phases.collapse_end.value if phases.collapse_end else None,
        "rankme_peak": table.rankme[phases.turn.index] if phases.turn else None,
        "rankme_last": table.rankme.iloc[-1], "rankme_last_stderr": table.rankme_stderr.iloc[-1],
        **{key: value for key, value in phases.row().items() if not key.endswith("_value") and "wiggle" not in key},
        **claims(phases),
        "final_loss": log.loss.iloc[-1], "probe_fingerprint": table.probe_fingerprint.iloc[0],
        "corpus_fingerprint": run.corpus, **provenance()}


if __name__ == "__main__":
    main()
