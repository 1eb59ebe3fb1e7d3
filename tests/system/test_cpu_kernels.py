"""Training with the compiled kernels: the course of MindSpore's own, exact resume, wrong uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from road_commands import ROOT, SMALL, Run

from covpool.training.run_folder import RunFolder

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
WIDE = ["--base_width=32", "--batch_size=8", "--cpu_kernels=compiled", "--log_interval=1"]


def test_same_course_and_exact_resume(images: Path, run: Run, tmp_path: Path) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, *WIDE, f"--data_path={images}", "--epoch_size=2"]
    run([*command, "--output_path=own", "--cpu_kernels=mindspore"], cwd=tmp_path)
    run([*command, "--output_path=compiled"], cwd=tmp_path)
    # The first steps alone: rounding grows from step to step.
    own, compiled = ([r["loss"] for r in RunFolder(tmp_path / k).records("step")[:3]] for k in ("own", "compiled"))
    assert compiled == pytest.approx(own, rel=1e-3)
    first = tmp_path / "compiled" / "checkpoints" / "epoch_0001.ckpt"
    run([*command, "--output_path=resumed", f"--resume_ckpt={first}"], cwd=tmp_path)
    last = [tmp_path / name / "checkpoints" / "epoch_0002.ckpt" for name in ("compiled", "resumed")]
    assert last[0].read_bytes() == last[1].read_bytes()
