"""A job notices when one of its ranks, or its scheduler, is no longer there.

``mpirun`` ends a job when one of its processes dies. It does not see a process that hangs (stopped, swapped out, its
host cut off), and MindSpore's collectives then wait forever. So every rank says over UDP once a second that it is
there, rank 0 answers, and who misses the other for too long says so and ends; ``mpirun`` does the rest.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

_INTERVAL_S = 1.0


class Watch:
    """Watches the other ranks (rank 0) or rank 0 (every other) from a thread.

    Args:
        rank: This rank.
        size: Number of ranks.
        listener: Rank 0's socket, from :func:`open_listener`; None on other ranks.
        address: Where rank 0 listens.
        timeout: Seconds of silence after which a rank counts as lost. A rank that compiles a large graph can be
            silent for as long as that takes.
        scheduler: MindSpore's scheduler, in the process that started it.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        listener: socket.socket | None,
        address: tuple[str, int],
        timeout: float,
        scheduler: subprocess.Popen[bytes] | None,
    ) -> None:
        self.rank, self.timeout, self._scheduler = rank, timeout, scheduler
        self._address = address
        self._socket = listener or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(_INTERVAL_S / 4)
        self._names = {other: f"rank {other}" for other in range(size)}
        watched = range(1, size) if rank == 0 else (0,)
        self._heard = dict.fromkeys(watched, time.monotonic())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it: the job is done, silence means nothing any more."""
        self._stopped.set()
        if self.rank:
            self._send(f"bye {self.rank}", self._address)

    def _run(self) -> None:
        sent = 0.0
        while not self._stopped.is_set():
            if self.rank and time.monotonic() - sent >= _INTERVAL_S:
                self._send(f"here {self.rank} {socket.gethostname()} {os.getpid()}", self._address)
                sent = time.monotonic()
            self._receive()
            problem = self._problem()
            if problem and not self._stopped.is_set():
                sys.stderr.write(f"error: {problem}: the job ends\n")
                sys.stderr.flush()
                os._exit(1)

    def _receive(self) -> None:
        try:
            message, sender = self._socket.recvfrom(256)
        except (TimeoutError, socket.timeout):
            return
        except OSError:  # the peer's port is closed or the network is down: silence, which is judged by its length
            self._stopped.wait(_INTERVAL_S / 4)
            return
        words = message.decode(errors="replace").split()
        if self.rank == 0 and len(words) >= 2 and words[1].isdigit() and int(words[1]) in self._heard:
            other = int(words[1])
            if words[0] == "bye":
                del self._heard[other]
                return
            self._heard[other] = time.monotonic()
            if len(words) == 4:
                self._names[other] = f"rank {other} (process {words[3]} on {words[2]})"
            self._send(f"here 0 {socket.gethostname()} {os.getpid()}", sender)
        elif self.rank and words[:2] == ["here", "0"] and len(words) == 4:
            self._heard[0] = time.monotonic()
            self._names[0] = f"rank 0 (process {words[3]} on {words[2]})"

    def _send(self, message: str, to: tuple[str, int]) -> None:
        try:
            self._socket.sendto(message.encode(), to)
        except OSError:  # a lost link: the other side's silence tells
            return

    def _problem(self) -> str:
        if self._scheduler is not None and self._scheduler.poll() is not None:
            return f"MindSpore's scheduler is gone (exit code {self._scheduler.returncode})"
        now = time.monotonic()
        for other, heard in self._heard.items():
            if now - heard > self.timeout:
                return f"{self._names[other]} has not answered for {self.timeout:.0f} s; it hangs or its host is lost"
        return ""


def open_listener(host: str) -> socket.socket:
    """Rank 0's socket, on a free port of ``host``."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((host, 0))
    return listener
