"""A job notices when one of its ranks, or its scheduler, is no longer there.

``mpirun`` ends a job when one of its processes dies. It does not see a process that hangs (stopped, or on a host that
was cut off), and MindSpore's collectives then wait forever. So beside every rank runs a watcher, a small process of its
own: a rank that imports or compiles holds Python's lock for a long time. Watchers say over UDP once a second that their
rank is there, rank 0's answers, and one that misses the other side for too long says so and ends its rank; ``mpirun``
ends the others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

_INTERVAL_S = 1.0
_LAUNCHER_S = 10.0  # what mpirun is given to end a job of which a rank was killed


class Watcher:
    """Watches the other ranks (rank 0) or rank 0 (every other), for the rank whose process started it.

    Args:
        rank: That rank.
        size: Number of ranks.
        listener: Rank 0's socket; a fresh one on other ranks.
        address: Where rank 0 listens.
        timeout: Seconds of silence after which a rank counts as lost.
        process: Process of the rank.
        scheduler: Process of MindSpore's scheduler; 0 where it is not this rank's.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        listener: socket.socket,
        address: tuple[str, int],
        timeout: float,
        process: int,
        scheduler: int,
    ) -> None:
        self.rank, self.timeout, self.process, self.scheduler = rank, timeout, process, scheduler
        self._address, self._socket = address, listener
        self._socket.settimeout(_INTERVAL_S / 4)
        self._names = {other: f"rank {other}" for other in range(size)}
        watched = range(1, size) if rank == 0 else (0,)
        self._heard = dict.fromkeys(watched, time.monotonic())
        self._message = f"here {rank} {socket.gethostname()} {process}"

    def run(self) -> None:
        """Watch until the rank ends, or end it."""
        sent = 0.0
        while True:
            if self.rank and time.monotonic() - sent >= _INTERVAL_S and not self._hangs():
                self._send(self._message, self._address)
                sent = time.monotonic()
            self._receive()
            problem = self._problem()
            if problem:
                sys.stderr.write(f"error: {problem}: the job ends\n")
                sys.stderr.flush()
                self._end()
                return

    def _end(self) -> None:
        """End the rank, then its launcher (mpirun, or its daemon on another host) if that cannot end by itself.

        It tries to tell the other hosts, and waits for an answer that a lost host never gives.
        """
        launcher = int(process_stat(self.process)[1])
        die_with_parent(signal_number=0)
        os.kill(self.process, signal.SIGKILL)
        deadline = time.monotonic() + _LAUNCHER_S
        while time.monotonic() < deadline:
            if process_state(launcher) in "ZX":
                return
            time.sleep(_INTERVAL_S / 4)
        os.kill(launcher, signal.SIGKILL)

    def _hangs(self) -> bool:
        return process_state(self.process) in "Tt"

    def _receive(self) -> None:
        try:
            message, sender = self._socket.recvfrom(256)
        except OSError:  # nothing within the interval, or no way there: silence, which is judged by its length
            return
        words = message.decode(errors="replace").split()
        if len(words) < 2 or not words[1].isdigit() or int(words[1]) not in self._heard:
            return
        other = int(words[1])
        if words[0] == "bye":
            del self._heard[other]
            return
        self._heard[other] = time.monotonic()
        if len(words) == 4:
            self._names[other] = f"rank {other} (process {words[3]} on {words[2]})"
        if self.rank == 0 and not self._hangs():
            self._send(self._message, sender)

    def _send(self, message: str, to: tuple[str, int]) -> None:
        try:
            self._socket.sendto(message.encode(), to)
        except OSError:  # a lost link: the other side's silence tells
            return

    def _problem(self) -> str:
        if self.scheduler and process_state(self.scheduler) in "ZX":
            return f"MindSpore's scheduler (process {self.scheduler}) is gone"
        now = time.monotonic()
        for other, heard in self._heard.items():
            if now - heard > self.timeout:
                return f"{self._names[other]} has not answered for {self.timeout:.0f} s; it hangs or its host is lost"
        return ""


def process_stat(process: int) -> list[str]:
    """What the kernel says of a process from its state on; ['X', '0'] if there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - quick to load
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def process_state(process: int) -> str:
    """The kernel's letter for the state of a process: T stopped, Z dead but not waited for, X gone."""
    return process_stat(process)[0]


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends; 0 takes it back."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal_number)


def open_listener(host: str) -> socket.socket:
    """Rank 0's socket, on a free port of ``host``."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((host, 0))
    return listener


def start_watcher(
    rank: int, size: int, listener: socket.socket | None, address: tuple[str, int], timeout: float, scheduler: int
) -> subprocess.Popen[bytes]:
    """Start the watcher of this process's rank; it ends with this process."""
    own = listener or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    values = (rank, size, own.fileno(), address[0], address[1], timeout, os.getpid(), scheduler)
    with own:
        return subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, *map(str, values)],
            pass_fds=(own.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def stop_watcher(watcher: subprocess.Popen[bytes], rank: int, address: tuple[str, int]) -> None:
    """End the watcher of this rank: the job is done, and its silence means nothing any more."""
    watcher.kill()
    watcher.wait()
    if rank:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(f"bye {rank}".encode(), address)


def main(arguments: list[str]) -> None:
    """Run as the watcher that :func:`start_watcher` starts."""
    rank, size, descriptor, host, port, timeout, process, scheduler = arguments
    listener = socket.socket(fileno=int(descriptor))
    address = (host, int(port))
    Watcher(int(rank), int(size), listener, address, float(timeout), int(process), int(scheduler)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
