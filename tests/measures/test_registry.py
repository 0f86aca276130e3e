"""The registry of measures, and what a sweep provides for them.

Trusted: numpy on states that transformers' own model returns for each sequence alone, and on its own weights.
"""

import numpy as np
import pytest
import torch
from limits import SOON, in_background
from standin_hub import tiny_model, tiny_tokenizer
from test_dispatch import PYTHIA, STEPS, downloads
from test_hidden_states import VOCABULARY, tiny

from reptrace.checkpoints import hub as real_hub
from reptrace.checkpoints.listing import Checkpoint
from reptrace.checkpoints.suites import suite
from reptrace.measures import registry
from reptrace.measures.measure import REGISTRY, measure
from reptrace.measures.registry import chosen, measured, needed
from reptrace.measures.spectra import geometry
from reptrace.records.store import Store
from reptrace.sweeps import references
from reptrace.sweeps.dispatch import Means
from reptrace.sweeps.located import Opening
from reptrace.sweeps.measurement import Settings
from reptrace.sweeps.sweep import SuiteSpec, measure_suites, trace
from reptrace.texts.probes import Probe

SEQUENCES = [[k % VOCABULARY for k in range(start, start + length)] for start, length in
             zip(range(3, 43), [5, 9, 7, 12, 4, 8] * 7, strict=False)]


@pytest.fixture
def entries():
    """The registry, to be changed for one test."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture
def checkpoint(tmp_path):
    """A function that makes a folder with a model: its seed -> checkpoint and model."""

    def made(seed):
        model = tiny(dtype=torch.float32)
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        model.save_pretrained(tmp_path / str(seed))
        return Checkpoint(str(tmp_path / str(seed)), step=seed), model

    return made


def states(model, layer=-1):
    """Last token's state of each sequence alone, in float64; the last entry of transformers' is after the norm."""
    with torch.no_grad():
        return np.stack([model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0, -1].numpy()
                         for ids in SEQUENCES]).astype(float)


def traced(checkpoint, tmp_path, measures, **options):
    probe = Probe("made", SEQUENCES, 12, 4)
    return trace(checkpoint, probe, Store(tmp_path / "records"), ranks=(2, 8), measures=measures, device="cpu",
                 progress=False, **options)


def test_rankme_and_alpha_are_the_first_entries_with_their_standard_errors():
    assert list(REGISTRY)[:2] == ["rankme", "alpha"] == list(registry.DEFAULT)
    assert REGISTRY["rankme"].columns["rankme"] == "rankme_stderr"
    assert REGISTRY["alpha"].columns["alpha"] == "alpha_stderr"
    assert Settings().identity == {"layers": ["final"], "ranks": [12, 100], "batch_size": 16}  # as of older records


def test_a_measure_is_one_function_and_gets_what_it_needs(entries, checkpoint, tmp_path):
    @measure(needs=["features", "layers", "unembedding", "reference", "spectrum"],
             columns={"norm": "norm_stderr", "drift": None, "head": None, "first": None, "share": None})
    def seen(features, layers, unembedding, reference, spectrum):
        norms = features.norm(dim=1).double()
        return {"norm": float(norms.mean()), "norm_stderr": float(norms.std() / len(norms) ** 0.5),
                "drift": float((features - reference).norm()), "head": float(unembedding.norm()),
                "first": float(layers[1].norm()), "share": float(spectrum.eigenvalues[0] / spectrum.eigenvalues.sum())}

    (point, model), (reference, other) = checkpoint(1), checkpoint(2)
    table = traced(point, tmp_path, ["rankme", "seen"], layers=[1, "final"], reference=reference)
    assert table.status.tolist() == ["measured"] * 2 and table.layer.tolist() == ["1", "final"]
    final, row = states(model), table.iloc[1]
    norms = np.linalg.norm(final, axis=1)
    expected = {"norm": norms.mean(), "norm_stderr": norms.std(ddof=1) / len(norms) ** 0.5,
                "drift": np.linalg.norm(final - states(other)),
                "head": np.linalg.norm(model.get_output_embeddings().weight.detach().numpy()),
                "first": np.linalg.norm(states(model, 1))}
    assert row[list(expected)].astype(float).to_dict() == pytest.approx(expected, rel=1e-4)  # states in float32
    assert row.share == pytest.approx(np.asarray(row.eigenvalues)[0] / np.sum(row.eigenvalues)) and row.rankme > 1


def test_what_is_measured_and_compared_with_is_part_of_a_records_identity(entries, checkpoint, tmp_path):
    @measure(needs=["features", "reference"], columns={"drift": None})
    def drift(features, reference):
        return {"drift": float((features - reference).norm())}

    (point, model), (first, one), (second, two) = checkpoint(1), checkpoint(2), checkpoint(3)
    plain = traced(point, tmp_path, registry.DEFAULT)
    found = [traced(point, tmp_path, ["rankme", "alpha", "drift"], reference=reference) for reference in
             (first, second, first)]
    assert len({plain.identity[0], *(table.identity[0] for table in found)}) == 3
    assert found[0].drift[0] == found[2].drift[0]
    assert found[0].drift[0] == pytest.approx(np.linalg.norm(states(model) - states(one)), rel=1e-4)
    assert found[1].drift[0] == pytest.approx(np.linalg.norm(states(model) - states(two)), rel=1e-4)
    assert plain.rankme[0] == found[0].rankme[0]  # the same numbers, whatever is asked beside


@pytest.fixture
def size(entries):
    @measure(needs=["reference"], columns={"size": None})
    def size(reference):
        return {"size": len(reference)}


@pytest.mark.parametrize("which", [0, 1, -1])  # the first, the next one on its way, the last
@pytest.mark.parametrize("disk", [None, 1], ids=["", "of_one_checkpoint"])
def test_a_reference_on_the_hub_may_be_one_of_the_checkpoints_that_are_compared_with_it(
        size, hub, tmp_path, which, disk):
    for step in STEPS:
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    points = suite("pythia-14m").checkpoints()
    disk = disk and max(real_hub.files(point.model, point.commit).bytes for point in points)
    table = in_background(traced, points, tmp_path, "size", reference=points[which], disk=disk).result(SOON)
    assert table.status.tolist() == ["measured"] * len(STEPS)
    assert sum(len(downloads(hub, point)) for point in points) <= len(STEPS) + 2  # again as reference, or when it waits


def test_a_reference_is_opened_once_for_all_checkpoints_and_probes(size, checkpoint, tmp_path, monkeypatch):
    opened, open_at = [], references.open_at
    monkeypatch.setattr(references, "open_at", lambda point, *rest: opened.append(point.step) or open_at(point, *rest))
    points, (reference, _) = [checkpoint(seed)[0] for seed in (1, 2)], checkpoint(3)
    probes = [Probe("all", SEQUENCES, 12, 4), Probe("some", SEQUENCES[:30], 12, 4)]
    table = trace(points, probes, Store(tmp_path / "records"), ranks=(2, 8), measures="size", reference=reference,
                  device="cpu", progress=False)
    assert table["size"].tolist() == [len(SEQUENCES), 30] * 2
    assert opened == [3, 3]  # once a probe


def test_a_reference_that_is_missing_or_not_needed_is_an_error(size, checkpoint, tmp_path):
    (point, _), (reference, _) = checkpoint(1), checkpoint(2)
    for measures, given in ((["size"], None), (["rankme"], reference)):
        with pytest.raises(ValueError, match="a reference is needed by measures that compare with one"):
            traced(point, tmp_path, measures, reference=given)
    with pytest.raises(ValueError, match="a reference is needed by measures that compare with one"):
        measure_suites(SuiteSpec("pythia-14m"), "docstrings", tmp_path, None, Settings(measures="size"), Opening(),
                       Means())


def test_a_reference_that_cannot_be_opened_is_a_gap(size, checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    found = traced(checkpoint(1)[0], tmp_path, ["size"], reference=Checkpoint(str(tmp_path / "empty")))
    assert found.status.tolist() == ["failed"] and "empty" in found.reason[0]


def test_what_one_measure_raises_is_a_gap_beside_what_the_others_say(entries, checkpoint, tmp_path):
    states = {"broken": True}

    @measure(needs=["features"], columns={"half": None})
    def careless(features):
        if states["broken"]:
            raise ZeroDivisionError("nothing to divide by")
        return {"half": 0.5}

    (point, _), names = checkpoint(1), ["rankme", "careless", "anisotropy"]
    plain = traced(point, tmp_path, ["rankme", "anisotropy"], layers=[1, "final"])
    found = traced(point, tmp_path, names, layers=[1, "final"])
    assert found[["layer", "status"]].values.tolist() == [[layer, status] for layer in ("1", "final") for status in
                                                          ("measured", "failed")]
    rows, gaps = (found[found.status == status].reset_index() for status in ("measured", "failed"))
    assert gaps.reason.tolist() == [f"ZeroDivisionError: layer {layer}, careless: nothing to divide by" for layer in
                                    ("1", "final")]
    same = ["rankme", "rankme_stderr", "mean_cosine", "eigenvalues"]
    assert gaps[same].isna().all(axis=None) and (rows.reason == "").all() and "half" not in found
    for name in same:
        assert list(map(list, rows[name])) == list(map(list, plain[name])) if name == "eigenvalues" else \
            rows[name].tolist() == plain[name].tolist()
    states["broken"] = False
    mended = traced(point, tmp_path, names, layers=[1, "final"])
    assert mended.status.tolist() == ["measured"] * 2 and mended.half.tolist() == [0.5] * 2


def test_a_measure_that_returns_other_columns_than_it_has_is_a_gap_that_names_it(entries, checkpoint, tmp_path):
    @measure(needs=["features"], columns={"right": "right_stderr"})
    def careless(features):
        return {"right": 1.0}

    found = traced(checkpoint(1)[0], tmp_path, "careless")
    assert found.status.tolist() == ["failed"]
    assert "the measure 'careless' returned right, and was to return right, right_stderr" in found.reason[0]


def test_a_wrong_entry_or_name_is_refused(entries):
    with pytest.raises(ValueError, match="cannot need 'gradients': it may need spectrum, features"):
        measure(needs=["gradients"], columns={"x": None})(lambda gradients: {})
    with pytest.raises(ValueError, match="is taken"):
        measure(needs=["features"], columns={"rankme_stderr": None})(test_a_wrong_entry_or_name_is_refused)
    with pytest.raises(KeyError, match=r"no measure 'rankmee'. Did you mean rankme"):
        chosen("rankmee")
    with pytest.raises(TypeError, match="expected measures, by name"):
        Settings(measures=3)
    assert chosen(["alpha", "alpha"]) == ("alpha",) and needed(["rankme", "alpha"]) == {"spectrum"}
    spectrum = geometry(np.random.default_rng(0).normal(size=(40, 12)), (2, 8))
    assert set(measured(["alpha"], {"spectrum": spectrum})) == set(REGISTRY["alpha"].returned)
