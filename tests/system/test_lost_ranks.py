"""Ranks that are killed or hang, a scheduler that is killed: the job ends, says why, and goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from road_commands import MPIRUN, ROOT, SMALL, Run

from src.training.run_folder import RunFolder

pytestmark = pytest.mark.world_size
COMMAND = (
    *MPIRUN,
    sys.executable,
    str(ROOT / "train.py"),
    f"--config_path={ROOT / 'config' / 'quickstart.yaml'}",
    *SMALL,
    "--run_distribute=True",
    "--device_num=2",
    "--batch_size=16",
    "--log_interval=1",
    "--save_checkpoint_steps=3",
    "--output_path=run",
)


class Job:
    """A running job and its processes."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder
        self.family: list[psutil.Process] = []

    def wait_for_step(self, step: int) -> None:
        log, deadline = self.folder / "metrics.jsonl", time.monotonic() + 120
        while not (log.is_file() and f'"step": {step},' in log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, "ended or hung before its time"
            time.sleep(0.05)

    def member(self, role: str) -> psutil.Process:
        """'0', '1' (ranks) or 'scheduler'."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        for process in self.family:
            variables = process.environ()
            name = "scheduler" if variables.get("MS_ROLE") == "MS_SCHED" else variables.get("OMPI_COMM_WORLD_RANK")
            if name == role and not any(word.endswith("watch.py") for word in process.cmdline()):
                return process
        raise AssertionError(f"no {role} among {self.family}")

    def end(self, seconds: float = 60) -> str:
        """Wait for the end of all processes; what was written to standard error."""
        errors = self.process.communicate(timeout=seconds)[1]
        alive = psutil.wait_procs(self.family, timeout=10)[1]
        assert not alive, f"left behind: {alive}"
        assert self.process.returncode != 0
        return errors


@contextmanager
def job(images: Path, cwd: Path, *arguments: str) -> Iterator[Job]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_"))}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    process = subprocess.Popen(
        [*COMMAND, f"--data_path={images}", *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Job(process, cwd / "run")
    try:
        yield running
    finally:
        for left in [*running.family, psutil.Process(process.pid)] if process.poll() is None else running.family:
            if left.is_running():
                left.kill()
        process.communicate()


def resumes(images: Path, run: Run, cwd: Path) -> None:
    command = [word if word != sys.executable else "python" for word in COMMAND]
    done = run([*command, f"--data_path={images}", "--resume_ckpt=auto"], cwd=cwd)
    assert "resumed from" in done.stdout
    assert [e["epoch"] for e in RunFolder(cwd / "run").records("epoch")] == [1, 2]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_rank_ends_the_job_which_goes_on_later(images: Path, run: Run, tmp_path: Path, rank: str) -> None:
    with job(images, tmp_path) as running:
        running.wait_for_step(5)
        running.member(rank).kill()
        assert f"rank {rank}" in running.end()
    resumes(images, run, tmp_path)


def test_a_killed_scheduler_ends_the_job(images: Path, tmp_path: Path) -> None:
    with job(images, tmp_path) as running:
        running.wait_for_step(3)
        running.member("scheduler").kill()
        assert "MindSpore's scheduler (process " in running.end()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_hanging_rank_is_named(images: Path, tmp_path: Path, rank: str) -> None:
    with job(images, tmp_path, "--rank_timeout=10") as running:
        running.wait_for_step(3)
        stopped = running.member(rank)
        stopped.suspend()
        assert f"rank {rank} (process {stopped.pid} on " in running.end()


def test_a_signal_to_one_rank_stops_all_after_the_same_step(images: Path, run: Run, tmp_path: Path) -> None:
    with job(images, tmp_path) as running:
        running.wait_for_step(4)
        running.member("1").send_signal(signal.SIGUSR1)
        errors = running.end()
        assert running.process.returncode == 128 + signal.SIGUSR1
        assert "stopped by SIGUSR1 after step " in errors
    resumes(images, run, tmp_path)


def test_two_jobs_at_once_do_not_meet(images: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with job(images, tmp_path / "other", "--epoch_size=50") as other:
        other.wait_for_step(1)
        command = [word if word != sys.executable else "python" for word in COMMAND]
        run([*command, f"--data_path={images}", "--epoch_size=1"], cwd=tmp_path)
        assert other.process.poll() is None
        other.member("0").kill()
        other.end()
