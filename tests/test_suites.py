"""Suites: names of checkpoints.

Trusted: the branch names that the published suites carry (paper.md, section 2), and huggingface_hub, whose own scan of
a cache says which revisions lie in it and which commits they are.
"""

import math
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir

from reptrace.hub import commit_of, repository_folder
from reptrace.suites import Checkpoint, checkpoints, revisions, step_of

STEPS = [0, 1, 512, 1000, 9000, 10000, 143000]
TOKENS_A_STEP = 2_097_152


@pytest.fixture
def cache(hub_cache):
    """A repository whose revisions were fetched in no order, with a branch name of two parts among them."""
    names = ["step1000", "main", "step2", "step16", "stage2-ingredient1-step9-tokens1B", "try/step4"]
    return str(hub_cache("me/run", {name: {"config.json": b"{}"} for name in names}))


# Steps


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [
    "step{step}", "stage1-step{step}-tokens{tokens}B", "stage2-ingredient3-step{step}-tokens{tokens}B", "step_{step}",
    "checkpoint-{step}", "global_step{step}", "runs/checkpoint-{step}",
])
def test_the_step_is_read_from_the_names_in_use(name, step):
    tokens = math.ceil(step * TOKENS_A_STEP / 1e9)
    assert step_of(name.format(step=step, tokens=tokens)) == step


@pytest.mark.parametrize("name", ["main", "", "step", "footstep3", "step3x", "stage1", "pythia-70m", "v1.0", "step-"])
def test_a_name_that_states_no_step_has_none(name):
    assert step_of(name) is None


# Revisions


def test_revisions_are_those_that_the_hub_library_finds_and_come_in_order_of_their_steps(cache):
    repository, = scan_cache_dir(cache).repos
    found = revisions("me/run", cache)
    assert set(found) == set(repository.refs)
    assert found == ["step2", "try/step4", "stage2-ingredient1-step9-tokens1B", "step16", "step1000", "main"]


def test_a_commit_is_the_one_that_the_hub_library_finds(cache):
    repository, = scan_cache_dir(cache).repos
    assert str(repository.repo_path) == str(repository_folder(cache, "me/run"))
    for name, revision in repository.refs.items():
        assert commit_of("me/run", name, cache) == revision.commit_hash
    assert commit_of("me/run", None, cache) == repository.refs["main"].commit_hash


def test_a_commit_given_by_its_hash_is_itself_and_a_folder_has_none(cache, tmp_path):
    assert commit_of("me/run", "f" * 40, cache) == "f" * 40


@pytest.mark.parametrize("repository", ["me/other", "EleutherAI/pythia-14m"])
def test_a_repository_that_is_not_in_the_cache_has_no_revisions(cache, repository):
    assert revisions(repository, cache) == []


def test_a_hub_out_of_reach_lists_no_revisions():
    assert revisions("EleutherAI/pythia-14m") == []  # HF_HUB_OFFLINE is set


# Checkpoints


def test_a_pattern_stands_for_the_revisions_that_fit_it_in_order_of_their_steps(cache):
    found = checkpoints("me/run", "step*", cache, tokens_per_step=TOKENS_A_STEP)
    assert [(c.model, c.revision, c.step, c.tokens, c.cache_dir) for c in found] == [
        ("me/run", f"step{step}", step, step * TOKENS_A_STEP, cache) for step in (2, 16, 1000)]


@pytest.mark.parametrize(("pattern", "names"), [
    ("stage2-*", ["stage2-ingredient1-step9-tokens1B"]), ("*step1*", ["step16", "step1000"]),
    ("*", ["step2", "try/step4", "stage2-ingredient1-step9-tokens1B", "step16", "step1000", "main"]),
])
def test_a_pattern_may_stand_anywhere_in_the_name(cache, pattern, names):
    assert [checkpoint.revision for checkpoint in checkpoints("me/run", pattern, cache)] == names


def test_a_pattern_that_fits_nothing_is_an_error_that_says_what_there_is(cache):
    with pytest.raises(FileNotFoundError, match=r"'me/run' has no revision that fits 'stage3\*'; it has step2"):
        checkpoints("me/run", "stage3*", cache)
    with pytest.raises(FileNotFoundError, match="it has none"):
        checkpoints("me/other", "step*", cache)


def test_a_plain_revision_stands_for_itself(cache):
    found, = checkpoints("me/run", "step16", cache)
    assert found == Checkpoint("me/run", "step16", 16, None, cache)
    assert found.label == "me/run@step16"
    assert checkpoints("me/run", cache_dir=cache) == [Checkpoint("me/run", None, None, None, cache)]


def test_a_trainers_folder_stands_for_all_its_checkpoints_in_order_of_their_steps(tmp_path):
    for name in ("checkpoint-1000", "checkpoint-20", "checkpoint-3", "runs", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file, no model")
    found = checkpoints(str(tmp_path), tokens_per_step=10)
    assert [(Path(c.model).name, c.step, c.tokens, c.revision) for c in found] == [
        ("checkpoint-3", 3, 30, None), ("checkpoint-20", 20, 200, None), ("checkpoint-1000", 1000, 10_000, None)]
    assert found[0].label == str(tmp_path / "checkpoint-3")


def test_a_checkpoint_without_a_number_comes_last(tmp_path):
    for name in ("checkpoint-best", "checkpoint-20", "checkpoint-again"):
        (tmp_path / name).mkdir()
    found = checkpoints(str(tmp_path))
    assert [Path(c.model).name for c in found] == ["checkpoint-20", "checkpoint-again", "checkpoint-best"]
    assert [c.step for c in found] == [20, None, None]


@pytest.mark.parametrize(("name", "step"), [("model", None), ("checkpoint-500", 500)])
def test_a_folder_with_a_model_in_it_stands_for_itself(tmp_path, name, step):
    (tmp_path / name).mkdir()
    assert checkpoints(str(tmp_path / name)) == [Checkpoint(str(tmp_path / name), None, step)]


def test_step_zero_has_seen_zero_tokens_and_an_unknown_step_an_unknown_number(cache):
    assert checkpoints("me/run", "step0", cache, tokens_per_step=10)[0].tokens == 0
    assert checkpoints("me/run", "main", cache, tokens_per_step=10)[0].tokens is None
    assert checkpoints("me/run", "step16", cache)[0].tokens is None
