"""Sums and rows of ranks where there is no MPI, over a device that reduces float32 alone."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from covpool.runtime.distributed import World, _device_collectives


def test_a_world_of_one_gathers_its_row() -> None:
    assert World().gather(np.array([1, 2], np.int64)).tolist() == [[1.0, 2.0]]


def test_values_travel_exactly_and_each_rank_sends_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reduction adds what the other ranks sent: three rows of 64 ranks, not 64 rows of each."""
    ranks, mine = 64, 5
    values = np.random.default_rng(0).normal(0, 10.0 ** np.arange(-3, 4), (ranks, 7))  # float64, of many sizes
    sent: list[tuple[int, ...]] = []

    class OtherRanks(nn.Cell):
        def construct(self, x: Any) -> Any:
            sent.append(x.shape)
            return x + ms.Tensor(others)

    monkeypatch.setattr(ops, "AllReduce", OtherRanks)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    others = np.zeros((ranks, 3, 7), np.float32)
    rest = np.delete(values, mine, 0)
    for part in range(3):
        others[np.arange(ranks) != mine, part] = rest
        rest = rest - others[np.arange(ranks) != mine, part]
    world = World(mine, ranks, 0, 1, *_device_collectives(mine, ranks))
    assert np.array_equal(world.gather(values[mine]), values)
    np.testing.assert_allclose(world.sum(values[mine]), values.sum(0), rtol=1e-15)
    assert sent == [(ranks, 3, 7)] * 2
