"""Covariance, the order of V, its adjoint."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.pooling.covariance import Covariance, Gram, TriuVector, triu_indices, vector_length
from tests.pooling import reference
from tests.pooling.reference import features, gradient, relative_error


@pytest.mark.parametrize("d", [1, 2, 3, 8, 33])
def test_order_of_v_and_its_adjoint(d: int, mode: str) -> None:
    c = np.arange(2 * d * d, dtype=np.float32).reshape(2, d, d)
    vector = TriuVector(d)
    np.testing.assert_array_equal(vector(ms.Tensor(c)).asnumpy(), reference.triu(c))
    rows, cols = triu_indices(d)
    assert rows.size == vector_length(d)
    g = np.random.default_rng(0).standard_normal((2, rows.size)).astype(np.float32)
    expected = np.zeros_like(c)
    expected[:, rows, cols] = g
    np.testing.assert_array_equal(gradient(vector, c, g), expected)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 7, 1, 1), (3, 2, 5, 4)])
def test_covariance(shape: tuple, mode: str) -> None:
    x = features(shape)
    expected = reference.covariance(x)
    np.testing.assert_allclose(Covariance()(ms.Tensor(x)).asnumpy(), expected, atol=1e-6 * max(1, expected.max()))


def test_gram_gradient_of_any_cotangent(mode: str) -> None:
    rng = np.random.default_rng(0)
    a, g = rng.standard_normal((2, 3, 5)).astype(np.float32), rng.standard_normal((2, 3, 3))
    assert relative_error(gradient(Gram(), a, g), (g + g.transpose(0, 2, 1)) @ a) < 1e-6


def test_large_mean_does_not_spoil_the_covariance(graph_mode: None) -> None:
    x = features((2, 8, 14, 14)) + np.float32(1000)
    assert relative_error(Covariance()(ms.Tensor(x)), reference.covariance(x)) < 1e-4


def test_gradient_sums_to_zero_over_positions(graph_mode: None) -> None:
    class Vector(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.covariance = Covariance()
            self.vector = TriuVector(6)

        def construct(self, x: ms.Tensor) -> ms.Tensor:
            return self.vector(self.covariance(x))

    x = features((2, 6, 5, 5))
    grad = gradient(Vector(), x, np.random.default_rng(0).standard_normal((2, 21)))
    assert np.abs(grad.sum((2, 3))).max() < 1e-5 * np.abs(grad).max() * 25
