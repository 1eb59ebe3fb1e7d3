"""Covariance, the order of V, gradients of the chain from the map to the vector."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.pooling.covariance import (
    CovarianceVector,
    Gram,
    ScaledVector,
    SymmetricVector,
    centred,
    triu_indices,
    vector_length,
)
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, gradient, relative_error


def symmetric(d: int, seed: int = 0) -> np.ndarray:
    c = np.random.default_rng(seed).standard_normal((2, d, d))
    return (c + c.transpose(0, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("d", [1, 2, 3, 8, 33])
def test_order_of_v(d: int, mode: str) -> None:
    c = np.arange(2 * d * d, dtype=np.float32).reshape(2, d, d)
    rows, cols = triu_indices(d)
    assert rows.size == vector_length(d)
    out = SymmetricVector(d)(ms.Tensor(c)).asnumpy()
    np.testing.assert_array_equal(out, reference.triu(c))
    np.testing.assert_array_equal(out, c[:, rows, cols])


@pytest.mark.parametrize("d", [1, 2, 8, 33])
def test_adjoint_of_v(d: int, mode: str) -> None:
    """The cotangent goes to the upper triangle only, and is then made symmetric."""
    rows, cols = triu_indices(d)
    g = np.random.default_rng(0).standard_normal((2, rows.size)).astype(np.float32)
    upper = np.zeros((2, d, d), np.float32)
    upper[:, rows, cols] = g
    found = gradient(SymmetricVector(d), symmetric(d), g)
    np.testing.assert_allclose(found, (upper + upper.transpose(0, 2, 1)) / 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient(SymmetricVector(d, doubled=True), symmetric(d), g), 2 * found)
    e = symmetric(d, 1)  # <G, dC> for a symmetric change dC
    assert (found * e).sum() == pytest.approx((g * reference.triu(e)).sum(), rel=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 7, 1, 1), (3, 2, 5, 4)])
def test_covariance(shape: tuple, mode: str) -> None:
    x = features(shape)
    a, mean = centred(ms.Tensor(x))
    np.testing.assert_allclose(mean.asnumpy(), x.mean((2, 3)), rtol=1e-5)
    expected = reference.covariance(x)
    found = Gram()(a).asnumpy() / (shape[2] * shape[3])
    np.testing.assert_allclose(found, expected, atol=1e-6 * max(1, expected.max()))


def test_gram_gradient_of_symmetric_cotangents(mode: str) -> None:
    a, g = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32), symmetric(3)
    assert relative_error(gradient(Gram(), a, g), 2 * g @ a) < 1e-6
    assert relative_error(gradient(Gram(doubled=True), a, g), g @ a) < 1e-6


class Scaled(nn.Cell):
    """Scaled covariance with the scales as a parameter, so that their gradient can be asked for."""

    def __init__(self, s: np.ndarray) -> None:
        super().__init__()
        self.s = ms.Parameter(ms.Tensor(s.astype(np.float32)), name="s")
        self.gram = Gram(doubled=True)
        self.vector = ScaledVector(s.shape[1])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        a, _ = centred(x)
        return self.vector(self.gram(a), self.s) * (1.0 / a.shape[-1])


def test_scaled_vector(mode: str) -> None:
    x = features((2, 6, 4, 4))
    rng = np.random.default_rng(0)
    s, g, v = rng.standard_normal((2, 6)), rng.standard_normal((2, 21)), rng.standard_normal(x.shape)
    s[0, 2] = 0

    def expected(y: np.ndarray, t: np.ndarray) -> np.ndarray:
        return reference.gcp(y.astype(np.float64) * t[:, :, None, None])

    cell = Scaled(s)
    assert relative_error(cell(ms.Tensor(x)), expected(x, s)) < 1e-6
    dx, dw = reference.gradients(cell, x, g)
    assert (dx * v).sum() == pytest.approx(directional_derivative(lambda y: expected(y, s), x, g, v), rel=1e-4)
    for i in range(6):
        unit = np.eye(6)[[i, i]]
        derivative = directional_derivative(lambda t: expected(x, t), s, g, unit)
        assert (dw["s"] * unit).sum() == pytest.approx(derivative, rel=1e-4, abs=1e-4)


def test_large_mean_does_not_spoil_the_covariance(graph_mode: None) -> None:
    x = features((2, 8, 14, 14)) + np.float32(1000)
    assert relative_error(CovarianceVector(8)(ms.Tensor(x)), reference.gcp(x)) < 1e-4


def test_gradient_sums_to_zero_over_positions(graph_mode: None) -> None:
    x = features((2, 6, 5, 5))
    grad = gradient(CovarianceVector(6), x, np.random.default_rng(0).standard_normal((2, 21)))
    assert np.abs(grad.sum((2, 3))).max() < 1e-5 * np.abs(grad).max() * 25
