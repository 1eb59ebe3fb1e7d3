"""Two ranks with everything on, interrupted within an epoch and after one: they end as the uninterrupted job does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from road_commands import MPIRUN, ROOT, SMALL, Run

from covpool.checkpoints.format import Checkpoint, read_checkpoint
from covpool.training.run_folder import RunFolder

pytestmark = [pytest.mark.world_size, pytest.mark.slow]
# Every part of a recipe that draws numbers or remembers something, and those that change the step.
EVERYTHING = (
    *("--optimizer=adamw", "--lr_max=0.003", "--layer_decay=0.8", "--head_lr_factor=2", "--clip_grad=1"),
    *("--ema_decay=0.9", "--batch_size=8", "--accumulate_steps=2", "--freeze=[layer1]", "--recompute=True"),
    *("--mixup=0.2", "--cutmix=1", "--drop_rate=0.1", "--drop_path_rate=0.2", "--repeated_augmentation=2"),
    *("--auto_augment=rand-m9-mstd0.5-inc1", "--random_erasing=0.5", "--vertical_flip=0.5"),
)
EXACT = ("loss", "learning_rate", "top_1_accuracy", "top_5_accuracy", "eval_loss", "num_samples")


@pytest.fixture(scope="module")
def uninterrupted(images: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of ten steps; a checkpoint of every fourth step stays."""
    work = tmp_path_factory.mktemp("ranks")
    train(images, run, work)
    names = {p.name for p in (work / "run" / "checkpoints").glob("epoch_*")}
    steps = {"epoch_0000_step_00000004.ckpt", "epoch_0000_step_00000008.ckpt", "epoch_0001_step_00000018.ckpt"}
    assert names == {*steps, "epoch_0001_step_00000014.ckpt", "epoch_0001.ckpt", "epoch_0002.ckpt"}
    return work / "run"


def train(images: Path, run: Run, work: Path, *arguments: str) -> str:
    return run(
        [
            *MPIRUN,
            "python",
            "train.py",
            f"--config_path={ROOT / 'config' / 'quickstart.yaml'}",
            *SMALL,
            f"--data_path={images}",
            "--run_distribute=True",
            "--device_num=2",
            *EVERYTHING,
            "--log_interval=1",
            "--save_checkpoint_steps=4",
            "--keep_checkpoint_max=9",
            "--output_path=run",
            *arguments,
        ],
        cwd=work,
    ).stdout


def interrupted_after(folder: Path, last: str, copy: Path) -> None:
    """A copy of a run as it was when its checkpoint ``last`` had just been written."""
    shutil.copytree(folder, copy)
    index_path = copy / "checkpoints" / "index.json"
    index = json.loads(index_path.read_text())
    place = [entry["file"] for entry in index["checkpoints"]].index(last)
    for entry in index["checkpoints"][place + 1 :]:
        (copy / "checkpoints" / entry["file"]).unlink()
    index["checkpoints"], index["last"] = index["checkpoints"][: place + 1], last
    if index["best"]["step"] > index["checkpoints"][-1]["step"]:
        index["best"] = None
        (copy / "checkpoints" / "best.ckpt").unlink()
    index_path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("epoch_0000_step_00000008.ckpt", "after epoch 0 and 8 steps"),
        ("epoch_0001.ckpt", "after epoch 1\n"),
    ],
)
def test_two_ranks_end_bit_identical(
    uninterrupted: Path, images: Path, run: Run, tmp_path: Path, last: str, said: str
) -> None:
    """After the whole epoch the index is damaged, too: it is made anew from the checkpoints beside it."""
    interrupted_after(uninterrupted, last, tmp_path / "run")
    index = tmp_path / "run" / "checkpoints" / "index.json"
    damaged = index.read_bytes()[:-50] if "step" not in last else b""
    if damaged:
        index.write_bytes(damaged)
    printed = train(images, run, tmp_path, "--resume_ckpt=auto")
    assert f"{last} {said}" in printed
    assert " M parameters of which " in printed  # part of them is frozen
    assert_same(uninterrupted, tmp_path / "run")
    assert json.loads(index.read_text())["last"] == "epoch_0002.ckpt"
    if damaged:
        assert printed.count("index.json is damaged: made anew from 3 whole checkpoints") == 1
        assert index.with_name("index.damaged-1.json").read_bytes() == damaged


def assert_same(one: Path, two: Path) -> None:
    # Within an epoch the ranks' running statistics differ: these files hold those of each rank.
    for name in ("epoch_0001_step_00000014.ckpt", "epoch_0001_step_00000018.ckpt", "epoch_0002.ckpt"):
        first, second = (read_checkpoint(folder / "checkpoints" / name) for folder in (one, two))
        assert first.about == second.about
        values = contents(first)
        assert values.keys() == contents(second).keys() and any(n.startswith("optimizer.") for n in values)
        assert any(n.endswith("moving_variance") for n in values)
        assert any(n.startswith("optimizer.average.") for n in values)
        for key, value in contents(second).items():
            assert values[key] == value, f"{name}: {key}"
        if "step" in name:
            assert first.ranks is not None and second.ranks is not None and len(first.ranks) == 2
            assert first.ranks.tobytes() == second.ranks.tobytes()
            assert first.ranks[0].tobytes() != first.ranks[1].tobytes()
        assert (one / "checkpoints" / name).read_bytes() == (two / "checkpoints" / name).read_bytes()
    for kind, keys in (("epoch", EXACT), ("step", ("loss", "learning_rate"))):
        records = [RunFolder(folder).records(kind) for folder in (one, two)]
        exact = [[(r["epoch"], r["step"], *(r[key] for key in keys)) for r in found] for found in records]
        assert exact[0] == exact[1] and len(exact[0]) == (2 if kind == "epoch" else 20)


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    found = {name: p.asnumpy().tobytes() for name, p in checkpoint.network.items()}
    return found | {f"optimizer.{name}": p.asnumpy().tobytes() for name, p in checkpoint.optimizer.items()}
