"""Newton-Schulz: every number of iterations, zero and rank-deficient covariances, convergence."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from covpool.pooling import create_pooling
from covpool.pooling.matrix_powers import NewtonSchulz
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, relative_error, value_and_gradient


@pytest.mark.parametrize("iterations", range(1, 11))
def test_iterations(iterations: int, graph_mode: None) -> None:
    x = features((2, 8, 6, 6))
    cell = create_pooling("fast_mpn", 8, iterations=iterations)

    def expected(v: np.ndarray) -> np.ndarray:
        return reference.fast_mpn(v, iterations)

    rng = np.random.default_rng(1)
    g, v = rng.standard_normal((2, 36)), rng.standard_normal(x.shape)
    out, grad = value_and_gradient(cell, x, g)
    assert relative_error(out, expected(x)) < 1e-5
    derivative = directional_derivative(expected, x, g, v)
    assert (grad * v).sum() == pytest.approx(derivative, rel=1e-4)


def test_converges_to_the_root(graph_mode: None) -> None:
    c = reference.covariance(features((2, 8, 6, 6)))
    c += 0.1 * np.eye(8)
    y, factor = NewtonSchulz(8, 10)(ms.Tensor(c.astype(np.float32)))
    root = (y * factor.expand_dims(-1)).asnumpy()
    assert relative_error(root @ root, c) < 1e-5


def test_zero_covariance_gives_zero_and_no_gradient(mode: str) -> None:
    x = np.full((2, 6, 4, 4), 3.0, np.float32)
    x[1] = features((1, 6, 4, 4))[0]
    out, grad = value_and_gradient(create_pooling("fast_mpn", 6), x, np.ones((2, 21)))
    np.testing.assert_array_equal(out[0], 0.0)
    np.testing.assert_array_equal(grad[0], 0.0)
    assert np.isfinite(grad[1]).all() and np.abs(grad[1]).max() > 0


def test_scales_as_a_root(graph_mode: None) -> None:
    x, cell = features((2, 6, 4, 4)), create_pooling("fast_mpn", 6)
    plain = cell(ms.Tensor(x)).asnumpy()
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        assert relative_error(cell(ms.Tensor((x * scale).astype(np.float32))).asnumpy() / scale, plain) < 1e-4
