"""Every pooling at every size of the features: finite features give finite values and gradients, no NaN is hidden.

Size and kind of the features are data: one batch holds all of them, so a pooling is compiled once for each shape.
"""

from __future__ import annotations

import functools
from typing import Callable, Dict, List, Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.kernels import apply_cpu_kernels, find_kernels
from covpool.pooling import create_pooling, list_poolings
from tests.pooling import reference
from tests.pooling.reference import GRADIENT_TOLERANCE, REFERENCES, VALUE_TOLERANCE, Weighted, features

CHANNELS = 8
FULL_RANK, DEFICIENT = (4, 4), (2, 3)
SCALES = [10.0**exponent for exponent in range(-20, 5)]
RUNTIMES = ["GRAPH", "PYNATIVE", "GRAPH, compiled kernels"]


def constant(size: Tuple[int, int]) -> np.ndarray:
    """Another value in every channel, the same at all positions: what a constant image gives."""
    x = np.random.default_rng(1).uniform(0.1, 1, (1, CHANNELS, 1, 1))
    return np.broadcast_to(x, (1, CHANNELS, *size)).astype(np.float32)


def residue(size: Tuple[int, int]) -> np.ndarray:
    """Constant but for the last bit."""
    x = constant(size)
    return np.nextafter(x, x * np.random.default_rng(3).integers(0, 3, x.shape).astype(np.float32))


def one_channel(size: Tuple[int, int]) -> np.ndarray:
    """All channels dead but one."""
    x = np.zeros((1, CHANNELS, *size), np.float32)
    x[:, 3] = ordinary(size)[:, 3]
    return x


def ordinary(size: Tuple[int, int]) -> np.ndarray:
    return features((1, CHANNELS, *size))


KINDS: Dict[str, Callable[[Tuple[int, int]], np.ndarray]] = {
    "ordinary": ordinary,
    "constant": constant,
    "constant but for rounding": residue,
    "small beside large": lambda size: constant(size) + np.float32(1e-6) * ordinary(size),
    "equal channels": lambda size: np.repeat(ordinary(size)[:, :1], CHANNELS, 1),
    "one channel": one_channel,
    "rectified": lambda size: np.maximum(ordinary(size) - 2, 0),
    "largest half": lambda size: np.where(ordinary(size) > 1, 6.5504, -6.5504).astype(np.float32),  # 65504 at 1e4
}


def batch(size: Tuple[int, int]) -> Tuple[List[str], np.ndarray]:
    """A sample of every kind at every scale, a sample of zeros, and what they are."""
    names = [f"{kind} x {scale:.0e}" for kind in KINDS for scale in SCALES]
    maps = [kind(size) * np.float32(scale) for kind in KINDS.values() for scale in SCALES]
    return ["zeros", *names], np.concatenate([np.zeros_like(maps[0]), *maps])


@functools.cache
def compiled(name: str, runtime: str) -> Tuple[nn.Cell, Callable]:
    """One pooling in training mode for all tests."""
    if "compiled" in runtime and ms.get_context("device_target") != "CPU":
        pytest.skip("compiled kernels are for CPU")
    cell = create_pooling(name, CHANNELS).set_train()
    network = Weighted(cell)
    if "compiled" in runtime:
        apply_cpu_kernels(network, find_kernels("compiled"))
    weights = ms.ParameterTuple(network.trainable_params())
    return cell, ms.value_and_grad(network, 0, weights if len(weights) else None, has_aux=True)


def value_and_gradients(name: str, runtime: str, x: np.ndarray) -> Dict[str, np.ndarray]:
    """The pooled vector and the gradients of its weighted sum, for the map and for every parameter."""
    ms.set_context(mode=ms.PYNATIVE_MODE if runtime == "PYNATIVE" else ms.GRAPH_MODE)
    cell, function = compiled(name, runtime)
    (_, out), grads = function(ms.Tensor(x), ms.Tensor(weights(cell.out_features, len(x))))
    parameters = cell.trainable_params()
    dx, dw = grads if parameters else (grads, ())
    found = {"value": out, "gradient": dx, **{f"gradient of {p.name}": w for p, w in zip(parameters, dw)}}
    return {key: tensor.asnumpy() for key, tensor in found.items()}


def weights(features: int, samples: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((samples, features)).astype(np.float32)


@functools.cache
def swept(name: str, runtime: str, size: Tuple[int, int]) -> Dict[str, np.ndarray]:
    """Of the whole batch, once for all tests."""
    return value_and_gradients(name, runtime, batch(size)[1])


@pytest.mark.parametrize(
    ("runtime", "size"),
    [
        *((runtime, FULL_RANK) for runtime in RUNTIMES),
        ("PYNATIVE", DEFICIENT),
        pytest.param("GRAPH", DEFICIENT, marks=pytest.mark.only_with_all),
    ],
)
@pytest.mark.parametrize("name", list_poolings())
def test_finite_features_give_finite_values_and_gradients(name: str, runtime: str, size: Tuple[int, int]) -> None:
    names, x = batch(size)
    assert x.dtype == np.float32 and np.isfinite(x).all()
    wrong = {
        key: [label for label, row in zip(names, np.isfinite(array)) if not row.all()] if len(array) == len(x) else "it"
        for key, array in swept(name, runtime, size).items()
        if not np.isfinite(array).all()
    }
    assert not wrong, f"not finite: {wrong}"


# The largest scale whose covariances count as zero; float32 has no digits left for them one step further.
COUNTS_AS_ZERO = {"fast_mpn": 1e-17, "mtp": 1e-17, "bcnn": 1e-16, "bcnn_lt": 1e-16}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", sorted(set(REFERENCES) - {"dropcov"}))
def test_features_of_every_size_agree_with_the_reference(name: str, runtime: str) -> None:
    """Where the covariance is a float32 number; below, some poolings take it for zero."""
    scales, labels = np.array(SCALES), batch(FULL_RANK)[0]
    rows = [labels.index(f"ordinary x {scale:.0e}") for scale in SCALES]
    x = batch(FULL_RANK)[1][rows]
    value, gradient = (swept(name, runtime, FULL_RANK)[key][rows].astype(np.float64) for key in ("value", "gradient"))
    g = weights(value.shape[1], len(labels))[rows]
    expected, function = REFERENCES[name](x), REFERENCES[name]
    if name == "apn":  # no gradient through alpha
        function = functools.partial(reference.apn_at, alpha=reference.apn_alpha(x))
    if name == "cholesky":
        function = functools.partial(reference.cholesky, shifted=True)
    if name == "logm":  # the same gradient, without the loss of digits beside log(eps)
        function = lambda x: reference.ilogm(x) / 1e-3  # noqa: E731
    step = 1e-5 * scales.reshape(-1, 1, 1, 1) * np.random.default_rng(4).standard_normal((1, *x.shape[1:]))
    x = x.astype(np.float64)
    change = ((function(x + step) - function(x - step)) * g).sum(1) / 2
    gradient, step = gradient.reshape(len(x), -1), step.reshape(len(x), -1)
    usual = np.linalg.norm(gradient, axis=1) * np.linalg.norm(step, axis=1) / np.sqrt(step.shape[1])
    value_error = np.abs(value - expected).max(1) / np.abs(expected).max(1)
    gradient_error = np.abs((gradient * step).sum(1) - change) / np.maximum(np.maximum(np.abs(change), usual), 1e-300)
    represented = scales > 2 * COUNTS_AS_ZERO.get(name, 1e-16)
    wrong = represented & ~((value_error < VALUE_TOLERANCE) & (gradient_error < GRADIENT_TOLERANCE))
    assert not wrong.any(), np.stack([scales, value_error, gradient_error], 1)[wrong]
    if name in COUNTS_AS_ZERO:
        assert not value[~represented].any() and not gradient[~represented].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("runtime", ["GRAPH", "GRAPH, compiled kernels"])
@pytest.mark.parametrize("name", list_poolings())
def test_what_is_not_finite_is_not_hidden_in_training(name: str, runtime: str, bad: float) -> None:
    """A single bad entry must reach the loss, where the training stops at it."""
    _, x = batch(FULL_RANK)
    x[1, 5, 2, 2] = bad
    assert not np.isfinite(value_and_gradients(name, runtime, x)["value"][1]).all()


@pytest.mark.parametrize("name", list_poolings())
def test_a_bad_image_leaves_the_others_alone_in_evaluation(name: str, pynative_mode: None) -> None:
    cell = create_pooling(name, CHANNELS).set_train(False)
    clean = features((5, CHANNELS, 4, 4))
    x = clean.copy()
    x[[0, 2, 3], 5, 2, 2] = np.nan, np.inf, -np.inf
    out = cell(ms.Tensor(x)).asnumpy()
    assert np.isfinite(out).all(1).tolist() == [False, True, False, False, True]
    # Not bit for bit: MindSpore's kernels may split the same work in other ways.
    np.testing.assert_allclose(out[[1, 4]], cell(ms.Tensor(clean)).asnumpy()[[1, 4]], rtol=1e-4, atol=1e-5)
