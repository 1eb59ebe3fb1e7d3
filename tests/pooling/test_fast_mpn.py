"""Newton-Schulz: every number of iterations, zero and rank-deficient covariances, convergence."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from covpool.pooling import create_pooling
from covpool.pooling.newton_schulz import NewtonSchulz
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, gradient, relative_error


@pytest.mark.parametrize("iterations", range(1, 11))
def test_iterations(iterations: int, graph_mode: None) -> None:
    x = features((2, 8, 6, 6))
    cell = create_pooling("fast_mpn", 8, iterations=iterations)

    def expected(v: np.ndarray) -> np.ndarray:
        return reference.fast_mpn(v, iterations)

    assert relative_error(cell(ms.Tensor(x)), expected(x)) < 1e-5
    rng = np.random.default_rng(1)
    g, v = rng.standard_normal((2, 36)), rng.standard_normal(x.shape)
    derivative = directional_derivative(expected, x, g, v)
    assert (gradient(cell, x, g) * v).sum() == pytest.approx(derivative, rel=1e-4)


def test_converges_to_the_root(graph_mode: None) -> None:
    c = reference.covariance(features((2, 8, 6, 6)))
    c += 0.1 * np.eye(8)
    y, factor = NewtonSchulz(8, 10)(ms.Tensor(c.astype(np.float32)))
    root = (y * factor.expand_dims(-1)).asnumpy()
    assert relative_error(root @ root, c) < 1e-5


def test_zero_covariance_gives_zero_and_no_gradient(mode: str) -> None:
    x = np.full((2, 6, 4, 4), 3.0, np.float32)
    x[1] = features((1, 6, 4, 4))[0]
    cell = create_pooling("fast_mpn", 6)
    out = cell(ms.Tensor(x)).asnumpy()
    grad = gradient(cell, x, np.ones(out.shape))
    np.testing.assert_array_equal(out[0], 0.0)
    np.testing.assert_array_equal(grad[0], 0.0)
    assert np.isfinite(grad[1]).all() and np.abs(grad[1]).max() > 0


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scales_as_a_root(scale: float, graph_mode: None) -> None:
    x = features((2, 6, 4, 4))
    cell = create_pooling("fast_mpn", 6)
    scaled = cell(ms.Tensor((x * scale).astype(np.float32))).asnumpy() / scale
    assert relative_error(scaled, cell(ms.Tensor(x)).asnumpy()) < 1e-4
