"""Under msrun, whatever part of a job is lost: the rest ends, and its name is said. With processes that only wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

import psutil
import pytest

from covpool.runtime.siblings import follow_msrun

# As msrun starts a job: the scheduler, then each rank with a tail of its log. Ends when all have ended.
MSRUN = """
import os, subprocess, sys
def start(role, rank):
    env = {**os.environ, "MS_ROLE": role, "MS_NODE_ID": rank, "MS_WORKER_NUM": "2"}
    with open(f"{role}{rank}.log", "w") as log:
        return subprocess.Popen([sys.executable, "job.py"], env=env, stdout=log, stderr=log)
scheduler = start("MS_SCHED", "")
ranks = []
for rank in "01":
    ranks.append(start("MS_WORKER", rank))
    subprocess.Popen(["tail", "-f", f"MS_WORKER{rank}.log"], env={**os.environ, "MS_ROLE": "MS_WORKER"})
print("started", flush=True)
if "True" in " ".join(sys.argv):
    for process in (*ranks, scheduler):
        process.wait()
"""
JOB = """
import sys, time
from covpool.runtime.siblings import follow_msrun
if {delay}:
    time.sleep({delay})
follow_msrun(grace=0.5)
time.sleep({seconds})
"""


class Job:
    """What the msrun above has started."""

    def __init__(self, folder: Path, *arguments: str, seconds: float = 60, delay: float = 0) -> None:
        root = str(Path(__file__).resolve().parents[2])
        (folder / "msrun").write_text(MSRUN)
        (folder / "job.py").write_text(JOB.format(root=root, seconds=seconds, delay=delay))
        self.folder = folder
        self.launcher = subprocess.Popen(
            [sys.executable, "msrun", *arguments, "job.py"], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        assert self.launcher.stdout is not None and self.launcher.stdout.readline() == "started\n"
        self.started = self._processes(lambda _: True)

    def _processes(self, chosen: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        """What the job has running of a kind."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # one that ends while it is looked at
                if process.cwd() == str(self.folder) and process.pid != self.launcher.pid and chosen(process):
                    found.append(process)
        return found

    def member(self, role: str, rank: str = "") -> psutil.Process:
        for process in self.started:
            with suppress(psutil.Error):  # one that was killed
                variables, is_job = process.environ(), process.cmdline()[1:] == ["job.py"]
                if is_job and (variables["MS_ROLE"], variables["MS_NODE_ID"]) == (role, rank):
                    return process
        raise AssertionError(f"no {role} {rank}")

    def watched(self, count: int = 3) -> None:
        """Wait until each process has its watcher."""
        self.until(lambda: len(self.watchers()) == count)
        time.sleep(0.6)

    def watchers(self) -> list[psutil.Process]:
        return self._processes(lambda p: "-S" in p.cmdline())

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def is_gone(self) -> bool:
        return not self._processes(lambda p: p.status() != psutil.STATUS_ZOMBIE and p.name() != "tail")

    def said(self, role: str, rank: str = "") -> str:
        return (self.folder / f"{role}{rank}.log").read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*arguments: str, **options: float) -> Job:
        jobs.append(Job(tmp_path, *arguments, **options))
        return jobs[-1]

    yield start
    for job in jobs:
        for process in [*job.started, *job.watchers()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        job.launcher.kill()
        job.launcher.communicate()


WAITS = ("--worker_num=2", "--local_worker_num=2", "--join=True")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_lost_rank_ends_the_scheduler(start: Callable[..., Job], rank: str) -> None:
    job = start(*WAITS)
    job.watched()
    victim, other = job.member("MS_WORKER", rank), job.member("MS_WORKER", str(1 - int(rank)))
    scheduler = job.member("MS_SCHED")
    victim.kill()
    job.until(lambda: scheduler.status() == psutil.STATUS_ZOMBIE)
    assert job.said("MS_SCHED") == f"ERROR: rank {rank} (process {victim.pid}) is gone: the job ends\n"
    assert other.is_running()  # left to msrun


def test_a_lost_scheduler_ends_the_ranks(start: Callable[..., Job]) -> None:
    job = start(*WAITS)
    job.watched()
    scheduler = job.member("MS_SCHED")
    scheduler.kill()
    job.until(job.is_gone)
    for rank in "01":
        said = job.said("MS_WORKER", rank)
        assert said == f"ERROR: MindSpore's scheduler (process {scheduler.pid}) is gone: the job ends\n"


def test_a_scheduler_that_was_never_seen_is_missed(start: Callable[..., Job]) -> None:
    job = start(*WAITS, delay=1)
    job.member("MS_SCHED").kill()
    job.until(job.is_gone)
    assert "MindSpore's scheduler (process " in job.said("MS_WORKER", "0")


@pytest.mark.parametrize("ranks", ["0", "1", "01"])
def test_ranks_that_were_never_seen_are_missed(start: Callable[..., Job], ranks: str) -> None:
    job = start(*WAITS, delay=1)
    for rank in ranks:
        job.member("MS_WORKER", rank).kill()
    job.until(lambda: job.said("MS_SCHED"))
    names = ", ".join(f"rank {rank}" for rank in ranks)
    assert job.said("MS_SCHED") == f"ERROR: {names} ended at the start: the job ends\n"


def test_a_lost_launcher_ends_everything(start: Callable[..., Job]) -> None:
    job = start("--join", "True", "--worker_num=2")
    job.watched()
    job.launcher.kill()
    job.launcher.wait()
    job.until(lambda: job.is_gone() and not any(p.is_running() for p in job.started))
    assert f"msrun (process {job.launcher.pid}) is gone" in job.said("MS_SCHED")


def test_a_job_that_ends_by_itself_is_left_alone(start: Callable[..., Job]) -> None:
    job = start(*WAITS, seconds=2)
    job.watched()
    assert job.launcher.wait(20) == 0
    job.until(job.is_gone)
    assert not any(job.said(*who) for who in (("MS_SCHED",), ("MS_WORKER", "0"), ("MS_WORKER", "1")))


def test_an_msrun_that_does_not_wait_is_not_followed(start: Callable[..., Job]) -> None:
    job = start("--worker_num=2", seconds=2)
    assert job.launcher.wait(20) == 0
    time.sleep(1)
    assert not job.watchers() and all(job.member(*who).is_running() for who in (("MS_SCHED",), ("MS_WORKER", "0")))


@pytest.mark.parametrize("role", [None, "MS_WORKER"])
def test_other_launchers_are_not_followed(monkeypatch: pytest.MonkeyPatch, role: Optional[str]) -> None:
    monkeypatch.delenv("MS_ROLE", raising=False)
    if role:
        monkeypatch.setenv("MS_ROLE", role)
    before = psutil.Process(os.getpid()).children()
    follow_msrun()
    assert psutil.Process(os.getpid()).children() == before
