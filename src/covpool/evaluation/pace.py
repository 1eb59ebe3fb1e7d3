"""What an evaluation waits for: the data pipeline, which works in threads of its own, or the network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

DATA_SHARE = 0.1  # of the time spent waiting for images, from which on the pipeline counts as the limit


class Pace:
    """Passes batches on and takes the time that is spent waiting for them.

    The first batch does not count: until it is there the pipeline starts, and with it the network is compiled.

    Args:
        batches: What to pass on.

    Attributes:
        waited_s: Seconds of waiting for the second and later batches.
        total_s: Seconds from the request of the second batch to the end, computing included.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.waited_s = self.total_s = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._batches)
        for batch in iterator:
            yield batch
            break
        started = asked = time.monotonic()
        for batch in iterator:
            self.waited_s += time.monotonic() - asked
            yield batch
            asked = time.monotonic()
            self.total_s = asked - started

    @property
    def waited_share(self) -> float:
        """Part of the time spent waiting for images, 0 to 1; 0 where there was one batch only."""
        return self.waited_s / self.total_s if self.total_s else 0.0

    @property
    def limit(self) -> str:
        """``data`` or ``network``; empty where there was one batch only."""
        if not self.total_s:
            return ""
        return "data" if self.waited_share >= DATA_SHARE else "network"
