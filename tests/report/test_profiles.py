"""Trusted: the parameters file itself, and plain arithmetic on it."""

import pytest
import yaml

from reptrace.report.profiles import ROOT, Profile

TINY = yaml.safe_load((ROOT / "notebooks/params/tiny.yaml").read_text())
SIZE = {"width": 16, "layers": 2, "tokens": 4096 * 10, "seeds": [3, 4]}


@pytest.fixture
def open_profile(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"document number {k}" for k in range(100)))
    return lambda **changes: Profile.of(TINY | {"corpus": str(text), "sizes": [SIZE]} | changes)


def test_runs_are_sizes_times_seeds_with_steps_from_tokens(open_profile):
    runs = open_profile(batch=64, context=64).runs
    assert [(run.width, run.seed, run.steps) for run in runs] == [(16, 3, 10), (16, 4, 10)]


def test_a_size_may_change_a_parameter_of_the_suite_and_nothing_else(open_profile):
    assert open_profile(sizes=[SIZE | {"learning_rate": 0.5}]).runs[0].learning_rate == 0.5
    assert open_profile(sizes=[SIZE | {"loss": "squared error"}]).runs[0].loss == "squared error"
    with pytest.raises(ValueError, match="unknown keys learning_rte"):
        _ = open_profile(sizes=[SIZE | {"learning_rte": 0.5}]).runs


def test_runs_that_differ_by_their_seed_alone_are_one_size_and_labels_tell_the_others_apart(open_profile):
    profile = open_profile(sizes=[SIZE, SIZE | {"layers": 3}, SIZE | {"width": 32}])
    assert [len(runs) for runs in profile.sizes_of_runs] == [2, 2, 2]
    labels = list(profile.labels.values())
    assert labels == ["d = 16, layers 2", "d = 16, layers 2, seed 4", "d = 16, layers 3", "d = 16, layers 3, seed 4",
                      "d = 32", "d = 32, seed 4"]


def test_a_text_file_in_the_project_is_found_from_any_folder(open_profile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = open_profile(corpus="README.md").texts
    written = (ROOT / "README.md").read_text().split("\n\n")
    assert sum(len(part.documents) for part in parts) == len({block.strip() for block in written} - {""})


def test_training_text_and_probe_text_share_no_document(open_profile):
    training, held_out = open_profile().texts
    assert not set(training.documents) & set(held_out.documents)
    assert len(training.documents) + len(held_out.documents) == 100


def test_one_suite_of_the_hub_counts_as_a_list_of_one():
    parameters = yaml.safe_load((ROOT / "notebooks" / "params" / "paper.yaml").read_text())
    assert Profile.of(parameters | {"suites": "pythia-1b"}).suites == ("pythia-1b",)
    with pytest.raises(TypeError, match="expected suites, by name"):
        Profile.of(parameters | {"suites": {"pythia-1b": 40}})


def test_one_size_and_one_seed_count_as_lists_of_one(open_profile):
    assert open_profile(sizes=SIZE | {"seeds": 3}).runs == open_profile(sizes=[SIZE | {"seeds": [3]}]).runs
