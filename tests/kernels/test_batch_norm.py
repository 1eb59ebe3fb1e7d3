"""Batch normalisation against MindSpore's: output, gradients, running statistics, evaluation, frozen statistics."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.kernels.cells import CompiledBatchNorm2d, batch_norm_operator
from covpool.models.classifier import batch_norm


def norms(library: Path, channels: int) -> tuple[nn.BatchNorm2d, CompiledBatchNorm2d]:
    rng = np.random.default_rng(1)
    own, wrapped = batch_norm(channels), batch_norm(channels)
    for a, b in zip(own.get_parameters(), wrapped.get_parameters()):
        values = ms.Tensor(rng.uniform(0.5, 1.5, channels).astype(np.float32))
        a.set_data(values)
        b.set_data(values)
    return own, CompiledBatchNorm2d(wrapped, batch_norm_operator(library))


def run(cell: nn.Cell, norm: nn.BatchNorm2d, x: ms.Tensor, dy: ms.Tensor) -> list[np.ndarray]:
    def weighted(x: ms.Tensor, dy: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        y = cell(x)
        return (y * dy).sum(), y

    (_, y), (dx, grads) = ms.value_and_grad(weighted, 0, [norm.gamma, norm.beta], has_aux=True)(x, dy)
    return [t.asnumpy() for t in (y, dx, *grads, norm.moving_mean, norm.moving_variance)]


@pytest.mark.parametrize("shape", [(4, 6, 8, 8), (3, 5, 7, 9), (2, 3, 1, 1), (2, 4, 13, 31)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_training(library: Path, shape: tuple[int, ...], offset: float, mode: str) -> None:
    rng = np.random.default_rng(0)
    x, dy = (ms.Tensor(rng.standard_normal(shape).astype(np.float32)) for _ in range(2))
    own, compiled = norms(library, shape[1])
    own.set_train()
    compiled.set_train()
    names = ("output", "data gradient", "gamma", "beta", "moving mean", "moving variance")
    results = (run(compiled, compiled.norm, x + offset, dy), run(own, own, x + offset, dy))
    for name, a, b in zip(names, *results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 if offset == 0 else 2e-3, err_msg=name)


@pytest.mark.parametrize("frozen", [False, True], ids=["evaluation", "frozen"])
def test_running_statistics_are_used(library: Path, frozen: bool, mode: str) -> None:
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32))
    own, compiled = norms(library, 4)
    if frozen:
        own.use_batch_statistics = compiled.norm.use_batch_statistics = False
    own.set_train(frozen)
    compiled.set_train(frozen)
    before = compiled.norm.moving_mean.asnumpy().copy()
    np.testing.assert_array_equal(compiled(x).asnumpy(), own(x).asnumpy())
    np.testing.assert_array_equal(compiled.norm.moving_mean.asnumpy(), before)


def test_a_not_finite_value_stays_in_its_channel(library: Path, graph_mode: None) -> None:
    x = np.ones((2, 3, 4, 5), np.float32)
    x[0, 1, 2, 3] = np.nan
    _, compiled = norms(library, 3)
    compiled.set_train()
    finite = np.isfinite(compiled(ms.Tensor(x)).asnumpy()).all(axis=(0, 2, 3))
    assert finite.tolist() == [True, False, True]
