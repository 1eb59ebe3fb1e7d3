"""Training with the compiled kernels: exact resume. tests/kernels/test_apply.py has the course of MindSpore's own."""

from __future__ import annotations

from pathlib import Path

from road_commands import ROOT, SMALL, Run

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
FEW = ["--train_images=48", "--batch_size=8", "--cpu_kernels=compiled"]  # the last two stages take Winograd's kernels


def test_exact_resume(images: Path, here: Run, tmp_path: Path) -> None:
    command = ["train.py", CONFIG, *SMALL, *FEW, f"--data_path={images}"]
    here([*command, "--output_path=whole"], cwd=tmp_path)
    first = tmp_path / "whole" / "checkpoints" / "epoch_0001.ckpt"
    here([*command, "--output_path=resumed", f"--resume_ckpt={first}"], cwd=tmp_path)
    last = [tmp_path / name / "checkpoints" / "epoch_0002.ckpt" for name in ("whole", "resumed")]
    assert last[0].read_bytes() == last[1].read_bytes()
