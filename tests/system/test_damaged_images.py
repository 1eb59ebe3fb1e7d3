"""Images that are damaged, too few, or all of one class, as the commands meet them."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from road_commands import MPIRUN, ROOT, SMALL, Run, make_folder

from covpool.training.run_folder import RunFolder
from tests.data.image_files import bomb

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
ADVICE = "(--bad_images=skip leaves such images out, covpool check-data lists them)"
TRAIN = ["train.py", CONFIG, *SMALL, "--output_path=run", "--epoch_size=1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """80 training and 20 validation images."""
    return make_folder(tmp_path / "data", 8, 20)


@pytest.fixture
def fails(here: Run, tmp_path: Path) -> Callable[..., str]:
    """Run a command in this process that must fail; its one line on standard error."""

    def fails(*command: str) -> str:
        done = here(command, cwd=tmp_path, expect=None)
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return fails


def test_a_damaged_image_stops_the_training_by_name(data: Path, here: Run, tmp_path: Path) -> None:
    victim = sorted((data / "train" / "bag").iterdir())[3]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = here([*TRAIN, f"--data_path={data}", "--batch_size=8"], cwd=tmp_path, expect=1)
    assert done.stderr == f"error: damaged image {victim}: the checksum of its IDAT chunk is wrong {ADVICE}\n"
    assert not list((tmp_path / "run").rglob("*.ckpt")) and sorted(p.name for p in tmp_path.iterdir()) == [
        "data",
        "run",
    ]


def test_a_damaged_image_stops_the_evaluation_by_name(data: Path, trained: Path, fails: Callable) -> None:
    victim = sorted((data / "val" / "coat").iterdir())[0]
    victim.write_bytes(b"no image")
    checkpoint = trained / "checkpoints" / "best.ckpt"
    options = [CONFIG, *SMALL, f"--data_path={data}", f"--checkpoint_file_path={checkpoint}"]
    assert fails("eval", *options) == f"error: damaged image {victim}: the file is no image {ADVICE}"


def damage(data: Path) -> list[Path]:
    """Damage 3 training images and 1 of validation, each in another way."""
    victims = [sorted((data / "train" / name).iterdir())[2] for name in ("bag", "coat", "dress")]
    victims.append(sorted((data / "val" / "bag").iterdir())[0])
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:-30])
    victims[2].write_bytes(b"<html>")
    victims[3].write_bytes(b"\x89PNG\r\n\x1a\n")
    return victims


def test_a_clean_list_of_one_class_trains_without_the_bad_images(data: Path, here: Run, tmp_path: Path) -> None:
    damage(data)
    clean = tmp_path / "clean.txt"
    done = here(["check-data", f"--data_path={data}", f"--write_clean_list={clean}"], cwd=tmp_path, expect=1)
    assert done.stdout.count("problem: ") == 4
    lines = clean.read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 77 + 19
    clean.write_text("".join(f"{line}\n" for line in lines if "/bag/" in line))
    options = [f"--data_path={data}", "--image_list=clean.txt", "--batch_size=3", "--class_num=1"]
    here([*TRAIN, *options, "--use_label_smooth=False"], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 7 // 3 and epoch["num_samples"] == 1
    assert epoch["loss"] == 0 and epoch["top_1_accuracy"] == 1


def test_fewer_images_than_a_batch(data: Path, fails: Callable) -> None:
    line = fails("train", *TRAIN[1:], f"--data_path={data}", "--batch_size=81")
    assert "80 images are fewer than 81 per rank x 1 rank(s) = 81" in line


@pytest.mark.only_with_all
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
    for other in (data / "val").iterdir():  # one of two images is left: fewer than ranks
        if other.name != "bag":
            shutil.rmtree(other)
    next((data / "val" / "bag").iterdir()).write_bytes(b"")
    wrapped = ["python", "-c", WITHOUT_RIGHTS, *MPIRUN, sys.executable, str(ROOT / "train.py"), *TRAIN[1:]]
    options = [f"--data_path={data}", "--batch_size=8", "--run_distribute=True", "--device_num=2"]
    done = run([*wrapped, *options, "--bad_images=skip"], cwd=tmp_path)
    assert "6 bad images of train left out, 86 used" in done.stdout and "86 training images" in done.stdout
    for name, (_, reason) in BAD.items():
        assert done.stdout.count(f"left out: {reason} {folder / name}: ") == 1
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["step"] == 86 // 16 and epoch["num_samples"] == 1
    done = run([*wrapped, *options], cwd=tmp_path, expect=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    named = [f"error: {reason} {folder / name}: " for name, (_, reason) in BAD.items()]
    assert errors and all(line.startswith(tuple(named)) for line in errors), done.stderr
