"""Signals of schedulers and people, received where MindSpore cannot get at them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from covpool.errors import UserError
from covpool.runtime.siblings import follow_msrun

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(UserError):
    """A program was stopped by a signal, in good order; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}", exit_code=128 + number)


class StopRequest:
    """The first of :data:`SIGNALS` that this process received while it was :meth:`deferring` them.

    A thread waits for the signals, which are blocked in all others: while it runs a graph, MindSpore turns SIGINT into
    SIGTERM by a handler of its own. Hence :meth:`listening` must begin before MindSpore or NumPy start their threads.

    Attributes:
        received: Its number; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferring = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals within the block. Unless they are deferred they end the process at once.

        Under msrun, which sends none when part of a job is lost, a watcher begins to look out for that.
        """
        follow_msrun()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Note the first signal within the block and go on; a second one ends the process at once."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            if self.received or not self._deferring:
                os._exit(128 + number)
            self.received = number
