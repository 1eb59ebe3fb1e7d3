"""Parts of a job that are killed before its first step or while it saves, under mpirun and msrun."""

from __future__ import annotations

from pathlib import Path

import pytest
from rank_jobs import TRAIN, UNDER_MPIRUN, Job, job, pause_while_saving, resumes, under_msrun
from road_commands import Run

from covpool.checkpoints.format import read_checkpoint
from covpool.checkpoints.store import CheckpointStore
from covpool.training.run_folder import RunFolder

pytestmark = pytest.mark.world_size


def names(victim: str) -> str:
    """What must be said of it."""
    return "MindSpore's scheduler" if victim == "scheduler" else f"rank {victim} "


def wait_until_it_compiles(running: Job) -> None:
    """Wait until the training has said all that it says before its first step."""
    log = running.folder / "train.log"
    running.wait_for(lambda: log.is_file() and "global batch" in log.read_text())


def test_killed_at_the_start_under_mpirun(images: Path, run: Run, tmp_path: Path) -> None:
    for victim in ("0", "1", "scheduler"):
        with job(images, tmp_path) as running:  # as soon as it is there: a rank imports, the scheduler too
            running.kill(victim)
            assert names(victim) in running.end(), f"{victim} importing"
    for victim in ("0", "1"):
        with job(images, tmp_path, "--resume_ckpt=auto") as running:
            wait_until_it_compiles(running)
            running.kill(victim)
            assert names(victim) in running.end(), f"{victim} compiling"
        (tmp_path / "run" / "train.log").unlink()
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    words = ["python", *TRAIN, f"--data_path={images}", "--resume_ckpt=auto", "--epoch_size=1"]
    done = run([*UNDER_MPIRUN[: -len(TRAIN) - 1], *words], cwd=tmp_path)
    assert "nothing to resume from" in done.stdout
    assert [e["epoch"] for e in RunFolder(tmp_path / "run").records("epoch")] == [1]


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


def test_killed_while_saving_under_mpirun(images: Path, run: Run, tmp_path: Path) -> None:
    variables = pause_while_saving(tmp_path, 6)
    for number, victim in enumerate(("1", "scheduler", "0")):
        with job(images, tmp_path, "--resume_ckpt=auto", **variables) as running:
            assert names(victim) in kill_while_saving(running, victim)
        assert ("epoch_0000_step_00000003.ckpt after epoch 0 and 3 steps" in running.said) == (number > 0)
    resumes(images, run, tmp_path)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_killed_scheduler_under_msrun(images: Path, run: Run, tmp_path: Path) -> None:
    """At the start, while saving, and the restart."""
    with job(images, tmp_path, command=under_msrun()) as running:
        running.kill("scheduler")
        running.end()
        assert "MindSpore's scheduler (process " in running.said
    with job(images, tmp_path, command=under_msrun(), **pause_while_saving(tmp_path, 6)) as running:
        kill_while_saving(running, "scheduler")
        assert "MindSpore's scheduler (process " in running.said
    resumes(images, run, tmp_path, under_msrun())
