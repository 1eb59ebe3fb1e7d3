"""Ranks that are killed or hang, a scheduler that is killed: the job ends, says why, and goes on later."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from rank_jobs import UNDER_MPIRUN, job, resumes
from road_commands import Run

pytestmark = pytest.mark.world_size


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
        command = ["python" if word == sys.executable else word for word in UNDER_MPIRUN]
        run([*command, f"--data_path={images}", "--epoch_size=1"], cwd=tmp_path)
        assert other.process.poll() is None
        other.member("0").kill()
        other.end()
