"""Winograd's convolutions against direct ones in float64, in both modes, at even, odd and tiny sizes."""

from __future__ import annotations

import copy
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from covpool.kernels.apply import apply_cpu_kernels
from covpool.kernels.cells import CompiledConv2d, stem_operator, takes_stem, takes_winograd, winograd_operator
from covpool.kernels.library import set_threads
from covpool.models.classifier import convolution

# images, input channels, output channels, height, width
SHAPES = [
    (2, 32, 64, 8, 8),
    (3, 64, 32, 7, 9),
    (1, 32, 32, 1, 1),
    (2, 32, 96, 13, 6),
    (5, 512, 256, 7, 7),
    (1, 32, 32, 2, 40),
]


STEM_SHAPES = [(2, 3, 8, 32, 32), (1, 3, 16, 33, 50), (2, 1, 8, 1, 2), (1, 3, 8, 10, 224), (3, 4, 8, 7, 97)]


def draw(n: int, c: int, o: int, h: int, w: int, k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    out = (n, o, h, w) if k == 3 else (n, o, (h + 1) // 2, (w + 1) // 2)
    x, weight, dy = (rng.standard_normal(shape) for shape in ((n, c, h, w), (o, c, k, k), out))
    return x.astype(np.float32), (weight / (k * c**0.5)).astype(np.float32), dy.astype(np.float32)


def compute(library: Path, x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """Output and both gradients."""
    size = weight.shape[-1]
    conv = convolution(weight.shape[1], weight.shape[0], size, 1 if size == 3 else 2)
    conv.weight.set_data(ms.Tensor(weight))
    cell = CompiledConv2d(conv, winograd_operator(library) if size == 3 else stem_operator(library, len(weight)))

    def weighted(x: ms.Tensor, dy: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        y = cell(x)
        return (y * dy).sum(), y

    (_, y), (dx, (dw,)) = ms.value_and_grad(weighted, 0, [conv.weight], has_aux=True)(ms.Tensor(x), ms.Tensor(dy))
    return [t.asnumpy() for t in (y, dx, dw)]


def exact(x: np.ndarray, weight: np.ndarray, dy: np.ndarray, dtype: torch.dtype) -> list[np.ndarray]:
    tx, tw = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (x, weight))
    size = weight.shape[-1]
    y = torch.conv2d(tx, tw, stride=1 if size == 3 else 2, padding=size // 2)
    y.backward(torch.tensor(dy, dtype=dtype))
    return [t.detach().numpy() for t in (y, tx.grad, tw.grad)]


@pytest.mark.parametrize("shape", SHAPES + [(*shape, 7) for shape in STEM_SHAPES], ids=str)
def test_output_and_gradients(library: Path, shape: tuple[int, ...], mode: str) -> None:
    values = draw(*shape)
    found, expected, direct = compute(library, *values), exact(*values, torch.float64), exact(*values, torch.float32)
    for name, a, b, d in zip(("output", "data gradient", "weight gradient"), found, expected, direct):
        error, usual = (np.abs(v - b).max() / np.abs(b).max() for v in (a, d))
        assert error <= max(3 * usual, 1e-6), f"{name}: {error:.1e}, a direct convolution in float32 has {usual:.1e}"


@pytest.mark.parametrize("shape", [(6, 32, 64, 14, 14), (6, 3, 16, 30, 30, 7)], ids=str)
def test_runs_are_bit_identical_and_threads_share_the_work(
    library: Path, shape: tuple[int, ...], graph_mode: None
) -> None:
    values = draw(*shape)
    first, second = compute(library, *values), compute(library, *values)
    set_threads(library, 1)
    alone = compute(library, *values)
    set_threads(library, 2)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, alone):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "out", "size", "stride"), [(32, 64, 3, 1), (3, 16, 7, 2), (5, 5, 3, 1), (5, 5, 3, 2)]
)
def test_a_bias_is_added(library: Path, graph_mode: None, channels: int, out: int, size: int, stride: int) -> None:
    depthwise = channels == out
    plain = convolution(channels, out, size, stride, channels if depthwise else 1)
    biased = copy.deepcopy(plain)
    biased.has_bias, biased.bias = True, ms.Parameter(ms.Tensor(np.arange(out, dtype=np.float32)), name="bias")
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, channels, 19, 34)).astype(np.float32))
    pair = [nn.SequentialCell([conv]) for conv in (plain, biased)]
    assert [apply_cpu_kernels(cell, library) for cell in pair] == [1, 1]
    np.testing.assert_allclose(
        pair[1](x).asnumpy(), pair[0](x).asnumpy() + np.arange(out)[:, None, None], rtol=1e-5, atol=1e-5
    )

    def half_square(x: ms.Tensor) -> ms.Tensor:
        return pair[1](x).square().sum() / 2

    (gradient,) = ms.grad(half_square, None, [biased.bias])(x)
    np.testing.assert_allclose(gradient.asnumpy(), pair[1](x).asnumpy().sum((0, 2, 3)), rtol=1e-4)


def test_gradient_by_differences(library: Path, graph_mode: None) -> None:
    """The weight gradient is that of the operator itself, not only of a convolution like it."""
    x, weight, dy = draw(1, 32, 32, 5, 4)
    _, dx, dw = compute(library, x, weight, dy)
    for which, gradient in ((0, dx), (1, dw)):
        values, place, step = [x, weight], np.unravel_index(7, gradient.shape), 1e-1  # linear: any step serves
        ends = []
        for sign in (1, -1):
            moved = [v.copy() for v in values]
            moved[which][place] += sign * step
            ends.append(float((compute(library, *moved, dy)[0].astype(np.float64) * dy).sum()))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient[place], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [ms.float16, ms.float64])
def test_other_types_are_refused(library: Path, graph_mode: None, dtype: ms.Type) -> None:
    x, weight, _ = draw(1, 32, 32, 4, 4)
    with pytest.raises(RuntimeError):
        winograd_operator(library)(ms.Tensor(x).astype(dtype), ms.Tensor(weight).astype(dtype)).asnumpy()


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (convolution(32, 64, 3), True),
        (convolution(32, 64, 3, 2), False),
        (convolution(32, 64, 1), False),
        (convolution(3, 64, 3), False),
        (convolution(32, 48, 3), False),
        (convolution(32, 32, 3, groups=32), False),
        (nn.Conv2d(32, 32, 3, pad_mode="pad", padding=1, has_bias=True), True),
        (nn.Conv2d(32, 32, 3, pad_mode="pad", padding=2, dilation=2), False),
        (nn.Conv2d(32, 32, 3, pad_mode="valid"), False),
    ],
)
def test_which_convolutions_are_taken(conv: nn.Conv2d, taken: bool) -> None:
    assert takes_winograd(conv) is taken
    assert not takes_stem(conv)


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (convolution(3, 64, 7, 2), True),
        (convolution(1, 8, 7, 2), True),
        (convolution(3, 64, 7, 1), False),
        (convolution(3, 12, 7, 2), False),
        (convolution(16, 64, 7, 2), False),
    ],
)
def test_which_convolutions_are_stems(conv: nn.Conv2d, taken: bool) -> None:
    assert takes_stem(conv) is taken
    assert not takes_winograd(conv)
