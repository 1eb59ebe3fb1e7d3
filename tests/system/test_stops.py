"""Trainings told to stop twice, or with gradients that overflow: what stays, and what goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest
from rank_jobs import pause_while_saving
from road_commands import ROOT, SMALL, Run

from covpool.checkpoints.store import CheckpointStore
from covpool.training.run_folder import RunFolder

OPTIONS = (f"--config_path={ROOT / 'config' / 'quickstart.yaml'}", *SMALL, "--output_path=run", "--log_interval=1")


def train(images: Path, *arguments: str) -> list[str]:
    return ["python", "train.py", *OPTIONS, f"--data_path={images}", *arguments]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the training ended or hung before its time"
        time.sleep(0.02)


def test_a_second_signal_stops_at_once(images: Path, here: Run, tmp_path: Path) -> None:
    """It comes while the checkpoint that the first one asked for is being written."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_"))}
    options = ("--save_checkpoint_steps=3", "--epoch_size=1")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *train(images, *options)[2:]],
        cwd=tmp_path,
        env={**env, **pause_while_saving(tmp_path, 4, 5, 6)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        folder = tmp_path / "run" / "checkpoints"
        wait_for((folder / "index.json").is_file, process)
        process.send_signal(signal.SIGUSR1)
        wait_for((tmp_path / "saving").is_file, process)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        assert process.stderr is not None and process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
    newest = CheckpointStore(folder, 5).newest_valid()
    assert newest is not None and newest.about["step"] == 3 and list(folder.glob(".*.tmp*"))
    done = here(train(images, *options, "--resume_ckpt=auto"), cwd=tmp_path)
    assert "epoch_0000_step_00000003.ckpt after epoch 0 and 3 steps" in done.stdout
    assert not list(folder.glob(".*")) and (folder / "epoch_0001.ckpt").is_file()


@pytest.mark.parametrize("due", ["--save_checkpoint_steps=1", "--batch_size=320"], ids=["step", "epoch"])
def test_gradients_that_overflow_leave_no_checkpoint(images: Path, here: Run, tmp_path: Path, due: str) -> None:
    """The loss of that step is finite, and no other comes before the checkpoint is due."""
    done = here(train(images, "--amp_level=O2", "--loss_scale=1e38", due), cwd=tmp_path, expect=1)
    assert [r["step"] for r in RunFolder(tmp_path / "run").records("step")] == [1]
    assert (
        done.stderr.startswith("error: parameters are NaN or infinite after step 1 (") and done.stderr.count("\n") == 1
    )
    assert not list((tmp_path / "run").rglob("*.ckpt"))
