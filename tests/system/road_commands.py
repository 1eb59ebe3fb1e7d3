"""What the tests of the commands share: the repository, a small network, image folders."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"
# A network of a few thousand parameters: these tests are about the road, not about accuracy.
SMALL = ("--net_name=resnet10", "--base_width=8", "--reduction_dim=16", "--epoch_size=2", "--log_interval=5")
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def make_folder(root: Path, train: int, val: int) -> Path:
    """An image folder with ``train`` images a class, and ``val`` images in all, spread over the classes."""
    classes = sorted(p.name for p in (SAMPLE / "train").iterdir())
    for index, name in enumerate(classes):
        files = sorted((SAMPLE / "train" / name).iterdir()) + sorted((SAMPLE / "val" / name).iterdir())
        share = val // len(classes) + (index < val % len(classes))
        for split, chosen in (("train", files[:train]), ("val", files[-share:])):
            (root / split / name).mkdir(parents=True)
            for file in chosen:
                shutil.copyfile(file, root / split / name / file.name)
    return root
