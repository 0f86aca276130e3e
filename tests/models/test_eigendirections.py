"""Models with eigendirections removed or kept.

Trusted: numpy's SVD for the directions; logits computed from the final norm's own output by hand, with the projector
written as a matrix; and identities: removing nothing and keeping everything change nothing, removing everything leaves
the mean alone, removed and kept parts add up.
"""

import numpy as np
import pytest
import torch
from test_hidden_states import CLASSES, SHAPE, VOCABULARY, hooks, tiny
from transformers import GPTNeoXConfig, GPTNeoXModel

from reptrace.models.eigendirections import Projection, directions, projected, random_directions
from reptrace.models.hidden_states import last_token_states

WIDTH = SHAPE["hidden_size"]
# Logits reach about 8 here; each is a sum of 32 products: a few units in the last place of the dtype.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4}


@pytest.fixture
def ids():
    return torch.randint(0, VOCABULARY, (3, 12))


@pytest.fixture
def probe():
    return torch.randint(0, VOCABULARY, (100, 9)).tolist()


def found(model, probe):
    return directions(last_token_states(model, probe)["final"])


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@torch.no_grad()
def head_of(model, states):
    return model.get_output_embeddings()(states)


# Directions


def test_directions_are_the_right_singular_vectors_of_the_centred_features_leading_first(rng):
    features = rng.standard_normal((200, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    features += 10
    mean, vectors = directions(torch.tensor(features, dtype=torch.float32))
    exact = features.astype(np.float32).astype(float)
    expected = np.linalg.svd(exact - exact.mean(0))[2].T
    assert mean.dtype == vectors.dtype == torch.float64
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(np.abs((vectors.numpy() * expected).sum(0)), 1, atol=1e-10)  # up to sign
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-13)


def test_variance_along_the_directions_falls(rng):
    features = torch.tensor(rng.standard_normal((50, 8)))
    mean, vectors = directions(features)
    variances = ((features - mean) @ vectors).var(0)
    assert (variances.diff() < 0).all()


def test_random_directions_are_orthonormal_seeded_and_favour_none():
    drawn = torch.stack([random_directions(8, seed) for seed in range(2000)])
    identity = torch.eye(8, dtype=torch.float64).expand_as(drawn)
    torch.testing.assert_close(drawn.mT @ drawn, identity, rtol=0, atol=1e-13)
    assert torch.equal(random_directions(8, 3), drawn[3]) and not torch.equal(drawn[3], drawn[4])
    # every entry has mean 0 and mean square 1/8: five standard errors, 5 / sqrt(8 * 2000) and 5 * 0.15 / sqrt(2000)
    assert drawn.mean(0).abs().max() < 0.04 and (drawn.square().mean(0) - 1 / 8).abs().max() < 0.02


@pytest.mark.parametrize(("features", "message"), [
    (torch.ones(1, 4), r"M >= 2, got \(1, 4\)"), (torch.ones(4), "shape"), (torch.full((3, 2), torch.nan), "NaN")])
def test_features_that_have_no_directions_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        directions(features)


# Projections


@pytest.mark.parametrize("about", ["mean", "origin"])
@pytest.mark.parametrize("kind", ["remove", "keep"])
@pytest.mark.parametrize("k", [0, 1, 5, WIDTH])
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_those_of_projected_states_at_every_token(name, k, kind, about, ids, probe):
    model = tiny(name)
    mean, vectors = found(model, probe)
    with torch.no_grad():
        states = model.base_model(ids).last_hidden_state
    offset = mean if about == "mean" else torch.zeros(WIDTH, dtype=torch.float64)
    matrix = vectors[:, :k] @ vectors[:, :k].T
    along = (states - offset) @ matrix
    expected = head_of(model, states - along if kind == "remove" else offset + along)
    with projected(model, mean, vectors, k, kind, about) as inside:
        torch.testing.assert_close(logits(inside, ids), expected, rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_removing_all_leaves_the_means_logits_and_keeping_all_changes_nothing(name, dtype, ids, probe):
    model = tiny(name, dtype)
    mean, vectors = found(model, probe)
    before, atol = logits(model, ids), TOLERANCES[dtype]
    with projected(model, mean, vectors, WIDTH):
        expected = head_of(model, mean.to(dtype)).expand_as(before)
        torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=atol)
    with projected(model, mean, vectors, WIDTH, "keep"):
        torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=atol)
    with projected(model, mean, vectors, WIDTH, about="origin"):  # GPT-NeoX, Olmo2 and Llama heads have no bias
        torch.testing.assert_close(logits(model, ids), torch.zeros_like(before), rtol=0, atol=atol)


def test_removed_and_kept_parts_add_up(ids, probe):
    model = tiny()
    mean, vectors = found(model, probe)
    parts = {}
    for about in ("mean", "origin"):
        for kind in ("remove", "keep"):
            with projected(model, mean, vectors, 5, kind, about):
                parts[about, kind] = logits(model, ids)
    whole, at_mean = logits(model, ids), head_of(model, mean)
    torch.testing.assert_close(parts["origin", "remove"] + parts["origin", "keep"], whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(parts["mean", "remove"] + parts["mean", "keep"] - at_mean, whole, rtol=0, atol=1e-11)
    assert not torch.allclose(parts["mean", "keep"], parts["origin", "keep"])


def test_states_of_a_bfloat16_model_are_projected_in_float32_and_rounded_once(ids, probe):
    model, received = tiny(dtype=torch.bfloat16), []
    mean, vectors = found(model, probe)
    with torch.no_grad():
        states = model.base_model(ids).last_hidden_state.double()
    expected = states - (states - mean) @ vectors[:, :5] @ vectors[:, :5].T
    with projected(model, mean, vectors, 5):
        handle = model.get_output_embeddings().register_forward_hook(lambda module, args, out: received.append(args[0]))
        logits(model, ids)
        handle.remove()
    # rounding to 8 significant bits is off by 2**-8 of the value at most, float32 by 1e-7 of the states' 8
    torch.testing.assert_close(received[0].double(), expected, rtol=2**-8, atol=2e-6)


def test_generation_uses_the_projected_states(probe):
    model = tiny("GPTNeoX")
    mean, vectors = found(model, probe)
    with projected(model, mean, vectors, WIDTH):  # every token gets the mean's logits: the same word again and again
        out = model.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), max_new_tokens=4,
                             do_sample=False, eos_token_id=None)
    assert out[0, 3:].unique().tolist() == [int(head_of(model, mean).argmax())]


def test_the_states_that_hidden_states_reads_stay_as_they_are(probe):
    model = tiny()
    before = last_token_states(model, probe)["final"]
    with projected(model, *directions(before), WIDTH):
        assert torch.equal(last_token_states(model, probe)["final"], before)


# Undone


def test_nothing_is_left_on_the_model_also_after_an_exception(ids, probe):
    model = tiny()
    mean, vectors = found(model, probe)
    before = logits(model, ids)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), projected(model, mean, vectors, 5):
        assert hooks(model) == 1 and not torch.equal(logits(model, ids), before)
        raise KeyError
    assert hooks(model) == 0 and torch.equal(logits(model, ids), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_one_inside_another_composes_and_each_undoes_itself(ids, probe):
    model = tiny()
    mean, vectors = found(model, probe)
    with projected(model, mean, vectors, 5):
        five = logits(model, ids)
        with projected(model, mean, vectors[:, 5:], 3):
            both = logits(model, ids)
        assert torch.equal(logits(model, ids), five)
    with projected(model, mean, vectors, 8):
        torch.testing.assert_close(logits(model, ids), both, rtol=0, atol=1e-11)


def test_gradients_flow_through_a_projection(ids, probe):
    model = tiny()
    with torch.inference_mode():
        mean, vectors = found(model, probe)
    with projected(model, mean.clone(), vectors.clone(), 5):
        model(ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


# By name


def test_a_projection_says_what_it_does_and_does_it(ids, probe):
    model = tiny()
    mean, vectors = found(model, probe)
    for projection, columns in ((Projection(3, "keep", "origin"), vectors),
                                (Projection(3, "keep", "origin", "random", seed=7), random_directions(WIDTH, 7))):
        with projected(model, mean, columns, 3, "keep", "origin"):
            expected = logits(model, ids)
        with projection.applied(model, mean, vectors):
            assert torch.equal(logits(model, ids), expected)


# Bad input


@pytest.mark.parametrize(("change", "message"), [
    ({"k": -1}, "k must lie between 0 and the number of directions, 32, got -1"), ({"k": WIDTH + 1}, "32, got 33"),
    ({"kind": "drop"}, "kind must be one of .*'drop'"), ({"about": "median"}, "about one of .*'median'"),
    ({"mean": torch.zeros(8), "vectors": torch.eye(8)}, r"width is 32; .*got \(8,\) and \(8, 8\): of another model")])
def test_bad_input_is_refused_and_leaves_no_hook(change, message, probe):
    model = tiny()
    mean, vectors = found(model, probe)
    arguments = {"mean": mean, "vectors": vectors, "k": 5, **change}
    with pytest.raises(ValueError, match=message), projected(model, **arguments):
        pass
    assert hooks(model) == 0


def test_a_model_without_an_lm_head_is_refused(probe):
    decoder = GPTNeoXModel(GPTNeoXConfig(**SHAPE))
    with pytest.raises(TypeError, match="GPTNeoXModel has no LM head"), projected(decoder, *found(decoder, probe), 5):
        pass
    with pytest.raises(ValueError, match="chosen must be one of"):
        Projection(5, chosen="best")
    with pytest.raises(ValueError, match="kind must be one of"):
        Projection(5, kind="drop")
