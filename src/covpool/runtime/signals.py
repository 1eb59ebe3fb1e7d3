"""Signals of schedulers and people, received where MindSpore cannot get at them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from covpool.errors import UserError
from covpool.runtime.siblings import follow_msrun

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


_Item = TypeVar("_Item")


class Interrupted(UserError):
    """A program was stopped by a signal, in good order; the exit code is 128 plus the signal's number."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}", exit_code=128 + number)


class StopRequest:
    """The first of :data:`SIGNALS` that this process received while it was :meth:`deferring` them: ``received`` or 0.

    A thread receives the signals, which are blocked in all others: while it runs a graph, MindSpore turns SIGINT into
    SIGTERM by a handler of its own. Hence :meth:`listening` must begin before MindSpore or NumPy start their threads.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferring = False
        self._numbers: list[signal.Signals] = []  # that the thread receives
        self._first_deferral = threading.Event()
        self._waiting = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals within the block. Unless they are deferred they end the process at once.

        A SIGHUP that was ignored before (``nohup``) stays ignored. Under msrun, which sends no signal when part of a
        job is lost, a watcher begins to look out for that.
        """
        follow_msrun()
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._numbers = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
        threading.Thread(target=self._receive, name="signals", daemon=True).start()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, interrupt)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Note the first signal within the block and go on; a second one ends the process at once."""
        self._deferring = True
        self._first_deferral.set()
        if self._numbers:
            self._waiting.wait()
        try:
            yield
        finally:
            self._deferring = False

    def check(self, where: str) -> None:
        """End in good order, by Interrupted, if a signal was received; ``where`` says how far things have come."""
        if self.received:
            raise Interrupted(self.received, where)

    def between(self, items: Iterable[_Item], where: str) -> Iterator[_Item]:
        """The items, with a :meth:`check` before each."""
        for item in items:
            self.check(where)
            yield item

    def _receive(self) -> None:
        # Until the first deferral the kernel ends the process: MindSpore waits for a scheduler, or compiles, with
        # Python's lock, and no line of this thread would run.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        self._first_deferral.wait()
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        self._waiting.set()
        while True:
            number = signal.sigwait(self._numbers)
            if self.received or not self._deferring:
                os._exit(128 + number)
            self.received = number
