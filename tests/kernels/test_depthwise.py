"""Depthwise convolutions against direct ones in float64, at the sizes of both light networks and at odd ones."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from covpool.kernels.cells import CompiledConv2d, depthwise_operator, takes_depthwise, takes_stem, takes_winograd
from covpool.kernels.library import set_threads
from covpool.models.classifier import convolution

# channels, height, width, stride
MOBILENET = [
    *((32, 112, 112, 1), (96, 112, 112, 2), (144, 56, 56, 1), (144, 56, 56, 2), (192, 28, 28, 1), (192, 28, 28, 2)),
    *((384, 14, 14, 1), (576, 14, 14, 1), (576, 14, 14, 2), (960, 7, 7, 1)),
]
SHUFFLENET = [
    *((24, 56, 56, 2), (58, 56, 56, 2), (58, 28, 28, 1), (116, 28, 28, 2), (116, 14, 14, 1), (232, 14, 14, 2)),
    (232, 7, 7, 1),
]
SIZES = ((7, 7), (1, 1), (13, 9), (1, 40), (40, 1), (2, 33), (5, 16), (6, 31))
ODD = [(5, h, w, stride) for h, w in SIZES for stride in (1, 2)]


def draw(n: int, c: int, h: int, w: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((n, c, h, w), (c, 1, 3, 3), (n, c, (h - 1) // stride + 1, (w - 1) // stride + 1))
    x, weight, dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, weight, dy


def compute(library: Path, x: np.ndarray, weight: np.ndarray, dy: np.ndarray, stride: int) -> list[np.ndarray]:
    """Output and both gradients."""
    conv = convolution(len(weight), len(weight), 3, stride, len(weight))
    conv.weight.set_data(ms.Tensor(weight))
    cell = CompiledConv2d(conv, depthwise_operator(library, stride))

    def weighted(x: ms.Tensor, dy: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        y = cell(x)
        return (y * dy).sum(), y

    (_, y), (dx, (dw,)) = ms.value_and_grad(weighted, 0, [conv.weight], has_aux=True)(ms.Tensor(x), ms.Tensor(dy))
    return [t.asnumpy() for t in (y, dx, dw)]


def direct(x: np.ndarray, weight: np.ndarray, dy: np.ndarray, stride: int) -> list[np.ndarray]:
    """The same by PyTorch in float32."""
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, weight))
    y = torch.conv2d(tx, tw, stride=stride, padding=1, groups=len(weight))
    y.backward(torch.tensor(dy))
    return [t.detach().numpy() for t in (y, tx.grad, tw.grad)]


def exact(x: np.ndarray, weight: np.ndarray, dy: np.ndarray, stride: int) -> list[np.ndarray]:
    """The same by the definition in float64; PyTorch takes seconds for that."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, dx, dw = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for i, j in np.ndindex(3, 3):
        met = np.s_[:, :, i : i + stride * dy.shape[2] : stride, j : j + stride * dy.shape[3] : stride]
        y += padded[met] * weight[:, :, i, j][:, :, None]
        dx[met] += dy * weight[:, :, i, j][:, :, None]
        dw[:, 0, i, j] = (padded[met] * dy).sum((0, 2, 3))
    return [y, dx[:, :, 1:-1, 1:-1], dw]


def compare(library: Path, n: int, shape: tuple[int, ...]) -> None:
    values, stride = draw(n, *shape), shape[-1]
    found = compute(library, *values, stride)
    for reference, allowed in ((exact, 1e-6), (direct, 1e-5)):
        for name, a, b in zip(("output", "data gradient", "weight gradient"), found, reference(*values, stride)):
            error = np.abs(a - b).max() / np.abs(b).max()
            assert error <= allowed, f"{name}: {error:.1e}, {reference.__name__}"


@pytest.mark.parametrize("shape", ODD, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_odd_sizes(library: Path, n: int, shape: tuple[int, ...]) -> None:
    compare(library, n, shape)


@pytest.mark.parametrize("shape", [*MOBILENET, *SHUFFLENET], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_sizes_of_the_networks(library: Path, n: int, shape: tuple[int, ...]) -> None:
    compare(library, n, shape)


@pytest.mark.parametrize("stride", [1, 2])
def test_in_a_graph(library: Path, stride: int, graph_mode: None) -> None:
    compare(library, 3, (40, 13, 9, stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_runs_are_bit_identical_with_any_number_of_threads(library: Path, stride: int) -> None:
    values = draw(6, 120, 29, 30, stride)  # enough for threads
    found = []
    for threads in (2, 2, 1, 3):
        set_threads(library, threads)
        found.append(compute(library, *values, stride))
    set_threads(library, 2)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_not_finite_value_stays_in_its_map(library: Path, stride: int) -> None:
    x, weight, dy = draw(2, 3, 7, 7, stride)
    x[1, 1, 0, 0] = np.nan  # the first place: it must not come in again at the other side
    dy[0, 2, -1, -1] = np.inf
    y, dx, _ = compute(library, x, weight, dy, stride)
    expected_y, expected_dx, _ = direct(x, weight, dy, stride)
    np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected_y))
    np.testing.assert_array_equal(np.isfinite(dx), np.isfinite(expected_dx))


def test_float16_is_refused(library: Path, graph_mode: None) -> None:
    x, weight, _ = draw(1, 4, 4, 4, 1)
    with pytest.raises(RuntimeError):
        depthwise_operator(library, 1)(ms.Tensor(x, ms.float16), ms.Tensor(weight, ms.float16)).asnumpy()


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (convolution(32, 32, 3, groups=32), True),
        (convolution(58, 58, 3, 2, groups=58), True),
        (convolution(32, 32, 3, 3, groups=32), False),
        (convolution(32, 32, 5, groups=32), False),
        (convolution(32, 32, 3, groups=16), False),
        (convolution(32, 64, 3, groups=32), False),
        (convolution(1, 1, 3), False),
        (nn.Conv2d(32, 32, 3, (1, 2), group=32, pad_mode="pad", padding=1), False),
        (nn.Conv2d(32, 32, 3, group=32, pad_mode="pad", padding=1, has_bias=True), True),
        (nn.Conv2d(32, 32, 3, group=32, pad_mode="same"), False),
    ],
)
def test_which_convolutions_are_taken(conv: nn.Conv2d, taken: bool) -> None:
    assert takes_depthwise(conv) is taken
    assert not takes_winograd(conv) and not takes_stem(conv)
