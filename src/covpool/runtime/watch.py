"""A job notices when one of its ranks, or its scheduler, is no longer there.

``mpirun`` ends a job when one of its processes dies. It does not see a process that hangs (stopped, or on a host that
was cut off), and MindSpore's collectives then wait forever. So beside every rank runs a watcher, a small process of its
own: a rank that imports or compiles holds Python's lock for a long time. Once a second the watchers tell that of rank 0
over UDP whether their rank runs or hangs, and it answers with the same about rank 0. A watcher that hears nothing from
the other side for too long, or that the rank there hangs, says so and ends its own rank; ``mpirun`` ends the others.

A datagram without the job's token, a random number that only its watchers know, is ignored.
"""

from __future__ import annotations

import hmac
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

from covpool.runtime.processes import outlive_parent, process_stat, process_state, start_watcher_process

_INTERVAL_S = 1.0
_ABSENCE_S = 5.0  # a watcher that did not run for so long was stopped itself, with the whole host or job
_LAUNCHER_S = 10.0  # what mpirun is given to end a job of which a rank was killed
_MESSAGE = re.compile(rb"([0-9a-f]{32}) (here|hangs|bye) (0|[1-9][0-9]{0,6}) ([!-~]{1,255}) ([0-9]{1,10})")
_TOKEN = "COVPOOL_WATCH_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True)
class Post:
    """Where the watchers of a job meet."""

    address: tuple[str, int] = ("", 0)  # where rank 0's watcher listens
    token: str = ""  # 32 hexadecimal digits that every datagram begins with

    def message(self, kind: str, rank: int, process: int) -> bytes:
        """A datagram of a rank: it is 'here', 'hangs' or says 'bye'."""
        host = re.sub("[^!-~]", "_", socket.gethostname()) or "_"
        return f"{self.token} {kind} {rank} {host} {process}".encode()

    def read(self, datagram: bytes) -> tuple[str, int, str] | None:
        """Kind, rank and its name (process and host); None for whatever was not sent by a watcher of this job."""
        found = _MESSAGE.fullmatch(datagram)
        if found is None or not hmac.compare_digest(found[1], self.token.encode()):
            return None
        rank, host, process = (found[group].decode() for group in (3, 4, 5))
        return found[2].decode(), int(rank), f"rank {rank} (process {process} on {host})"


class Watcher:
    """Watches the other ranks (rank 0) or rank 0 (every other), for the rank whose process started it.

    Args:
        rank: That rank, of ``size``.
        listener: Rank 0's socket; a fresh one on other ranks.
        timeout: Seconds of silence, or of hanging, after which a rank counts as lost.
        process: Process of the rank.
        scheduler: Process of MindSpore's scheduler; 0 where it is not this rank's.
    """

    def __init__(
        self, rank: int, size: int, listener: socket.socket, post: Post, timeout: float, process: int, scheduler: int
    ) -> None:
        self.rank, self.timeout, self.process, self.scheduler = rank, timeout, process, scheduler
        self._post, self._socket = post, listener
        self._socket.settimeout(_INTERVAL_S / 4)
        self._names = {other: f"rank {other}" for other in range(size)}
        watched = range(1, size) if rank == 0 else (0,)
        self._looked = time.monotonic()
        self._heard = dict.fromkeys(watched, self._looked)  # when its watcher was last heard
        self._ran = dict(self._heard)  # when it last ran
        self._sent = 0.0

    def run(self) -> None:
        """Watch until the rank ends, or end it."""
        while not (problem := self.look()):
            pass
        sys.stderr.write(f"error: {problem}: the job ends\n")
        sys.stderr.flush()
        self._end()

    def look(self) -> str:
        """Say that the rank is there when that is due, listen for a moment, and judge; returns the problem, if any."""
        if self.rank and time.monotonic() - self._sent >= _INTERVAL_S:
            self._send(self._post.address)
            self._sent = time.monotonic()
        self._receive()
        return self._problem()

    def _end(self) -> None:
        """End the rank, then its launcher (mpirun, or its daemon elsewhere) where that waits for a lost host."""
        launcher = int(process_stat(self.process)[1])
        outlive_parent()
        os.kill(self.process, signal.SIGKILL)
        deadline = time.monotonic() + _LAUNCHER_S
        while time.monotonic() < deadline:
            if process_state(launcher) in "ZX":
                return
            time.sleep(_INTERVAL_S / 4)
        os.kill(launcher, signal.SIGKILL)

    def _receive(self) -> None:
        try:
            datagram, sender = self._socket.recvfrom(512)
        except OSError:  # nothing within the interval, or no way there: silence, which is judged by its length
            return
        kind, other, name = self._post.read(datagram) or ("", -1, "")
        if other not in self._heard:
            return
        if kind == "bye":
            del self._heard[other]
            return
        self._names[other] = name
        self._heard[other] = time.monotonic()
        if kind == "here":
            self._ran[other] = self._heard[other]
        if self.rank == 0:
            self._send(sender)

    def _send(self, to: tuple[str, int]) -> None:
        kind = "hangs" if process_state(self.process) in "Tt" else "here"
        try:
            self._socket.sendto(self._post.message(kind, self.rank, self.process), to)
        except OSError:  # a lost link: the other side's silence tells
            return

    def _problem(self) -> str:
        if self.scheduler and process_state(self.scheduler) in "ZX":
            return f"MindSpore's scheduler (process {self.scheduler}) is gone"
        now = time.monotonic()
        if now - self._looked > _ABSENCE_S:  # nobody's silence while this process could not listen
            for times in (self._heard, self._ran):
                times.update({other: min(now, at + now - self._looked) for other, at in times.items()})
        self._looked = now
        for other, heard in self._heard.items():
            if now - heard > self.timeout:
                return f"{self._names[other]} has not answered for {self.timeout:.0f} s: its host or the link is lost"
            if now - self._ran[other] > self.timeout:
                return f"{self._names[other]} hangs: it has been stopped for {self.timeout:.0f} s"
        return ""


def open_listener(host: str) -> socket.socket:
    """Rank 0's socket, on a free port of ``host``."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((host, 0))
    return listener


def start_watcher(
    rank: int, size: int, listener: socket.socket | None, post: Post, timeout: float, scheduler: int
) -> subprocess.Popen[bytes]:
    """Start the watcher of this process's rank; it ends with this process."""
    with listener or socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        values = (rank, size, own.fileno(), *post.address, timeout, os.getpid(), scheduler)
        return start_watcher_process("watch", *values, descriptors=[own.fileno()], variables={_TOKEN: post.token})


def stop_watcher(watcher: subprocess.Popen[bytes], rank: int, post: Post) -> None:
    """End the watcher of this rank: the job is done, and its silence means nothing any more."""
    watcher.kill()
    watcher.wait()
    if rank:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(post.message("bye", rank, os.getpid()), post.address)


def main(arguments: list[str]) -> None:
    """Run as the watcher that :func:`start_watcher` starts."""
    rank, size, descriptor, host, port, timeout, process, scheduler = arguments
    listener = socket.socket(fileno=int(descriptor))
    post = Post((host, int(port)), os.environ[_TOKEN])
    Watcher(int(rank), int(size), listener, post, float(timeout), int(process), int(scheduler)).run()
