"""MTP: every number of terms, convergence, zero covariances, the gradient as published beside the exact one."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from covpool.pooling import create_pooling
from covpool.pooling.taylor import TaylorRoot
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, relative_error, value_and_gradient


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 7, 9, 10, 16, 30])
def test_terms(terms: int, pynative_mode: None) -> None:
    x = features((2, 8, 6, 6))

    def expected(v: np.ndarray) -> np.ndarray:
        return reference.mtp(v, terms)

    rng = np.random.default_rng(1)
    g, v = rng.standard_normal((2, 36)), rng.standard_normal(x.shape)
    out, grad = value_and_gradient(create_pooling("mtp", 8, terms=terms), x, g)
    assert relative_error(out, expected(x)) < 1e-6
    assert (grad * v).sum() == pytest.approx(directional_derivative(expected, x, g, v, 1e-6), rel=1e-5)


def test_converges_to_the_root(pynative_mode: None) -> None:
    c = reference.covariance(features((2, 8, 6, 6))) + np.eye(8)
    root = TaylorRoot(8, 30)(ms.Tensor(c.astype(np.float32))).asnumpy()
    assert relative_error(root @ root, c) < 1e-4


@pytest.mark.parametrize("gradient", ["exact", "lyapunov"])
def test_zero_covariance_gives_zero_and_no_gradient(gradient: str, pynative_mode: None) -> None:
    x = np.full((2, 6, 4, 4), 3.0, np.float32)
    x[1] = features((1, 6, 4, 4))[0]
    out, grad = value_and_gradient(create_pooling("mtp", 6, gradient=gradient), x, np.ones((2, 21)))
    np.testing.assert_array_equal(out[0], 0.0)
    np.testing.assert_array_equal(grad[0], 0.0)
    assert np.isfinite(grad[1]).all() and np.abs(grad[1]).max() > 0


@pytest.mark.parametrize("gradient", ["exact", "lyapunov"])
def test_scales_as_a_root(gradient: str, pynative_mode: None) -> None:
    """From 1e-12 to 1e12: values grow with the features, gradients stay."""
    x, cell = features((2, 6, 4, 4)), create_pooling("mtp", 6, gradient=gradient)
    g = np.random.default_rng(0).standard_normal((2, 21))
    plain, slope = value_and_gradient(cell, x, g)
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        out, grad = value_and_gradient(cell, (x * scale).astype(np.float32), g)
        assert relative_error(out / scale, plain) < 1e-5
        assert relative_error(grad, slope) < 1e-4


def test_where_eigenvalues_are_large_both_gradients_are_that_of_the_root(pynative_mode: None) -> None:
    """All eigenvalues above 0.2 of the norm: the polynomial is the root there."""
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(np.concatenate([np.ones((16, 1)), rng.standard_normal((16, 4))], 1))[0][:, 1:].T
    x = (4 * np.sqrt([1.0, 1.2, 1.5, 2.0])[:, None] * rows).reshape(1, 4, 4, 4).astype(np.float32)
    g = rng.standard_normal((1, 10))
    _, true = value_and_gradient(create_pooling("mpn", 4), x, g)
    for gradient in ("exact", "lyapunov"):
        assert relative_error(value_and_gradient(create_pooling("mtp", 4, gradient=gradient), x, g)[1], true) < 5e-3
