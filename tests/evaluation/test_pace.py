"""Waiting is told from computing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from covpool.evaluation.pace import Pace


def slow(count: int, seconds: float) -> Iterator[int]:
    for index in range(count):
        time.sleep(seconds)
        yield index


@pytest.mark.parametrize(("data_s", "network_s", "limit"), [(0.02, 0.0, "data"), (0.0, 0.02, "network")])
def test_the_slower_side_is_named(data_s: float, network_s: float, limit: str) -> None:
    pace = Pace(slow(6, data_s))
    seen = []
    for batch in pace:
        time.sleep(network_s)
        seen.append(batch)
    assert seen == list(range(6))
    assert pace.limit == limit and (pace.waited_share > 0.9) == (limit == "data")
    assert pace.total_s >= 5 * 0.02 * 0.9


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_said_of_a_single_batch(count: int) -> None:
    pace = Pace(slow(count, 0.0))
    assert list(pace) == list(range(count))
    assert pace.limit == "" and pace.waited_share == 0
