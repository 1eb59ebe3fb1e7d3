"""Jobs that lose a part of themselves, at any time, under mpirun and msrun: they end, say why, and go on later."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rank_jobs import UNDER_MPIRUN, Job, job, pause_while_saving, resumes, under_msrun
from road_commands import Run

from covpool.checkpoints.format import read_checkpoint
from covpool.checkpoints.store import CheckpointStore

pytestmark = pytest.mark.world_size


def names(victim: str) -> str:
    """What must be said of it."""
    return "MindSpore's scheduler" if victim == "scheduler" else f"rank {victim} "


def kill_while_saving(running: Job, victim: str) -> str:
    """Wait until half of the checkpoint of step 6 is on the disk, kill; what was said to standard error."""
    saving = running.cwd / "saving"
    running.wait_for(saving.is_file)
    saving.unlink()
    running.member(victim).kill()
    said = running.end()
    folder = running.folder / "checkpoints"
    assert "epoch_0000_step_00000003.ckpt" in [p.name for p in folder.iterdir()]
    assert any("step_00000006" in p.name for p in folder.glob(".*.tmp*"))
    for path in folder.glob("[!.]*.ckpt"):
        assert read_checkpoint(path).about["step"] == 3
    newest = CheckpointStore(folder, 5).newest_valid()
    assert newest is not None and newest.about["step"] == 3
    return said


ALL = pytest.mark.only_with_all


@pytest.mark.parametrize("victim", ["scheduler", pytest.param("0", marks=ALL), pytest.param("1", marks=ALL)])
def test_killed_as_soon_as_it_is_there(victim: str, images: Path, tmp_path: Path) -> None:
    """A rank imports then, the scheduler too."""
    with job(images, tmp_path) as running:
        running.kill(victim)
        assert names(victim) in running.end()
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_killed_while_it_compiles(images: Path, tmp_path: Path) -> None:
    with job(images, tmp_path) as running:
        log = running.folder / "train.log"
        running.wait_for(lambda: log.is_file() and "global batch" in log.read_text())  # what it says last before step 1
        running.kill("1")
        assert names("1") in running.end()
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_job_goes_on_whatever_it_loses(images: Path, run: Run, tmp_path: Path) -> None:
    """It loses a rank while it saves, hangs, gets a signal, all under mpirun, and ends well under msrun."""
    variables = pause_while_saving(tmp_path, 6)
    with job(images, tmp_path, "--resume_ckpt=auto", **variables) as running:
        assert names("1") in kill_while_saving(running, "1")
        assert "nothing to resume from" in running.said
    with job(images, tmp_path, "--resume_ckpt=auto", "--rank_timeout=6") as running:
        stopped = running.at_step(5, "0")
        stopped.suspend()
        said = running.end()
        assert said.startswith(f"error: rank 0 (process {stopped.pid} on ") and "hangs: " in said
        assert "rank 1 (process " not in said, "the one that waited"
        assert "epoch_0000_step_00000003.ckpt after epoch 0 and 3 steps" in running.said
    with job(images, tmp_path, "--resume_ckpt=auto") as running:
        running.at_step(8, "1").send_signal(signal.SIGHUP)
        errors = running.end()
        assert running.process.returncode == 128 + signal.SIGHUP
        assert "stopped by SIGHUP after " in errors
    resumes(images, run, tmp_path, under_msrun())
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@ALL
def test_a_killed_scheduler_under_mpirun(images: Path, run: Run, tmp_path: Path) -> None:
    """While saving, and the restart, which ends."""
    with job(images, tmp_path, **pause_while_saving(tmp_path, 6)) as running:
        assert names("scheduler") in kill_while_saving(running, "scheduler")
    resumes(images, run, tmp_path, UNDER_MPIRUN)


@ALL
def test_a_killed_scheduler_under_msrun(images: Path, run: Run, tmp_path: Path) -> None:
    """The same; tests/runtime/test_siblings.py has all other cases."""
    with job(images, tmp_path, command=under_msrun(), **pause_while_saving(tmp_path, 6)) as running:
        kill_while_saving(running, "scheduler")
        assert "MindSpore's scheduler (process " in running.said
    resumes(images, run, tmp_path, under_msrun())
