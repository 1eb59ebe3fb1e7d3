"""Watchers of ranks: what they believe of what comes over the wire, and when they call a rank lost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Callable

import psutil
import pytest

from covpool.runtime import watch
from covpool.runtime.watch import Post, Watcher, open_listener, start_watcher, stop_watcher

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process that stands for a rank."""
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


@pytest.fixture
def pair(sleeper: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Watcher, Watcher]]]:
    """Watchers of rank 0, which this process stands for, and of rank 1, in one process and with a short beat."""
    monkeypatch.setattr(watch, "_INTERVAL_S", 0.02)
    sockets: list[socket.socket] = []

    def make(timeout: float = 30.0, scheduler: int = 0) -> tuple[Watcher, Watcher]:
        sockets.extend((open_listener("127.0.0.1"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        post = Post(sockets[0].getsockname(), TOKEN)
        first = Watcher(0, 2, sockets[0], post, timeout, os.getpid(), scheduler)
        return first, Watcher(1, 2, sockets[1], post, timeout, sleeper.pid, 0)

    yield make
    for each in sockets:
        each.close()


def problems(*watchers: Watcher, seconds: float) -> list[str]:
    """What each says within some seconds, or once the first has said something: it ends the job."""
    found = [""] * len(watchers)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not any(found):
        found = [watcher.look() for watcher in watchers]
    return found


def forged(post: Post) -> list[bytes]:
    """Datagrams that no watcher of the job has sent."""
    good = post.message("bye", 1, 7)
    other_job = Post(post.address, "f" * 32)
    chance = random.Random(1)
    return [
        "here ²".encode(),
        b"bye 1",
        b"here 1 host 7",
        other_job.message("bye", 1, 7),
        other_job.message("here", 1, 7),
        good + b" ",
        good + b"\n",
        good[:-1] + "²".encode(),
        good.replace(b"bye", b"BYE"),
        good.replace(b" 1 ", b" 01 "),
        good.replace(b" 1 ", b" -1 "),
        good.replace(b" 1 ", b" 9999999999999999999999 "),
        good.replace(b" 1 ", b" 5 "),
        good.replace(b" 1 ", " \u0661 ".encode()),
        b"",
        b"\xff" * 400,
        TOKEN.encode(),
        *(chance.randbytes(chance.randrange(300)) for _ in range(300)),
        *(bytes(b ^ (chance.random() < 0.1) for b in good[:36]) + good[36:] for _ in range(300)),
    ]


def test_datagrams_of_others_change_nothing(pair: Callable[..., tuple[Watcher, Watcher]]) -> None:
    watcher, _ = pair()
    post = watcher._post
    watcher._heard[1] = watcher._ran[1] = heard = time.monotonic() - 20
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        for datagram in forged(post):
            if datagram != post.message("bye", 1, 7):
                attacker.sendto(datagram, post.address)
                watcher._receive()
        attacker.settimeout(0.1)
        with pytest.raises(TimeoutError if sys.version_info >= (3, 10) else socket.timeout):
            attacker.recv(1)  # no answer that would tell the token
    assert watcher._heard == {1: heard} and watcher._names[1] == "rank 1"


def test_a_message_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node 7 é")
    post = Post(("", 0), TOKEN)
    assert post.read(post.message("hangs", 12, 345)) == ("hangs", 12, "rank 12 (process 345 on node_7__)")


def test_ranks_that_run_are_left_alone_and_may_leave(pair: Callable[..., tuple[Watcher, Watcher]]) -> None:
    first, second = pair(timeout=0.3)
    assert problems(first, second, seconds=0.8) == ["", ""]
    assert first._names[1] == f"rank 1 (process {second.process} on {socket.gethostname()})"
    second._socket.sendto(first._post.message("bye", 1, second.process), first._post.address)
    assert problems(first, seconds=0.8) == [""]


def test_the_rank_that_hangs_is_named_and_not_the_one_that_waits_for_it(
    pair: Callable[..., tuple[Watcher, Watcher]], sleeper: psutil.Process
) -> None:
    first, second = pair(timeout=0.5)
    assert problems(first, second, seconds=0.3) == ["", ""]
    sleeper.suspend()
    of_first, of_second = problems(first, second, seconds=1.5)
    assert of_first.startswith(f"rank 1 (process {sleeper.pid} on ") and "hangs: it has been stopped" in of_first
    assert of_second == "", "rank 0 was there all the time"
    sleeper.resume()


def test_a_silent_rank_and_a_lost_scheduler_are_named(
    pair: Callable[..., tuple[Watcher, Watcher]], sleeper: psutil.Process
) -> None:
    first, second = pair(timeout=0.3)
    assert problems(first, second, seconds=0.1) == ["", ""]
    (said,) = problems(second, seconds=1.0)
    assert said.startswith(f"rank 0 (process {os.getpid()} on ") and "has not answered for 0 s" in said
    first, _ = pair(scheduler=sleeper.pid)
    assert first.look() == ""
    sleeper.kill()
    assert problems(first, seconds=5) == [f"MindSpore's scheduler (process {sleeper.pid}) is gone"]


def test_silence_while_the_watcher_was_stopped_itself_counts_for_nobody(
    pair: Callable[..., tuple[Watcher, Watcher]],
) -> None:
    first, second = pair(timeout=30)
    for watcher in (first, second):
        watcher._looked -= 600
        for times in (watcher._heard, watcher._ran):
            times.update(dict.fromkeys(times, watcher._looked - 1))
    assert problems(first, second, seconds=0.2) == ["", ""]
    assert first._heard[1] <= time.monotonic()


def test_a_watcher_process_ends_its_rank_and_with_its_rank() -> None:
    """Rank 1 of a job whose rank 0 is gone; its token is not among the arguments, which every user can read."""
    code = """
import sys
from covpool.runtime.watch import Post, start_watcher
port, timeout = int(sys.argv[1]), float(sys.argv[2])
print(start_watcher(1, 2, None, Post(("127.0.0.1", port), sys.argv[3]), timeout, 0).pid, flush=True)
sys.stdin.read()
"""

    def rank(timeout: float) -> tuple[subprocess.Popen[str], psutil.Process]:
        with open_listener("127.0.0.1") as listener:
            words = [str(listener.getsockname()[1]), str(timeout), TOKEN]
        started = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert started.stdout is not None
        return started, psutil.Process(int(started.stdout.readline()))

    lonely, watcher = rank(0.5)
    with lonely:
        assert lonely.wait(20) == -signal.SIGKILL
        watcher.kill()  # before it ends the launcher, which is this process
        assert lonely.stderr is not None
        assert (
            lonely.stderr.read()
            == "error: rank 0 has not answered for 0 s: its host or the link is lost: the job ends\n"
        )
    killed, watcher = rank(60.0)
    with killed:
        assert TOKEN not in " ".join(watcher.cmdline())
        killed.kill()
        psutil.wait_procs([watcher], timeout=10)
        assert not watcher.is_running() or watcher.status() == psutil.STATUS_ZOMBIE


def test_a_rank_says_goodbye(pair: Callable[..., tuple[Watcher, Watcher]]) -> None:
    first, _ = pair()
    mine = start_watcher(1, 2, None, first._post, 60.0, 0)
    stop_watcher(mine, 1, first._post)
    deadline = time.monotonic() + 10
    while first._heard:
        assert time.monotonic() < deadline and first.look() == ""
