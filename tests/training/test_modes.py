"""Mixed precision and PyNative mode by their keys: the network learns, and both modes follow the same course."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *(f"--config_path={ROOT / 'config' / 'quickstart.yaml'}", "--net_name=resnet10", "--base_width=2"),
    *("--reduction_dim=4", "--class_num=2", "--train_image_size=8", "--eval_image_size=8", "--batch_size=8"),
    *("--augmentation=none", "--use_label_smooth=False", "--lr_max=0.1", "--run_eval=False", "--log_interval=1"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, horizontal and vertical stripes in noise, that cannot be confused; 32 images to train on."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for name in ("across", "down"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (8, 8, 3))
                (pixels if name == "across" else pixels.transpose(1, 0, 2))[::2] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def losses(data: Path, folder: Path, *options: str) -> list[float]:
    """Loss of every step."""
    assert cli.run(["train", *SMALL, f"--data_path={data}", f"--output_path={folder}", *options]) == 0
    return [record["loss"] for record in RunFolder(folder).records("step")]


@pytest.mark.parametrize("level", ["O1", "O2", "O3", pytest.param("auto", marks=pytest.mark.only_with_all)])
def test_mixed_precision_learns(level: str, data: Path, tmp_path: Path) -> None:
    """The loss begins near log(2) = 0.69, that of chance. MindSpore makes O2 of "auto"."""
    found = losses(data, tmp_path / "run", f"--amp_level={level}", "--epoch_size=8")
    assert len(found) == 32 and np.mean(found[:2]) > 0.4 and np.mean(found[-4:]) < 0.2, found


def test_pynative_mode_follows_the_course_of_graph_mode(data: Path, tmp_path: Path) -> None:
    found = {}
    for name, mode in (("GRAPH_MODE", ms.GRAPH_MODE), ("PYNATIVE_MODE", ms.PYNATIVE_MODE)):
        found[name] = losses(data, tmp_path / name, f"--mode_name={name}", "--epoch_size=2")
        assert ms.get_context("mode") == mode
    assert found["PYNATIVE_MODE"] == pytest.approx(found["GRAPH_MODE"], rel=1e-3)
