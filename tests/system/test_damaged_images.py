"""Images that are damaged, too few, or all of one class, as the commands meet them."""

from __future__ import annotations

import io
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from road_commands import MPIRUN, ROOT, SMALL, Run, make_folder

from covpool.training.run_folder import RunFolder

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
    check = ["covpool", "check-data", "--data_path", str(data)]
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


@pytest.mark.world_size
def test_fewer_images_than_ranks(run: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 1, 10)
    for folder in (tmp_path / "data" / "train").iterdir():
        if folder.name != "bag":
            shutil.rmtree(folder)
            shutil.rmtree(tmp_path / "data" / "val" / folder.name)
    options = ["--data_path=data", "--batch_size=1", "--class_num=1", "--run_distribute=True", "--device_num=2"]
    done = run([*MPIRUN, "python", *TRAIN, *options], cwd=tmp_path, expect=1)
    assert "1 images are fewer than 1 per rank x 2 rank(s) = 2" in done.stderr
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def encoded(kind: str, mode: str = "RGB", pictures: int = 1) -> bytes:
    """An image, or an animation, of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (pictures, 28, 28, 3), dtype=np.uint8)
    first, *others = (Image.fromarray(picture).convert(mode) for picture in pixels)
    if mode == "I;16":
        first = Image.fromarray(pixels[0, :, :, 0].astype(np.uint16) * 257)
    stream = io.BytesIO()
    first.save(stream, kind, **({"save_all": True, "append_images": others} if others else {}))
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 30 000 x 30 000 pixels."""
    data = encoded("PNG")
    header = (30_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:]


GOOD = {
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "palette.png": encoded("PNG", "P"),
    "alpha.png": encoded("PNG", "RGBA"),
    "sixteen bits.png": encoded("PNG", "I;16"),
    "animated.png": encoded("PNG", pictures=3),
    "é猫🐈.png": encoded("PNG"),
}
BAD = {
    "cut.jpg": (encoded("JPEG")[:-90], "damaged image"),
    "empty.png": (b"", "damaged image"),
    "text.png": (b"<html>", "damaged image"),
    "gif.png": (encoded("GIF", pictures=3), "unsupported image"),
    "bomb.png": (bomb(), "too large image"),
    "secret.png": (encoded("PNG"), "cannot read image"),
}
# Lets file permissions count for root too, then becomes the command that is given.
WITHOUT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert not ctypes.CDLL(None).prctl(24, capability, 0, 0, 0), "PR_CAPBSET_DROP"
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.world_size
def test_every_kind_of_image_on_two_ranks(data: Path, run: Run, tmp_path: Path) -> None:
    """What is odd is trained on, what is bad is left out, counted and named, or stops the training by its name."""
    folder = data / "train" / "bag"
    for name, content in {**GOOD, **{name: content for name, (content, _) in BAD.items()}}.items():
        (folder / name).write_bytes(content)
    (folder / "secret.png").chmod(0)
    wrapped = ["python", "-c", WITHOUT_RIGHTS, *MPIRUN, sys.executable, str(ROOT / "train.py"), *TRAIN[1:]]
    options = [f"--data_path={data}", "--batch_size=8", "--run_distribute=True", "--device_num=2"]
    done = run([*wrapped, *options, "--bad_images=skip"], cwd=tmp_path)
    assert "6 bad images of train left out, 86 used" in done.stdout and "86 training images" in done.stdout
    for name, (_, reason) in BAD.items():
        assert done.stdout.count(f"left out: {reason} {folder / name}: ") == 1
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 86 // 16 and epoch["num_samples"] == 20
    done = run([*wrapped, *options], cwd=tmp_path, expect=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    named = [f"error: {reason} {folder / name}: " for name, (_, reason) in BAD.items()]
    assert errors and all(line.startswith(tuple(named)) for line in errors), done.stderr
