"""What every pooling makes of features at the edge: nothing finite may become NaN, and no NaN may be hidden."""

from __future__ import annotations

import functools
from typing import Callable, Dict, Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.pooling import create_pooling, list_poolings
from tests.pooling.reference import features

CHANNELS = 16
SHAPES = {
    "full rank": (2, CHANNELS, 6, 6),
    "batch of one, fewer positions than channels": (1, CHANNELS, 3, 3),
    "one position": (2, CHANNELS, 1, 1),
}


def constant(shape: Tuple[int, ...], scale: float) -> np.ndarray:
    """Another value in every channel, the same at all positions: what a constant image gives."""
    x = np.random.default_rng(1).uniform(0.1, 1, (1, shape[1], 1, 1)) * scale
    return np.broadcast_to(x, shape).astype(np.float32)


def one_channel(shape: Tuple[int, ...]) -> np.ndarray:
    """All channels dead but one."""
    x = np.zeros(shape, np.float32)
    x[:, 3] = features(shape)[:, 3]
    return x


def largest_half(shape: Tuple[int, ...]) -> np.ndarray:
    """The largest numbers of half precision, of either sign."""
    return np.where(features(shape) > 1, 65504, -65504).astype(np.float32)


def one_zero_sample(shape: Tuple[int, ...]) -> np.ndarray:
    """A map of zeros beside one of large values."""
    x = 1e4 * features(shape)
    x[0] = 0
    return x


CASES: Dict[str, Callable[[Tuple[int, ...]], np.ndarray]] = {
    "ordinary": features,
    "zero": lambda shape: np.zeros(shape, np.float32),
    "constant": lambda shape: constant(shape, 1),
    "constant 1e4": lambda shape: constant(shape, 1e4),
    "1e4": lambda shape: 1e4 * features(shape),
    "1e-8": lambda shape: np.float32(1e-8) * features(shape),
    "1e-18": lambda shape: np.float32(1e-18) * features(shape),  # covariances below the smallest normal number
    "small beside large": lambda shape: constant(shape, 1e4) + np.float32(1e-2) * features(shape),
    "equal channels": lambda shape: np.repeat(features(shape)[:, :1], shape[1], 1),
    "one channel": one_channel,
    "rectified": lambda shape: np.maximum(features(shape) - 2, 0),
    "one zero sample": one_zero_sample,
    "largest half": largest_half,
}


class Traced(nn.Cell):
    """A scalar whose gradient is asked for, and the pooled vector beside it."""

    def __init__(self, pooling: nn.Cell) -> None:
        super().__init__()
        self.pooling = pooling

    def construct(self, x: ms.Tensor, g: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        out = self.pooling(x)
        return (out * g).sum(), out


@functools.cache
def compiled(name: str) -> Tuple[nn.Cell, Callable]:
    """One pooling in training mode for all tests: each shape is compiled once."""
    cell = create_pooling(name, CHANNELS).set_train()
    weights = ms.ParameterTuple(cell.trainable_params())
    return cell, ms.value_and_grad(Traced(cell), 0, weights if len(weights) else None, has_aux=True)


def value_and_gradients(name: str, x: np.ndarray) -> Dict[str, np.ndarray]:
    """The pooled vector and the gradients of a weighted sum of it, for the map and for every parameter."""
    cell, function = compiled(name)
    g = np.random.default_rng(2).standard_normal((len(x), cell.out_features)).astype(np.float32)
    (_, out), grads = function(ms.Tensor(x), ms.Tensor(g))
    parameters = cell.trainable_params()
    dx, dw = grads if parameters else (grads, ())
    found = {"value": out, "gradient": dx, **{f"gradient of {p.name}": w for p, w in zip(parameters, dw)}}
    return {key: tensor.asnumpy() for key, tensor in found.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", list_poolings())
def test_finite_features_give_finite_values_and_gradients(
    name: str, shape: Tuple[int, ...], case: str, graph_mode: None
) -> None:
    x = CASES[case](shape)
    assert x.dtype == np.float32 and np.isfinite(x).all()
    found = value_and_gradients(name, x)
    assert found["value"].shape[0] == shape[0] and found["gradient"].shape == shape
    wrong = {key: int((~np.isfinite(array)).sum()) for key, array in found.items() if not np.isfinite(array).all()}
    assert not wrong, f"entries that are not finite: {wrong}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", list_poolings())
def test_what_is_not_finite_is_not_hidden_in_training(name: str, bad: float, graph_mode: None) -> None:
    """A single bad entry must reach the loss, where the training stops at it."""
    x = features(SHAPES["full rank"])
    x[0, 5, 2, 2] = bad
    assert not np.isfinite(value_and_gradients(name, x)["value"][0]).all()


@pytest.mark.parametrize("name", list_poolings())
def test_a_bad_image_leaves_the_others_alone_in_evaluation(name: str, graph_mode: None) -> None:
    cell = create_pooling(name, CHANNELS).set_train(False)
    clean = features(SHAPES["full rank"])
    for bad in (np.nan, np.inf, -np.inf):
        x = clean.copy()
        x[0, 5, 2, 2] = bad
        out = cell(ms.Tensor(x)).asnumpy()
        assert not np.isfinite(out[0]).all()
        # Not bit for bit: MindSpore's kernels divide the same work anew among threads and vector registers.
        np.testing.assert_allclose(out[1], cell(ms.Tensor(clean)).asnumpy()[1], rtol=1e-4, atol=1e-5)
