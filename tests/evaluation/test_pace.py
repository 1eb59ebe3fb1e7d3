"""Waiting is told from computing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from covpool.evaluation.run import Pace


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def batches(self, count: int, seconds: float) -> Iterator[int]:
        for index in range(count):
            self.now += seconds
            yield index


@pytest.mark.parametrize(
    ("data_s", "network_s", "limit"), [(9.0, 1.0, "data"), (1.0, 9.0, "data"), (1.0, 9.1, "network")]
)
def test_the_slower_side_is_named(data_s: float, network_s: float, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a tenth of the time on it is the data; the first batch, with start and compilation, does not count."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    pace, seen = Pace(clock.batches(6, data_s)), []
    for batch in pace:
        clock.now += network_s if seen else 1000
        seen.append(batch)
    assert seen == list(range(6)) and pace.limit == limit
    assert pace.total_s == pytest.approx(5 * (data_s + network_s)) and pace.waited_s == pytest.approx(5 * data_s)


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_said_of_a_single_batch(count: int) -> None:
    pace = Pace(range(count))
    assert list(pace) == list(range(count))
    assert pace.limit == "" and pace.waited_share == 0
