"""Runs of a profile on other texts and on subsets, of suites of the (stand-in) hub.

Trusted: `trace` of the same checkpoints on the same text, and multisets of tokens.
"""

import pytest
from standin_hub import fineweb, tiny_model, tiny_tokenizer
from test_paper_profile import PAPER

from reptrace.report import other_probes
from reptrace.report.profiles import Profile
from reptrace.texts.probes import Probe, shuffled

WORDS = ["alpha", "beta", "gamma", "delta", "of", "the", "a", "network", "learns"]
TEXTS = [f"Document {k} " + " ".join(WORDS[(k * j) % 9] for j in range(1, 40)) for k in range(120)]


@pytest.fixture
def profile(hub, tmp_path):
    for step in (0, 512, 143000):
        hub.put("EleutherAI/pythia-1b", f"step{step}", tiny_model("gpt_neox", step % 97) | tiny_tokenizer(pad=False))
    hub.put("HuggingFaceFW/fineweb", "main", fineweb(TEXTS), kind="datasets")
    hub.put("some/small", "main", fineweb(TEXTS[:20]), kind="datasets")
    return Profile.of(PAPER | {"suites": ["pythia-1b"], "sequences": 60, "context": 24, "min_length": 8,
                               "alpha_ranks": [2, 8], "checkpoints": 3, "refine": 0, "build": str(tmp_path / "build")})


def test_texts_subsets_and_layers_of_a_published_suite(profile, monkeypatch):
    monkeypatch.setattr(other_probes, "ENOUGH", 30 / profile.runs[0].width)  # the tiny model has the real one's here
    usual = profile.trace()[profile.runs[0]]
    layers = profile.trace_layers()[profile.runs[0]]
    assert set(layers.layer) > {"0", "final"} and len(usual) == 3
    own, small = PAPER["corpus"], "hub:some/small:sample-10BT"
    table = other_probes.on_texts(profile, profile.runs, [own, small], 60)[profile.runs[0]]
    measured = table[table.status == "measured"]
    assert list(measured[measured.text == own].rankme) == list(usual.rankme), "the usual text is as it was"
    assert list(table[table.text == small].status) == ["refused"] and "30 sequences" in table.reason.iloc[-1]
    control = measured[measured.text == other_probes.SHUFFLED]
    assert len(control) == 3 and (control.sequences == 60).all() and list(control.rankme) != list(usual.rankme)
    rows = other_probes.by_subsets(profile, profile.runs, 60)[profile.runs[0]]
    assert set(rows.length) == {8, 16, 24} and set(rows[rows.times_width.isna()].used) == {60}


def test_shuffled_tokens_are_the_same_tokens_of_each_sequence():
    given = Probe("some", [[1, 2, 3, 4, 5, 6], [7, 7, 8, 9]], 6, 4)
    found = shuffled(given)
    assert [sorted(each) for each in found.sequences] == [sorted(each) for each in given.sequences]
    assert found.sequences != given.sequences and found.sequences == shuffled(given).sequences
    assert found.fingerprint != given.fingerprint != shuffled(given, seed=1).fingerprint


@pytest.mark.parametrize(("context", "expected"), [(64, (8, 16, 32, 64)), (24, (8, 16, 24)), (8, (8,))])
def test_lengths_double_up_to_the_context(context, expected):
    assert other_probes.lengths(context) == expected
