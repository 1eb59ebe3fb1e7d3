"""The counter-based generator: distribution, independence, repeatability."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.pooling.counter_random import CounterUniform


class Draw(nn.Cell):
    def __init__(self, n: int, d: int, seed: int = 0) -> None:
        super().__init__()
        self.uniform = CounterUniform(seed)
        self.n, self.d = n, d

    def construct(self) -> ms.Tensor:
        return self.uniform(self.n, self.d)


def draws(steps: int, n: int = 64, d: int = 128, seed: int = 0) -> np.ndarray:
    cell = Draw(n, d, seed)
    return np.stack([cell().asnumpy() for _ in range(steps)])


def chi_square(u: np.ndarray, bins: int) -> float:
    """Standardised chi-square statistic: about standard normal for uniform numbers."""
    counts = np.histogram(u, bins=bins, range=(0, 1))[0]
    expected = u.size / bins
    return float((((counts - expected) ** 2 / expected).sum() - (bins - 1)) / np.sqrt(2 * (bins - 1)))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation in units of its standard error."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size))


def test_uniform(graph_mode: None) -> None:
    u = draws(40)
    assert u.dtype == np.float32
    assert 0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    error = np.sqrt(1 / 12 / u.size)
    assert abs(u.mean() - 0.5) < 4 * error
    for power in (2, 3, 4):
        assert abs((u.astype(np.float64) ** power).mean() - 1 / (power + 1)) < 4 * error
    for bins in (2, 16, 256, 1000):
        assert abs(chi_square(u, bins)) < 4
    assert abs(chi_square(np.mod(u * 1024, 1), 64)) < 4  # the lower bits too


def test_each_place_and_each_step_is_uniform(graph_mode: None) -> None:
    u = draws(400, 4, 16)
    error = np.sqrt(1 / 12 / 400)
    assert np.abs(u.mean(0) - 0.5).max() < 4.5 * error
    assert np.abs(u.mean((1, 2)) - 0.5).max() < 4.5 * np.sqrt(1 / 12 / 64)


def test_no_correlation(graph_mode: None) -> None:
    u = draws(40)
    for lag in (1, 2, 3, 8):
        assert abs(correlation(u[lag:], u[:-lag])) < 4  # steps
        assert abs(correlation(u[:, lag:], u[:, :-lag])) < 4  # rows
        assert abs(correlation(u[:, :, lag:], u[:, :, :-lag])) < 4  # channels
    triple = (u[2:] - 0.5) * (u[1:-1] - 0.5) * (u[:-2] - 0.5)
    assert abs(triple.mean()) < 4 * (1 / 12) ** 1.5 / np.sqrt(triple.size)
    pairs = np.floor(u[1:] * 16) * 16 + np.floor(u[:-1] * 16)
    assert abs(chi_square(pairs / 256 + 1e-6, 256)) < 4


def test_seeds_are_independent(graph_mode: None) -> None:
    a = draws(10, seed=0)
    for seed in (1, 2, 12345678901):
        b = draws(10, seed=seed)
        assert abs(correlation(a, b)) < 4
        assert (a == b).mean() < 1e-4


def test_repeatable_and_restored_by_the_counter(mode: str) -> None:
    first = draws(4, 3, 8, seed=5)
    np.testing.assert_array_equal(first, draws(4, 3, 8, seed=5))
    cell = Draw(3, 8)
    cell.uniform.seed = 5
    cell.uniform.counter.set_data(ms.Tensor(2, ms.int32))
    np.testing.assert_array_equal(first[2], cell().asnumpy())
    assert int(cell.uniform.counter.asnumpy()) == 3


def test_same_in_both_modes() -> None:
    values = []
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        ms.set_context(mode=mode)
        values.append(draws(3, 4, 8, seed=9))
    np.testing.assert_array_equal(values[0], values[1])


@pytest.mark.parametrize("start", [2**31 - 2, -(2**31)])
def test_counter_wraps(start: int, graph_mode: None) -> None:
    cell = Draw(16, 16)
    cell.uniform.counter.set_data(ms.Tensor(start, ms.int32))
    a, b, c = (cell().asnumpy() for _ in range(3))
    assert not (a == b).all()
    assert not (b == c).all()
