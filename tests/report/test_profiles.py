"""Trusted: the parameters file itself, and plain arithmetic on it."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml

from reptrace.records.store import provenance
from reptrace.report import profiles
from reptrace.report.archive import Answers
from reptrace.report.profiles import ROOT, Profile, footer
from reptrace.texts.corpora import Corpus

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


def test_a_suite_may_set_what_a_size_overrides_and_is_the_same_without_it(open_profile):
    plain = open_profile()
    profile = open_profile(rotary=1.0, sizes=[SIZE, SIZE | {"rotary": 0.5}])
    assert [run.rotary for run in profile.runs] == [1, 1, 0.5, 0.5] and plain.runs[0].rotary == 0.25
    assert '"rotary": 1.0' in profile.describe() and "rotary" not in plain.describe()
    assert open_profile(schedule="warmup_stable_decay", warmup_steps=2, decay_steps=3).runs[0].decay_steps == 3


def test_runs_of_an_archive_are_named_by_the_recipe_that_they_were_trained_with(open_profile, tmp_path):
    answers = Answers(tmp_path / "archive")
    for recipe in (2, 3):
        answers.write("suite", pd.DataFrame([{"parameters": open_profile().describe(), "text": "t", "recipe": recipe}]))
        assert {run.recipe for run in replace(open_profile(), archive=str(answers.folder)).runs} == {recipe}


def test_the_runs_of_the_tracked_archive_are_those_it_holds():
    kept = replace(Profile.of(TINY), archive=str(ROOT / "data/archive"))
    assert list(kept.trace()) == kept.runs and all(len(kept.log(run)) for run in kept.runs)


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


@pytest.mark.parametrize(("sizes", "said"), [
    ([SIZE], "2 runs of 1 size (2 seeds of each), "),
    ([SIZE, SIZE | {"width": 32}], "4 runs of 2 sizes (2 seeds of each), "),
    ([SIZE, *({**SIZE, "width": width, "seeds": 0} for width in (24, 32))], "4 runs of 3 sizes (2 seeds of one), "),
    ([SIZE, SIZE | {"width": 24}, SIZE | {"width": 32, "seeds": 0}], "5 runs of 3 sizes (2 seeds of 2), "),
    ([SIZE | {"seeds": 0}], "1 run of 1 size, ")])
def test_the_scale_tells_runs_from_sizes(open_profile, sizes, said):
    assert open_profile(sizes=sizes).scale.startswith(said)


def test_the_settings_that_sizes_were_chosen_from_are_those_of_the_default_suite_alone(open_profile):
    settings = profiles.selection(Profile.of(TINY | {"sequences": 8}))  # another probe: the same models
    assert set(settings.width) > {size["width"] for size in TINY["sizes"]} and "yes" in set(settings.compression)
    tried = pd.read_csv(profiles.TRACKED)
    # falls by the page's definition: in the averaged weights too, where there are any
    fell = (tried.compression == "yes") & (tried.averaged_compression.fillna("yes") == "yes")
    assert list(settings.compression == "yes") == list(fell) and fell.sum() < (tried.compression == "yes").sum()
    paper = yaml.safe_load((ROOT / "notebooks/params/paper.yaml").read_text())
    others = open_profile(), Profile.of(TINY | {"learning_rate": 0.5}), Profile.of(paper)
    assert [profiles.selection(each) for each in others] == [None] * 3


# The page's footer


@pytest.fixture
def default_text(monkeypatch):
    """A small text in place of the docstrings, which take a minute to read."""
    text = Corpus("docstrings", [f"document number {k}" for k in range(100)])
    monkeypatch.setattr(profiles.corpora, "docstrings", lambda **options: text)
    return text.split()[0].fingerprint


def tracked(folder, fingerprint):
    path = folder / "tracked.csv"
    pd.DataFrame({"corpus_fingerprint": [fingerprint], "python": ["3.11.7"]}).to_csv(path, index=False)
    return path


def test_a_page_says_when_the_default_text_is_not_that_of_the_tracked_tables(default_text, open_profile, tmp_path,
                                                                             monkeypatch):
    monkeypatch.setattr(profiles, "provenance", lambda: {**provenance(), "python": "3.13.5"})
    monkeypatch.setattr(profiles, "TRACKED", tracked(tmp_path, default_text))
    same = footer(open_profile(corpus="docstrings"), 0)
    assert "tracked tables" not in same and f"text `{default_text}`" in same
    monkeypatch.setattr(profiles, "TRACKED", tracked(tmp_path, "0123456789abcdef"))
    other = footer(open_profile(corpus="docstrings"), 0)
    assert "**The text is not that of the tracked tables.**" in other
    assert "from that of Python 3.11.7 (`0123456789abcdef`)" in other
    assert f"from that of Python 3.13.5 (`{default_text}`)" in other


def test_a_page_about_another_text_says_nothing_of_the_tracked_tables(open_profile):
    assert "tracked tables" not in footer(open_profile(), 0)  # of a file
    paper = yaml.safe_load((ROOT / "notebooks/params/paper.yaml").read_text())
    assert "tracked tables" not in footer(Profile.of(paper | {"corpus": "docstrings"}), 0)


def test_the_tracked_tables_were_made_from_one_text():
    """So that a page may compare with the first of them."""
    paths = [path for path in profiles.TRACKED.parent.glob("*.csv")
             if "corpus_fingerprint" in pd.read_csv(path, nrows=0).columns]
    made = pd.concat(pd.read_csv(path, usecols=["corpus_fingerprint", "python"]) for path in paths)
    assert profiles.TRACKED in paths and len(paths) > 1
    assert len(made.drop_duplicates()) == 1 and made.python.iloc[0].startswith("3.11.")
