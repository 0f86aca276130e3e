"""Where descents begin: counts, inputs that are alike, balanced starts, and what is refused.

Trusted: arithmetic by hand, standard errors of a sample covariance, the definition of balance.
"""

import numpy as np
import pytest

from reptrace.theory.starts import alike_inputs, start, zipf_counts
from reptrace.theory.trajectories import measure

COUNTS, WIDTH = (5, 3, 2, 1), 2


def test_zipf_counts_follow_the_power_of_the_rank():
    assert zipf_counts(4, 0, 8) == (2, 2, 2, 2)
    assert zipf_counts(4, 1, 25) == (12, 6, 4, 3)  # 12, 12/2, 12/3, 12/4
    assert zipf_counts(8, 2, 32)[-1] == 1


def test_inputs_alike_within_a_class_have_that_cosine():
    gram = alike_inputs((2, 1), 0.5)
    np.testing.assert_array_equal(gram, [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(alike_inputs((2, 1), 0.5, "all"), 0.5 + 0.5 * np.eye(3))
    for arguments in ((1.0, "class"), (-0.1, "class"), (0.5, "some")):
        with pytest.raises(ValueError, match="the cosine in"):
            alike_inputs((2, 1), *arguments)


def test_features_of_correlated_inputs_start_correlated():
    gram = np.full((4, 4), 0.9) + 0.1 * np.eye(4)
    begun = start((2, 2), 3, scale=1.0, seeds=2000, gram=gram)
    found = np.einsum("sid,sjd->ij", begun.features, begun.features) / 6000
    np.testing.assert_allclose(found, gram, atol=5 * np.sqrt(2 / 6000))  # five standard errors


@pytest.mark.parametrize(("counts", "width"), [(COUNTS, 2), (COUNTS, 4), (COUNTS, 6), ((2, 2), 2)])
def test_a_balanced_start_is_balanced_and_aligned_to_rounding(counts, width):
    begun = start(counts, width, scale=0.7, balanced=True, seeds=5)
    features, classifier = begun.features, begun.classifier
    imbalance = features.swapaxes(-1, -2) @ features - classifier @ classifier.swapaxes(-1, -2)
    assert np.abs(imbalance).max() < 1e-14 * 20  # some twenty sums of order one
    found = measure(features, classifier, begun.labels)
    r = min(width, len(counts))
    np.testing.assert_allclose(found["alignment"][:, :r], 1, rtol=1e-10)
    np.testing.assert_allclose(found["feature_values"][:, :r], found["classifier_values"], rtol=1e-10)


@pytest.mark.parametrize(("change", "said"), [
    ({"counts": (3, -1)}, "positive whole numbers"), ({"counts": (3, 0)}, "positive whole numbers"),
    ({"counts": (3, 1.5)}, "positive whole numbers"), ({"counts": (3,)}, "at least two classes"),
    ({"counts": ()}, "at least two classes"), ({"width": 0}, "at least 1, got 0"), ({"width": 1.5}, "whole number"),
    ({"scale": 0.0}, "scale must be positive"), ({"scale": float("nan")}, "scale must be positive"),
    ({"seeds": 0}, "seeds must be"), ({"seeds": [-1]}, "seeds must be"), ({"gram": np.eye(2)}, "positive definite"),
    ({"gram": np.ones((3, 3)), "counts": (2, 1)}, "positive definite"),
    ({"balanced": True, "gram": np.eye(11)}, "balanced start needs"),
    ({"balanced": True, "counts": (1, 1), "width": 2, "gram": np.eye(2)}, "balanced start needs")])
def test_bad_starts_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        start(**{"counts": COUNTS, "width": WIDTH, **change})
