"""DropCov in training: omega, rho, masks, gradients; evaluation without a trace of it."""

from __future__ import annotations

from typing import Any, Dict

import mindspore as ms
import numpy as np
import pytest

from covpool.pooling import create_pooling
from covpool.pooling.dropcov import DropCov
from tests.pooling import reference
from tests.pooling.reference import directional_derivative, features, gradients, relative_error

KERNEL = np.array([0.3, -0.2, 0.5])


def make(channels: int, **args: Any) -> DropCov:
    cell = create_pooling("dropcov", channels, **args)
    cell.conv.weight.set_data(ms.Tensor(KERNEL.reshape(1, 1, 3).astype(np.float32)))
    return cell.set_train()


def importance(x: np.ndarray, gate: str, kernel: np.ndarray = KERNEL) -> np.ndarray:
    mean = np.pad(x.astype(np.float64).mean((2, 3)), ((0, 0), (1, 1)))
    v = kernel[0] * mean[:, :-2] + kernel[1] * mean[:, 1:-1] + kernel[2] * mean[:, 2:]
    if gate == "sigmoid":
        return 1 / (1 + np.exp(-v))
    e = np.exp(v - v.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def rate(x: np.ndarray, omega: np.ndarray, decay: float) -> float:
    pi = reference.covariance(x).sum(-1)
    cos = (omega * pi).sum(1) / (np.linalg.norm(omega, axis=1) * np.linalg.norm(pi, axis=1))
    return float(np.clip(1 - decay / np.log2(x.shape[1]) * cos.mean(), 0, 1))


def masks(seed: int, counter: int, n: int, d: int) -> np.ndarray:
    """The generator's numbers for one step."""
    cell = create_pooling("dropcov", d, seed=seed)
    cell.dropout.counter.set_data(ms.Tensor(counter, ms.int32))
    return cell.dropout(n, d).asnumpy()


@pytest.mark.parametrize(
    ("correction", "variances", "covariances"), [("none", 2.0, 1.0), ("diagonal", 1.0, 1.0), ("sqrt", 1.0, 0.5)]
)
def test_expectation_over_the_masks(correction: str, variances: float, covariances: float, graph_mode: None) -> None:
    """Of one image with 20 000 masks at a rate of 0.5, against the covariance."""
    x = np.repeat(features((1, 4, 3, 3)), 20_000, 0)
    found = make(4, rescale=False, rate=0.5, correction=correction)(ms.Tensor(x)).asnumpy().astype(np.float64).mean(0)
    rows, columns = np.triu_indices(4)
    c = reference.covariance(x[:1])[0]
    expected = c[rows, columns] * np.where(rows == columns, variances, covariances)
    spread = np.sqrt(c[rows, rows] * c[columns, columns]) * 2 / np.sqrt(20_000)  # of the mean, at most
    assert (np.abs(found - expected) < 6 * spread).all(), (found, expected)


@pytest.mark.parametrize("correction", ["diagonal", "sqrt"])
def test_adaptive_rate_with_a_correction(correction: str, mode: str) -> None:
    """In both modes: finite, and gradients flow."""
    cell, x = make(8, decay=2.5, correction=correction), features((3, 8, 3, 3))
    dx, by_name = gradients(cell, x, np.ones((3, 36)))
    assert np.isfinite(dx).all() and np.abs(dx).max() > 0 and np.isfinite(by_name["conv.weight"]).all()


@pytest.mark.parametrize(("gate", "rescale"), [("softmax", True), ("sigmoid", False)])
def test_training_value_in_graph_mode(gate: str, rescale: bool, graph_mode: None) -> None:
    check_training_value(gate, rescale, 2.5)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("decay", [2.5, 1.5])
def test_training_value(gate: str, rescale: bool, decay: float, pynative_mode: None) -> None:
    check_training_value(gate, rescale, decay)


def check_training_value(gate: str, rescale: bool, decay: float) -> None:
    x = features((3, 8, 4, 4))
    cell = make(8, gate=gate, rescale=rescale, decay=decay, seed=7)
    omega = importance(x, gate)
    scaled = x * (1 + omega[:, :, None, None]) if rescale else x
    rho = rate(scaled, omega, decay)
    assert 0 < rho < 0.95
    for step in range(3):
        keep = masks(7, step, 3, 8) >= rho
        expected = reference.gcp(scaled * keep[:, :, None, None] / (1 - rho))
        np.testing.assert_allclose(cell(ms.Tensor(x)).asnumpy(), expected, atol=2e-5 * max(1, np.abs(expected).max()))
    assert int(cell.dropout.counter.asnumpy()) == 3


@pytest.mark.parametrize("d", [64, 256])
def test_training_value_of_many_channels(d: int, graph_mode: None) -> None:
    """At the widths of the papers the rate depends on d through log2(d)."""
    x = features((4, d, 7, 7))
    cell = make(d, decay=2.5, seed=7)
    omega = importance(x, "softmax")
    scaled = x * (1 + omega[:, :, None, None])
    rho = rate(scaled, omega, 2.5)
    assert 0 < rho < 0.95
    keep = masks(7, 0, 4, d) >= rho
    expected = reference.gcp(scaled * keep[:, :, None, None] / (1 - rho))
    np.testing.assert_allclose(cell(ms.Tensor(x)).asnumpy(), expected, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_training_gradients(gate: str, mode: str) -> None:
    """Of the map and of the kernel, at fixed masks and rho (which takes no gradient)."""
    x = features((3, 8, 4, 4))
    cell = make(8, gate=gate, decay=2.0, seed=3)
    omega = importance(x, gate)
    rho = rate(x * (1 + omega[:, :, None, None]), omega, 2.0)
    factor = (masks(3, 0, 3, 8) >= rho)[:, :, None, None] / (1 - rho)

    def pooled(v: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        return reference.gcp(v * (1 + importance(v, gate, kernel)[:, :, None, None]) * factor)

    rng = np.random.default_rng(0)
    g, v, w = rng.standard_normal((3, 36)), rng.standard_normal(x.shape), rng.standard_normal(3)
    dx, dw = gradients(cell, x, g)
    expected = directional_derivative(lambda a: pooled(a, KERNEL), x, g, v)
    assert (dx * v).sum() == pytest.approx(expected, rel=1e-3)
    expected = directional_derivative(lambda k: pooled(x.astype(np.float64), k), KERNEL, g, w)
    assert (dw["conv.weight"].reshape(3) * w).sum() == pytest.approx(expected, rel=1e-3)


def test_evaluation_is_plain_pooling_without_side_effect(mode: str) -> None:
    x = ms.Tensor(features((2, 8, 4, 4)))
    cell = make(8).set_train(False)
    np.testing.assert_array_equal(cell(x).asnumpy(), create_pooling("gcp", 8)(x).asnumpy())
    assert int(cell.dropout.counter.asnumpy()) == 0


def test_fixed_rate(graph_mode: None) -> None:
    x = features((64, 16, 4, 4))
    cell = make(16, rate=0.4, rescale=False)
    out = cell(ms.Tensor(x)).asnumpy()
    kept = masks(0, 0, 64, 16) >= 0.4
    assert abs(kept.mean() - 0.6) < 0.06
    expected = reference.gcp(x * kept[:, :, None, None] / 0.6)
    assert relative_error(out, expected) < 1e-5
    none = make(16, rate=0.0, rescale=False)
    assert relative_error(none(ms.Tensor(x)), reference.gcp(x)) < 1e-5


def test_rate_is_capped(graph_mode: None) -> None:
    """A tiny D asks for a rate of nearly 1."""
    x = features((64, 16, 4, 4))
    cell = make(16, decay=1e-6, max_rate=0.75)
    out = cell(ms.Tensor(x)).asnumpy()
    assert np.isfinite(out).all()
    dropped = (out[:, np.cumsum([0, *range(16, 1, -1)])] == 0).mean()  # the variances
    assert abs(dropped - 0.75) < 0.06


def test_zero_map_in_training(mode: str) -> None:
    x = features((2, 8, 4, 4))
    x[0] = 0
    dx, dw = gradients(make(8), x, np.ones((2, 36)))
    assert np.isfinite(dx).all()
    assert np.isfinite(dw["conv.weight"]).all()


def test_parameters_and_start_of_the_kernel() -> None:
    names = {p.name: (p.shape, p.requires_grad) for p in create_pooling("dropcov", 8).get_parameters()}
    assert names == {"conv.weight": ((1, 1, 3), True), "dropout.counter": ((), False)}
    weights = np.concatenate([create_pooling("dropcov", 8).conv.weight.asnumpy().ravel() for _ in range(40)])
    assert np.abs(weights).max() <= 3**-0.5
    assert weights.std() == pytest.approx(1 / 3, rel=0.3)


def test_state_restores_the_masks(graph_mode: None) -> None:
    x = ms.Tensor(features((4, 16, 4, 4)))
    cell = make(16, seed=4)
    cell(x)
    state: Dict[str, Any] = {p.name: ms.Parameter(p.asnumpy(), name=p.name) for p in cell.get_parameters()}
    after = [cell(x).asnumpy() for _ in range(2)]
    resumed = make(16, seed=4)
    ms.load_param_into_net(resumed, state, strict_load=True)
    np.testing.assert_array_equal(np.stack(after), np.stack([resumed(x).asnumpy() for _ in range(2)]))
