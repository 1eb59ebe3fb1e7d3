"""Images that are damaged, too few, or all of one class, as the commands meet them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from road_commands import MPIRUN, ROOT, SMALL, Run, make_folder

from src.training.run_folder import RunFolder

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
TRAIN = ["train.py", CONFIG, *SMALL, "--output_path=run", "--epoch_size=1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """80 training and 20 validation images."""
    return make_folder(tmp_path / "data", 8, 20)


@pytest.fixture
def fails(run: Run, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail; its one line on standard error."""

    def fails(*command: str) -> str:
        done = run(command, cwd=tmp_path, expect=None)
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        return lines[0]

    return fails


def test_a_damaged_image_stops_the_training_by_name(data: Path, fails: Callable, tmp_path: Path) -> None:
    victim = sorted((data / "train" / "bag").iterdir())[3]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    line = fails("python", *TRAIN, f"--data_path={data}", "--batch_size=8")
    assert line == f"error: damaged image {victim}: the checksum of its IDAT chunk is wrong"
    assert not list((tmp_path / "run").rglob("*.ckpt")) and sorted(p.name for p in tmp_path.iterdir()) == [
        "data",
        "run",
    ]


def test_a_damaged_image_stops_the_evaluation_by_name(data: Path, trained: Path, fails: Callable) -> None:
    victim = sorted((data / "val" / "coat").iterdir())[0]
    victim.write_bytes(b"no image")
    checkpoint = trained / "checkpoints" / "best.ckpt"
    options = [CONFIG, *SMALL, f"--data_path={data}", f"--checkpoint_file_path={checkpoint}"]
    assert fails("python", "eval.py", *options) == f"error: damaged image {victim}: the file is no image"


def damage(data: Path) -> list[Path]:
    """Damage 3 training images and 1 of validation, each in another way."""
    victims = [sorted((data / "train" / name).iterdir())[2] for name in ("bag", "coat", "dress")]
    victims.append(sorted((data / "val" / "bag").iterdir())[0])
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:-30])
    victims[2].write_bytes(b"<html>")
    victims[3].write_bytes(b"\x89PNG\r\n\x1a\n")
    return victims


def test_bad_images_are_skipped_counted_and_named(data: Path, run: Run, tmp_path: Path) -> None:
    victims = damage(data)
    options = [f"--data_path={data}", "--batch_size=7", "--bad_images=skip"]
    done = run(["python", *TRAIN, *options], cwd=tmp_path)
    log = (tmp_path / "run" / "train.log").read_text()
    assert all(f"image {victim}: " in log for victim in victims), done.stdout
    assert "77 training images" in done.stdout
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 11 and epoch["num_samples"] == 19


@pytest.mark.world_size
def test_all_ranks_skip_the_same_images(data: Path, run: Run, tmp_path: Path) -> None:
    """And of the two images of val/ one is left: fewer than ranks."""
    damage(data)
    for folder in (data / "val").iterdir():
        if folder.name != "bag":
            shutil.rmtree(folder)
    options = [f"--data_path={data}", "--batch_size=7", "--bad_images=skip"]
    options += ["--run_distribute=True", "--device_num=2"]
    run([*MPIRUN, "python", *TRAIN, *options], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 77 // 14 and epoch["num_samples"] == 1


def test_a_clean_list_trains_without_the_bad_images(data: Path, run: Run, tmp_path: Path) -> None:
    damage(data)
    check = ["python", str(ROOT / "scripts" / "check_dataset.py"), "--data_path", str(data)]
    done = run([*check, "--write_clean_list", "clean.txt"], cwd=tmp_path, expect=1)
    assert done.stdout.count("problem: ") == 4
    run(["python", *TRAIN, f"--data_path={data}", "--batch_size=7", "--image_list=clean.txt"], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 11 and epoch["num_samples"] == 19


def test_fewer_images_than_a_batch(data: Path, fails: Callable) -> None:
    line = fails("python", *TRAIN, f"--data_path={data}", "--batch_size=81")
    assert "80 images are fewer than 81 per rank x 1 rank(s) = 81" in line


def test_one_class_only(data: Path, run: Run, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for folder in (data / split).iterdir():
            if folder.name != "bag":
                shutil.rmtree(folder)
    options = [f"--data_path={data}", "--batch_size=4", "--class_num=1", "--use_label_smooth=False"]
    run(["python", *TRAIN, *options], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["loss"] == 0 and epoch["top_1_accuracy"] == 1
