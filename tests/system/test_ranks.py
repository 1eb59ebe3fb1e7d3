"""Two ranks under mpirun on CPU: one network, every image once, nothing left behind, beside another job."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from rank_jobs import job
from road_commands import MPIRUN, ROOT, SMALL, Run, make_folder

from covpool.training.run_folder import RunFolder

pytestmark = pytest.mark.world_size
CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
RANKS = ("--run_distribute=True", "--device_num=2")


def parameters(checkpoint: Path) -> dict[str, np.ndarray]:
    loaded = ms.load_checkpoint(str(checkpoint))
    return {name: p.asnumpy() for name, p in loaded.items() if isinstance(p, ms.Parameter)}


def test_two_ranks_follow_the_same_course_as_one_beside_another_job(
    images: Path, run: Run, here: Run, tmp_path: Path
) -> None:
    """With running statistics instead of batch statistics a mean over ranks is exactly a mean over the batch."""
    (tmp_path / "other").mkdir()
    exact = [
        "--pooling=gcp",
        "--augmentation=none",
        "--freeze_bn=True",
        "--momentum=0",
        "--weight_decay=0",
        "--lr_max=0.05",
        "--epoch_size=1",
        f"--data_path={images}",
    ]
    here(["train.py", CONFIG, *SMALL, *exact, "--batch_size=32", "--output_path=one"], cwd=tmp_path)
    command = [*MPIRUN, "python", "train.py", CONFIG, *SMALL, *exact, *RANKS, "--batch_size=16", "--output_path=two"]
    with job(images, tmp_path / "other", "--epoch_size=50") as other:
        other.wait_for_step(1)
        done = run(command, cwd=tmp_path)
        assert other.process.poll() is None
        other.member("0").kill()
        assert "rank 0 " in other.end()
    assert "global batch 32 = 16 x 2 ranks" in done.stdout
    assert done.stdout.count("epoch 1/1: loss") == 1, "rank 0 alone prints"
    assert {p.name for p in tmp_path.iterdir()} == {"one", "two", "other"}
    (one,), (two,) = (RunFolder(tmp_path / name).records("epoch") for name in ("one", "two"))
    assert two["num_samples"] == 103
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
    assert two["training_accuracy"] == pytest.approx(one["training_accuracy"], abs=0.01)
    first, second = (parameters(tmp_path / name / "checkpoints" / "epoch_0001.ckpt") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.startswith("optimizer."):
            continue  # the last gradients: differences of differences
        np.testing.assert_allclose(second[name], value, rtol=0, atol=1e-5 * np.abs(value).max() + 1e-5, err_msg=name)


def test_evaluation_counts_every_image_once_on_one_and_two_ranks(
    trained: Path, run: Run, here: Run, tmp_path: Path
) -> None:
    count = 203  # odd, and no multiple of the batch
    folder = make_folder(tmp_path / "images", 1, count)
    command = ["python", "eval.py", CONFIG, *SMALL, f"--data_path={folder}", "--batch_size=64"]
    command.append(f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}")
    here([*command, "--result_path=one.json"], cwd=tmp_path)
    run([*MPIRUN, *command, *RANKS, "--result_path=two.json"], cwd=tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["num_samples"] == two["num_samples"] == count
    assert one["mistakes"] and sum(map(sum, one["confusion_matrix"])) == count
    assert [m["image"] for m in one["mistakes"]] == [m["image"] for m in two["mistakes"]]
    for key in ("top_1_accuracy", "top_5_accuracy", "per_class", "classes", "confusion_matrix"):
        assert one[key] == two[key]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_launch_and_configuration_must_agree(images: Path, run: Run, tmp_path: Path) -> None:
    train = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}"]
    for command, message in (
        ([*MPIRUN, *train, RANKS[0], "--device_num=3"], "device_num=3, but mpirun started 2 ranks"),
        ([*MPIRUN, *train], "mpirun started 2 ranks, but run_distribute is False"),
        ([*train, *RANKS], "run_distribute=True needs a launcher: mpirun -n 2"),
    ):
        assert message in run(command, cwd=tmp_path, expect=2).stderr
    assert not list(tmp_path.iterdir())


def test_the_launch_script_says_what_it_lacks(tmp_path: Path) -> None:
    for tool in ("bash", "sed", "id", "nproc", "dirname", "python3"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    script = str(ROOT / "scripts" / "run_distributed.sh")
    for words, code, message in (
        (("2", "c.yaml", "d"), 1, "error: mpirun is not on the PATH: activate the environment"),
        (("two", "c.yaml", "d"), 2, "error: N = two: must be a whole number"),
        (("2",), 2, "Usage: scripts/run_distributed.sh N CONFIG DATA_PATH"),
    ):
        done = subprocess.run(
            ["bash", script, *words], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == code and message in done.stdout + done.stderr
