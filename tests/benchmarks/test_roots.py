"""The references of benchmarks/roots.py, and its counts of products against the operators that are there."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.roots import exact, products, relative, weighted
from tests.pooling.reference import directional_derivative, features, mpn


@pytest.mark.parametrize("shape", [(1, 8, 4, 5), (1, 8, 2, 3)])
def test_exact_root_and_gradient(shape: tuple[int, ...]) -> None:
    x, rng = features(shape), np.random.default_rng(1)
    g, v = rng.standard_normal((1, 36)), rng.standard_normal(shape)
    root, slope = exact(x, g)
    assert relative(root, mpn(x)[0]) < 1e-9
    assert (slope * v).sum() == pytest.approx(directional_derivative(mpn, x, g, v, 1e-6), rel=1e-5)


def test_weighted_norm_is_that_of_the_matrix() -> None:
    matrix = np.array([[1.0, 2.0], [2.0, -3.0]])
    assert np.linalg.norm(weighted(matrix[np.triu_indices(2)], 2)) == pytest.approx(np.linalg.norm(matrix))


def test_products_by_hand() -> None:
    assert products("fast_mpn", {"iterations": 5}) == (12, 24)
    assert products("fast_mpn", {"iterations": 1}) == (1, 2)
    assert products("mtp", {"terms": 10, "gradient": "exact"}) == (5, 10)
    assert products("mtp", {"terms": 3, "gradient": "lyapunov"}) == (2, 42)
