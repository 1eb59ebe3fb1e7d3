"""Two ranks under mpirun and msrun on CPU: one network, every image once, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from road_commands import MPIRUN, ROOT, SMALL, Run, make_folder

from covpool.training.run_folder import RunFolder

pytestmark = pytest.mark.world_size
CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
RANKS = ("--run_distribute=True", "--device_num=2")


def parameters(checkpoint: Path) -> dict[str, np.ndarray]:
    loaded = ms.load_checkpoint(str(checkpoint))
    return {name: p.asnumpy() for name, p in loaded.items() if isinstance(p, ms.Parameter)}


def test_mpirun_trains_and_leaves_nothing_behind(images: Path, run: Run, tmp_path: Path) -> None:
    command = [*MPIRUN, "python", "train.py", CONFIG, *SMALL, *RANKS, f"--data_path={images}", "--output_path=run"]
    done = run([*command, "--batch_size=16"], cwd=tmp_path)
    assert "global batch 32 = 16 x 2 ranks" in done.stdout
    assert done.stdout.count("epoch 2/2: loss") == 1, "rank 0 alone prints"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    epochs = RunFolder(tmp_path / "run").records("epoch")
    assert [e["num_samples"] for e in epochs] == [103, 103] and epochs[1]["loss"] < epochs[0]["loss"]


def test_two_ranks_follow_the_same_course_as_one(images: Path, run: Run, tmp_path: Path) -> None:
    """With running statistics instead of batch statistics a mean over ranks is exactly a mean over the batch."""
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
    run(["python", "train.py", CONFIG, *SMALL, *exact, "--batch_size=32", "--output_path=one"], cwd=tmp_path)
    command = [*MPIRUN, "python", "train.py", CONFIG, *SMALL, *exact, *RANKS, "--batch_size=16", "--output_path=two"]
    run(command, cwd=tmp_path)
    (one,), (two,) = (RunFolder(tmp_path / name).records("epoch") for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
    first, second = (parameters(tmp_path / name / "checkpoints" / "epoch_0001.ckpt") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.startswith("optimizer."):
            continue  # the last gradients: differences of differences
        np.testing.assert_allclose(second[name], value, rtol=0, atol=1e-5 * np.abs(value).max() + 1e-5, err_msg=name)


def test_msrun(images: Path, run: Run, tmp_path: Path) -> None:
    launch = ["msrun", "--worker_num=2", "--local_worker_num=2", "--master_port=8742", "--join=True", "--log_dir=log"]
    command = [str(ROOT / "train.py"), CONFIG, *SMALL, *RANKS, f"--data_path={images}", "--output_path=run"]
    run([*launch, *command, "--batch_size=16", "--epoch_size=1"], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["num_samples"] == 103


@pytest.mark.parametrize("count", [1000, 1003])
def test_evaluation_counts_every_image_once_on_one_and_two_ranks(
    trained: Path, run: Run, tmp_path: Path, count: int
) -> None:
    folder = make_folder(tmp_path / "images", 1, count)
    command = ["python", "eval.py", CONFIG, *SMALL, f"--data_path={folder}", "--batch_size=64"]
    command.append(f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}")
    run([*command, "--result_path=one.json"], cwd=tmp_path)
    run([*MPIRUN, *command, *RANKS, "--result_path=two.json"], cwd=tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["num_samples"] == two["num_samples"] == count
    for key in ("top_1_accuracy", "top_5_accuracy", "per_class"):
        assert one[key] == two[key]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run_distribute=True", "--device_num=3"), "device_num=3, but mpirun started 2 ranks"),
        ((), "mpirun started 2 ranks, but run_distribute is False"),
    ],
)
def test_launch_and_configuration_must_agree(
    images: Path, run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    command = [*MPIRUN, "python", "train.py", CONFIG, *SMALL, *arguments, f"--data_path={images}"]
    done = run(command, cwd=tmp_path, expect=2)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_ranks_without_a_launcher(images: Path, run: Run, tmp_path: Path) -> None:
    done = run(["python", "train.py", CONFIG, *SMALL, *RANKS, f"--data_path={images}"], cwd=tmp_path, expect=2)
    assert "run_distribute=True needs a launcher: mpirun -n 2" in done.stderr
