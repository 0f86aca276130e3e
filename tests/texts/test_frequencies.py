"""Trusted: scipy's entropy and chi-square test, a count of the drawn pairs one by one, and texts whose answer is known.

An un-mapped text must be the original up to merged types, exactly: no tolerance. Entropies of drawn texts are compared
with what the map says within the spread that a text of that length has.
"""

from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chisquare, entropy

from reptrace.texts.corpora import Probe
from reptrace.texts.frequencies import REMAPPINGS, Remapping, describe, flattened, swapped

TYPES = 256


def zipf_text(length=200_000, seed=0):
    """Tokens drawn from Zipf's law over shuffled ids, the last type never."""
    p = 1 / np.arange(1, TYPES)
    ids = np.random.default_rng(seed).permutation(TYPES - 1)
    return ids[np.random.default_rng(seed + 1).choice(TYPES - 1, length, p=p / p.sum())].astype(np.uint16)


TEXT = zipf_text()
COUNTS = np.bincount(TEXT, minlength=TYPES)


def entropy_of(ids) -> float:
    return float(entropy(np.bincount(ids, minlength=TYPES)))


def test_flattened_frequencies_are_near_uniform():
    drawn = flattened(COUNTS).draw(TEXT)
    assert drawn.dtype == TEXT.dtype and drawn.shape == TEXT.shape
    assert entropy_of(TEXT) < np.log(TYPES) - 1
    # rounding a type's share to whole ids leaves ids at most half fuller than the mean: at worst 0.06 nats
    assert np.log(TYPES) - 0.06 < entropy_of(drawn) <= np.log(TYPES)
    assert np.bincount(drawn, minlength=TYPES).max() < 1.7 * len(TEXT) / TYPES


def test_swapped_frequencies_are_as_skewed_as_before():
    group = swapped(COUNTS)
    drawn = group.draw(TEXT)
    ranked = np.sort(COUNTS)[::-1]
    size = group.count.max()
    # each group of neighbours keeps its tokens: sums of the ranked counts, group by group, are the same
    assert [sum(np.sort(np.bincount(drawn, minlength=TYPES)[k : k + size])) for k in range(0, TYPES, size)] == [
        sum(ranked[k : k + size]) for k in range(0, TYPES, size)]
    assert abs(entropy_of(drawn) - entropy_of(TEXT)) < 0.1  # only the slope inside a group is lost
    # as much randomness, up to rounding e to it to a whole number g: at most ln((g + 1/2) / g)
    added = flattened(COUNTS).choice_entropy(COUNTS)
    assert abs(group.choice_entropy(COUNTS) - added) <= np.log(1 + 0.5 / size) + 1e-9


@pytest.mark.parametrize("kind", REMAPPINGS)
def test_un_mapping_gives_the_text_back_up_to_merged_types(kind):
    remapping = REMAPPINGS[kind](COUNTS)
    drawn = remapping.draw(TEXT)
    becomes, sources = defaultdict(set), defaultdict(set)
    for old, new in zip(TEXT.tolist(), drawn.tolist(), strict=True):
        becomes[old].add(new)
        sources[new].add(old)
    merged = remapping.merged(COUNTS)
    for new, olds in sources.items():  # types meet in one id only where they are said to be merged
        assert len(olds) == 1 or all(merged[old] for old in olds)
        assert {remapping.first[old] for old in olds} == {remapping.units(new)}
    for old, news in becomes.items():
        assert news <= set(range(remapping.first[old], remapping.first[old] + remapping.count[old]))
    assert (remapping.units(drawn) == remapping.first[TEXT]).all()


def test_flattening_merges_rare_types_only():
    merged = flattened(COUNTS).merged(COUNTS)
    assert merged.any() and COUNTS[merged].max() < COUNTS.mean()


def test_each_id_of_a_type_is_as_likely_as_the_others():
    remapping = flattened(COUNTS)
    commonest = COUNTS.argmax()
    first, count = remapping.first[commonest], remapping.count[commonest]
    drawn = remapping.draw(TEXT)[commonest == TEXT]
    assert count > 20
    assert chisquare(np.bincount(drawn - first, minlength=count)).pvalue > 1e-3  # seeded: it does not flicker


def test_the_seed_decides_and_the_text_is_left_alone():
    remapping, before = flattened(COUNTS), TEXT.copy()
    assert (remapping.draw(TEXT, 3) == remapping.draw(TEXT, 3)).all()
    assert (remapping.draw(TEXT, 3) != remapping.draw(TEXT, 4)).any()
    assert (before == TEXT).all()
    again = flattened(COUNTS)
    assert (again.first == remapping.first).all() and (again.count == remapping.count).all()


def test_uniform_counts_need_no_flattening():
    remapping = flattened(np.full(16, 10))
    assert sorted(remapping.first) == list(range(16)) and remapping.choice_entropy(np.full(16, 10)) == 0


@pytest.mark.parametrize("kind", [None, *REMAPPINGS])
def test_statistics_are_those_of_the_drawn_text(kind):
    remapping = REMAPPINGS[kind](COUNTS) if kind else None
    found = describe(TEXT, TYPES, remapping)
    drawn = remapping.draw(TEXT) if remapping else TEXT
    counts = np.array(list(Counter(drawn.tolist()).values()))
    # plug-in entropy of N tokens over V ids is low by about V / 2N = 6e-4, and its spread is 1 / sqrt(N) = 2e-3
    assert found["unigram_entropy"] == pytest.approx(entropy(counts), abs=0.01)
    # the fullest of equally likely ids exceeds its mean of 1,000 or more tokens by chance, about 3 / sqrt(1000)
    assert found["largest_share"] == pytest.approx(counts.max() / len(drawn), rel=0.1)
    if not kind:
        assert found["choice_entropy"] == found["merged_share"] == 0 and found["units"] == (COUNTS > 0).sum()


def test_bigram_entropy_is_that_of_counted_pairs_and_grows_by_the_choice():
    rng = np.random.default_rng(1)  # not that of the draw
    text = np.cumsum(rng.choice([1, 2], 400_000, p=[0.75, 0.25])) % 8  # the next token is one of two: a Markov chain
    step = entropy([0.75, 0.25])
    plain = describe(text, 8)
    # the chain's own entropy; spread of its estimate ln(3) * 0.43 / sqrt(N) = 8e-4
    assert plain["bigram_entropy"] == pytest.approx(step, abs=0.004)
    assert plain["bigram_accuracy"] == pytest.approx(0.75, abs=0.004)
    # eight types that occur get two ids each, and eight that do not share the first unit
    remapping = Remapping(np.r_[np.arange(0, 16, 2), np.zeros(8, dtype=int)], np.full(16, 2))
    split = describe(text, 16, remapping)
    pairs = Counter(zip(*(remapping.draw(text)[k : len(text) - 1 + k].tolist() for k in (0, 1)), strict=True))
    before = Counter(remapping.draw(text)[:-1].tolist())
    counted = entropy(list(pairs.values())) - entropy(list(before.values()))
    assert split["bigram_entropy"] == pytest.approx(counted, abs=0.004)
    assert split["bigram_entropy"] == pytest.approx(step + np.log(2), abs=0.004)
    assert split["bigram_accuracy"] == pytest.approx(0.75 / 2, abs=0.004)


def test_a_probe_keeps_its_documents_and_lengths():
    probe = Probe("p", [[0, 1, 2], [3], [4, 5]], 8, 1, documents=["a", "b", "c"])
    remapping = flattened(COUNTS)
    mapped = remapping.probe(probe)
    assert [len(sequence) for sequence in mapped.sequences] == [3, 1, 2] and mapped.documents == probe.documents
    units = remapping.units(np.concatenate(mapped.sequences))
    assert units.tolist() == remapping.first[np.arange(6)].tolist()
    assert mapped.fingerprint == remapping.probe(probe).fingerprint != probe.fingerprint


@pytest.mark.parametrize("counts, message", [
    ([3, -1, 2], "0 or above"), ([0, 0, 0], "not all 0"), ([5], "two or more types"), ([[1, 2]], "shape"),
    ([0.5, 0.5], "whole number"), ([3, 3, 0], "larger vocabulary")])
def test_counts_that_cannot_be_flattened_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        flattened(np.array(counts))


@pytest.mark.parametrize("group", [0, TYPES + 1])
def test_a_group_of_no_type_or_of_more_than_all_is_refused(group):
    with pytest.raises(ValueError, match="group must be from 1"):
        swapped(COUNTS, group)
