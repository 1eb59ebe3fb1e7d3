"""Signed root with unit length: exact zeros, zero vectors, gradients."""

from __future__ import annotations

import numpy as np

from covpool.pooling.element_wise import SignedRootL2
from tests.pooling.reference import directional_derivative, gradient, l2, relative_error, ssqrt, value_and_gradient


def test_signed_root_l2(mode: str) -> None:
    rng = np.random.default_rng(0)
    v, g = rng.standard_normal((3, 10)).astype(np.float32), rng.standard_normal((3, 10))
    v[1] *= 1e6
    v[2] *= 1e-6
    cell = SignedRootL2()
    out, grad = value_and_gradient(cell, v, g)
    assert relative_error(out, l2(ssqrt(v.astype(np.float64)))) < 1e-6
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1.0, rtol=1e-6)
    for i in range(3):
        d = np.zeros_like(v, np.float64)
        d[i] = v[i] * rng.standard_normal(10)
        expected = directional_derivative(lambda a: l2(ssqrt(a)), v, g, d)
        assert abs((grad * d).sum() - expected) < 1e-4 * max(abs(expected), np.linalg.norm(grad[i]) * np.linalg.norm(d))


def test_zero_entries_have_no_gradient_and_others_keep_theirs(mode: str) -> None:
    v = np.array([[0.0, 1.0, -4.0, 0.0], [0.0] * 4, [1e-30, 1.0, 2.0, -1e-38]], np.float32)
    g = np.ones((3, 4))
    cell = SignedRootL2()
    out, grad = value_and_gradient(cell, v, g)
    assert np.isfinite(out).all()
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(out[1], 0.0)
    np.testing.assert_array_equal(grad[1], 0.0)
    np.testing.assert_array_equal(grad[0, [0, 3]], 0.0)
    reduced = gradient(cell, v[:1, 1:3], g[:1, 1:3])
    np.testing.assert_allclose(grad[:1, 1:3], reduced, rtol=1e-6)
