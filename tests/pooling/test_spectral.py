"""Functions of covariances: solvers, divided differences, repeated and zero eigenvalues, the exponent of APN."""

from __future__ import annotations

import itertools
from typing import Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.pooling import create_pooling
from covpool.pooling.covariance import centred
from covpool.pooling.matrix_functions import AdaptiveExponent
from covpool.pooling.spectral import CovarianceEigen, Power, ScaledLog, ShiftedLog, SpectralFunction
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, gradient, relative_error, value_and_gradient

FUNCTIONS = {
    "power 0.5": (Power, 0.5, lambda lam: lam**0.5),
    "power 0.2": (Power, 0.2, lambda lam: lam**0.2),
    "power 1": (Power, 1.0, lambda lam: lam),
    "log": (ShiftedLog, 1e-3, lambda lam: np.log(lam + 1e-3)),
    "scaled log": (ScaledLog, 1e-3, lambda lam: 1e-3 * np.log1p(lam / 1e-3)),
}


class MatrixFunction(nn.Cell):
    """f of the covariance as a whole matrix."""

    def __init__(self, function: SpectralFunction, p: float, solver: str = "eigh") -> None:
        super().__init__()
        self.function = function
        self.eigen = CovarianceEigen(solver)
        self.p = ms.Tensor([[p]], ms.float32)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        lam, u = self.eigen(x)
        a, _ = centred(x)
        return self.function(a, lam, u, self.p)


def map_of_spectrum(lam: np.ndarray, positions: int, seed: int = 0) -> np.ndarray:
    """A `(1, d, 1, positions)` map whose covariance has the given eigenvalues exactly (to float32)."""
    rng = np.random.default_rng(seed)
    d = lam.size
    rows = np.linalg.qr(np.concatenate([np.ones((positions, 1)), rng.standard_normal((positions, d))], 1))[0][:, 1:].T
    u = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return ((u * np.sqrt(lam * positions)) @ rows).reshape(1, d, 1, positions).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 8, 5, 5), (3, 16, 3, 3), (2, 6, 1, 1)])
@pytest.mark.parametrize("solver", ["eigh", "svd"])
def test_solvers(solver: str, shape: Tuple[int, ...], mode: str) -> None:
    x = features(shape)
    lam, u = (t.asnumpy() for t in CovarianceEigen(solver)(ms.Tensor(x)))
    c = reference.covariance(x)
    scale = max(1.0, np.abs(c).max())
    np.testing.assert_allclose(np.sort(lam), np.maximum(np.linalg.eigvalsh(c), 0), atol=1e-6 * scale)
    np.testing.assert_allclose((u * lam[:, None, :]) @ u.transpose(0, 2, 1), c, atol=3e-6 * scale)
    np.testing.assert_allclose(u.transpose(0, 2, 1) @ u, np.broadcast_to(np.eye(shape[1]), c.shape), atol=1e-5)
    rank = min(shape[1], shape[2] * shape[3] - 1)
    np.testing.assert_array_equal((lam > 0).sum(1), rank)


@pytest.mark.parametrize("name", ["mpn", "logm", "ilogm", "apn", "ibcnn", "ibcnn_lt"])
def test_every_spectral_pooling_with_either_solver(name: str, pynative_mode: None) -> None:
    x, g = features((2, 6, 5, 5)), np.random.default_rng(0).standard_normal((2, 21))
    out, grad = value_and_gradient(create_pooling(name, 6, solver="eigh"), x, g)
    other, other_grad = value_and_gradient(create_pooling(name, 6, solver="svd"), x, g)
    assert relative_error(other, out) < 1e-5
    assert relative_error(other_grad, grad) < 1e-3


SPECTRA = {
    "distinct": [0.5, 1.0, 2.0, 4.0, 8.0],
    "repeated": [1.0, 1.0, 1.0, 3.0, 3.0],
    "nearly repeated": [1.0, 1.0 + 1e-6, 1.0 + 1e-4, 1.0 + 5e-3, 1.0 + 2e-2],
    "all equal": [2.0] * 5,
    "zeros": [0.0, 0.0, 1.0, 1.0, 4.0],
    "wide": [1e-3, 1e-1, 1.0, 10.0, 100.0],
    "one": [0.0, 0.0, 0.0, 0.0, 3.0],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_value_and_gradient_of_spectra(function: tuple, graph_mode: None) -> None:
    cell_class, p, f = function
    x = np.concatenate([map_of_spectrum(np.array(spectrum), 12) for spectrum in SPECTRA.values()])

    def expected(v: np.ndarray) -> np.ndarray:
        return reference.spectral(reference.covariance(v), lambda lam: f(reference.cut(lam)))

    value = expected(x)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(value.shape)
    g = g + g.transpose(0, 2, 1)
    v = rng.standard_normal(x.shape)
    out, grad = value_and_gradient(MatrixFunction(cell_class(), p), x, g)
    for i, name in enumerate(SPECTRA):
        one = slice(i, i + 1)
        assert relative_error(out[one], value[one]) < 1e-5, name
        derivative = directional_derivative(expected, x[one], g[one], v[one])
        scale = np.linalg.norm(grad[i]) * np.linalg.norm(v[i]) / np.sqrt(v[i].size)
        assert abs((grad[i] * v[i]).sum() - derivative) < 2e-4 * max(scale, abs(derivative)), name


def test_divided_differences_are_accurate_at_every_distance(graph_mode: None) -> None:
    """The quotient and the mean derivative both stay within 3e-5, on either side of the switch between them."""
    base = 2.0
    distances = np.concatenate([[0.0], np.logspace(-7, 1, 200)])
    lam = np.concatenate([[base], base * (1 + distances)]).astype(np.float32)
    for cell, p, exact in (
        (Power(), 0.5, lambda a, b: 1 / (np.sqrt(a) + np.sqrt(b))),
        (ShiftedLog(), 0.1, lambda a, b: np.log1p((b - a) / (a + 0.1)) / np.where(b == a, 1, b - a)),
    ):
        k = cell.divided_differences(ms.Tensor(lam[None]), ms.Tensor([[p]], ms.float32)).asnumpy()[0]
        assert np.isfinite(k).all()
        a, b = lam[0].astype(np.float64), lam[2:].astype(np.float64)
        distinct = b > a
        assert np.abs(k[0, 2:][distinct] / exact(a, b[distinct]) - 1).max() < 3e-5
        np.testing.assert_allclose(k, k.T, rtol=1e-6)
        slope = cell.derivative(ms.Tensor(lam[None]), ms.Tensor([[p]], ms.float32)).asnumpy()[0]
        np.testing.assert_allclose(np.diag(k), slope, rtol=1e-6)


def test_power_one_is_the_covariance(graph_mode: None) -> None:
    x = features((2, 6, 3, 2))
    cell, plain = create_pooling("mpn", 6, alpha=1.0), create_pooling("gcp", 6)
    g = np.random.default_rng(0).standard_normal((2, 21))
    (out, grad), (plain_out, plain_grad) = value_and_gradient(cell, x, g), value_and_gradient(plain, x, g)
    assert relative_error(out, plain_out) < 1e-6
    assert relative_error(grad, plain_grad) < 1e-5


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7])
def test_mpn_of_other_powers(alpha: float, graph_mode: None) -> None:
    x = features((2, 6, 5, 5))
    assert relative_error(create_pooling("mpn", 6, alpha=alpha)(ms.Tensor(x)), reference.mpn(x, alpha)) < 1e-5


def test_descent_along_the_gradient_at_deficient_rank(graph_mode: None) -> None:
    """The finite choice at zero eigenvalues is a useful one: a small step against it lowers the function."""
    x = features((2, 16, 2, 3))
    cell = create_pooling("mpn", 16)
    target = np.random.default_rng(0).standard_normal((2, 136))
    grad = gradient(cell, x, target)
    before = (reference.mpn(x) * target).sum()
    after = (reference.mpn(x - 1e-4 * grad) * target).sum()
    assert after - before == pytest.approx(-1e-4 * (grad**2).sum(), rel=0.2)


def spread_features(shape: Tuple[int, ...]) -> np.ndarray:
    """Channels of very different size: the trade-off of APN is then met inside the interval."""
    return features(shape) * np.geomspace(0.05, 5, shape[1], dtype=np.float32).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("shape", [(4, 16, 6, 6), (4, 64, 10, 10), (4, 64, 5, 5)])
def test_alpha_against_brute_force(shape: Tuple[int, ...], pynative_mode: None) -> None:
    x = spread_features(shape)
    lam, _ = CovarianceEigen()(ms.Tensor(x))
    for sign, tau in itertools.product((1.0, -1.0), (1.0, 4.0, 5.0, 30.0)):
        alpha = AdaptiveExponent(tau, 0.1, 0.1, sign)(lam).asnumpy()
        assert alpha.shape == (shape[0], 1)
        expected = reference.apn_alpha(x, tau, sign)
        np.testing.assert_allclose(alpha.ravel(), expected, atol=1e-3, err_msg=f"tau {tau}, sign {sign}")


def test_objective_of_apn_chooses_the_extremum(graph_mode: None) -> None:
    x = spread_features((4, 16, 6, 6))
    for objective, sign in (("maximum", 1.0), ("minimum", -1.0)):
        cell = create_pooling("apn", 16, tau=5.0, objective=objective)
        alpha = cell.function_parameter(cell.eigen(ms.Tensor(x))[0]).asnumpy().ravel()
        np.testing.assert_allclose(alpha, reference.apn_alpha(x, 5.0, sign), atol=1e-3)


def test_alpha_lies_inside_for_some() -> None:
    """The test above would say little if every alpha were an end of the interval."""
    alpha = reference.apn_alpha(spread_features((4, 64, 10, 10)), 5.0)
    assert ((alpha > 0.11) & (alpha < 0.99)).all()


def test_apn_at_its_alpha(graph_mode: None) -> None:
    x = spread_features((4, 64, 10, 10))
    cell = create_pooling("apn", 64, tau=5.0)
    alpha = reference.apn_alpha(x, 5.0)
    rng = np.random.default_rng(0)
    g, v = rng.standard_normal((4, 2080)), rng.standard_normal(x.shape)
    derivative = directional_derivative(lambda a: reference.apn_at(a, alpha), x, g, v)
    out, grad = value_and_gradient(cell, x, g)
    assert relative_error(out, reference.apn_at(x, alpha)) < 2e-3
    assert (grad * v).sum() == pytest.approx(derivative, rel=1e-2)


def test_alpha_of_a_zero_covariance(graph_mode: None) -> None:
    cell = create_pooling("apn", 5)
    lam, _ = cell.eigen(ms.Tensor(np.ones((2, 5, 3, 3), np.float32)))
    alpha = cell.function_parameter(lam).asnumpy()
    assert ((alpha >= 0.1) & (alpha <= 1)).all()
