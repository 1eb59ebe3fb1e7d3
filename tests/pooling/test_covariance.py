"""Covariance, the order of V, gradients of the chain from the map to the vector."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.pooling.covariance import (
    CovarianceVector,
    Gram,
    GramVector,
    SymmetricVector,
    centred,
    triu_indices,
    vector_length,
)
from tests.pooling import reference
from tests.pooling.reference import features, gradient, relative_error


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


@pytest.mark.parametrize("shape", [(2, 6, 9), (3, 4, 2), (1, 1, 5)])
def test_gram_vector_is_the_chain_of_its_parts(shape: tuple, mode: str) -> None:
    a = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    g = np.random.default_rng(1).standard_normal((shape[0], vector_length(shape[1]))).astype(np.float32)

    class Chain(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.gram, self.vector = Gram(), SymmetricVector(shape[1])

        def construct(self, a: ms.Tensor) -> ms.Tensor:
            return self.vector(self.gram(a)) / shape[2]

    found = GramVector(shape[1])
    assert relative_error(found(ms.Tensor(a)), Chain()(ms.Tensor(a)).asnumpy()) < 1e-6
    assert relative_error(gradient(found, a, g), gradient(Chain(), a, g)) < 1e-6


def test_large_mean_does_not_spoil_the_covariance(graph_mode: None) -> None:
    x = features((2, 8, 14, 14)) + np.float32(1000)
    assert relative_error(CovarianceVector(8)(ms.Tensor(x)), reference.gcp(x)) < 1e-4


def test_gradient_sums_to_zero_over_positions(graph_mode: None) -> None:
    x = features((2, 6, 5, 5))
    grad = gradient(CovarianceVector(6), x, np.random.default_rng(0).standard_normal((2, 21)))
    assert np.abs(grad.sum((2, 3))).max() < 1e-5 * np.abs(grad).max() * 25
