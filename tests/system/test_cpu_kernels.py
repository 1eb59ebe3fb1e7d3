"""Training with MindSpore's own kernels; all other trainings take the compiled ones where a compiler is found."""

from __future__ import annotations

from pathlib import Path

from road_commands import ROOT, SMALL, Run

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
FEW = ["--train_images=48", "--batch_size=8"]  # the last two stages take Winograd's kernels
OWN = "--cpu_kernels=mindspore"


def test_exact_resume_and_a_change_of_kernels(images: Path, here: Run, tmp_path: Path) -> None:
    command = ["train.py", CONFIG, *SMALL, *FEW, f"--data_path={images}"]
    here([*command, OWN, "--output_path=whole"], cwd=tmp_path)
    first = f"--resume_ckpt={tmp_path / 'whole' / 'checkpoints' / 'epoch_0001.ckpt'}"
    same = here([*command, OWN, "--output_path=resumed", first], cwd=tmp_path)
    last = [tmp_path / name / "checkpoints" / "epoch_0002.ckpt" for name in ("whole", "resumed")]
    assert last[0].read_bytes() == last[1].read_bytes()
    assert "other CPU kernels" not in same.stderr + same.stdout
    other = here([*command, "--cpu_kernels=compiled", "--output_path=other", first], cwd=tmp_path)
    assert "was trained with other CPU kernels (mindspore, here kernels-" in other.stderr + other.stdout
