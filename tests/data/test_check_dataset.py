"""covpool check-data finds every kind of problem."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from covpool.data import open_source
from tests.data.image_files import PIXELS, animated, bomb, encoded


def test_a_clean_data_set(check: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == (0, [], [])
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["splits"] == {"train": {"images": 8, "classes": 2}, "val": {"images": 4, "classes": 2}}


# What is put at train/cat/x.<ending>, and the kind and text that it must give.
PROBLEMS: dict[str, tuple[str, bytes, str, str]] = {
    "truncated": ("jpg", encoded("JPEG")[:-20], "damaged", "truncated"),
    "cut in the header": ("bmp", encoded("BMP")[:20], "damaged", ""),
    "zero bytes": ("png", b"", "damaged", "the file is empty"),
    "no image": ("jpg", b"<html>404</html>", "damaged", "the file is no image"),
    "damaged in the middle": ("png", encoded().replace(b"IDAT", b"IDAU"), "damaged", ""),
    "unsupported format": ("jpg", encoded("WEBP"), "unsupported", "WEBP data"),
    "unsupported ending": ("webp", encoded("WEBP"), "unsupported", "WEBP data, readable are .bmp"),
    "animation": ("gif", animated("GIF"), "unsupported", "GIF data"),
    "TIFF": ("tiff", encoded("TIFF"), "unsupported", "TIFF data"),
    "image without its ending": ("jfif", encoded("JPEG"), "unsupported", "JPEG data whose name does not end in .jpeg"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_bad_files(case: str, check: Callable, folder: Path) -> None:
    ending, data, kind, text = PROBLEMS[case]
    (folder / "train" / "cat" / f"x.{ending}").write_bytes(data)
    code, problems, notes = check()
    assert code == 1 and not notes
    ((found_kind, path, found_text),) = problems
    assert (found_kind, path) == (kind, f"train/cat/x.{ending}") and text in found_text


NOTES: dict[str, tuple[str, bytes, str, str]] = {
    "CMYK": ("jpg", encoded("JPEG", "CMYK"), "converted", "is CMYK; becomes RGB"),
    "palette": ("png", encoded("PNG", "P"), "converted", "is a palette; becomes RGB"),
    "16 bits": ("png", encoded("PNG", "I;16"), "converted", "is 16-bit gray; becomes RGB of 8 bits"),
    "alpha": ("png", encoded("PNG", "RGBA"), "converted", "is colour with alpha, which is dropped"),
    "gray with alpha": ("png", encoded("PNG", "LA"), "converted", "is gray with alpha, which is dropped"),
    "animated PNG": ("png", animated("PNG"), "animated", "the first of 3 pictures is taken"),
    "EXIF": (
        "jpg",
        encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
        "rotated",
        "EXIF orientation 6 is not applied",
    ),
    "misnamed": ("jpg", encoded("PNG"), "misnamed", "PNG data in a .jpg file"),
    "stripe": ("png", encoded(pixels=PIXELS[:1]), "long", "40 x 1 pixels: evaluation sees the central part"),
    "other file": ("txt", b"labels", "left out", "is no image"),
}


@pytest.mark.parametrize("case", NOTES)
def test_noteworthy_files(case: str, check: Callable, folder: Path) -> None:
    ending, data, kind, text = NOTES[case]
    (folder / "train" / "dog" / f"x.{ending}").write_bytes(data)
    code, problems, notes = check()
    assert code == 0 and not problems
    ((found_kind, path, found_text),) = notes
    assert (found_kind, path) == (kind, f"train/dog/x.{ending}") and text in found_text


def test_gray_and_progressive_images_are_not_worth_a_note(check: Callable, folder: Path) -> None:
    (folder / "train" / "dog" / "g.png").write_bytes(encoded(mode="L"))
    (folder / "train" / "dog" / "p.jpg").write_bytes(encoded("JPEG", progressive=True))
    assert check() == (0, [], [])


def test_huge_images(check: Callable, folder: Path) -> None:
    (folder / "train" / "cat" / "x.bmp").write_bytes(encoded("BMP"))
    assert check("--max_pixels=1300") == (0, [], [("large", "train/cat/x.bmp", "40 x 30 pixels take 0 MiB decoded")])
    assert check("--max_pixels=1199")[1] == [("too large", "train/cat/x.bmp", "40 x 30 pixels, max_pixels is 1199")]
    (folder / "train" / "cat" / "x.bmp").write_bytes(bomb())
    assert check()[1] == [("too large", "train/cat/x.bmp", "30000 x 30000 pixels, max_pixels is 50000000")]


@pytest.mark.parametrize("name", ["x.png", "x.txt"])
def test_a_fifo_is_no_image(name: str, check: Callable, folder: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(folder / "train" / "cat" / name)
    assert check() == (0, [], [("left out", f"train/cat/{name}", "no file: folders in a class are not entered")])


# Lets file permissions count for root too, then becomes the program that is named.
WITHOUT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert not ctypes.CDLL(None).prctl(24, capability, 0, 0, 0), "PR_CAPBSET_DROP"
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_files_without_permission(folder: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    (folder / "train" / "cat" / "0.png").chmod(0)
    (folder / "val" / "dog").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, "-m", "covpool", "check-data", "--data_path", str(folder)],
        cwd=tmp_path,
        env=clean_env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (folder / "val" / "dog").chmod(0o755)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines()[:2] == [
        "problem: unreadable: val/dog: the folder cannot be listed",
        "problem: unreadable: train/cat/0.png: Permission denied",
    ]


def test_links(check: Callable, folder: Path) -> None:
    cat = folder / "train" / "cat"
    (cat / "good.png").symlink_to(cat / "0.png")
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "gone.png").symlink_to("nowhere.png")
    (cat / "up").symlink_to("..")
    (folder / "train" / "circle").symlink_to("circle")
    (folder / "train" / "self").symlink_to("cat/nested")
    (cat / "nested" / "deeper").mkdir(parents=True)
    (cat / "nested" / "again").symlink_to(cat / "nested")
    code, problems, notes = check()
    assert code == 1
    assert problems == [
        ("broken link", "train/circle", "the symbolic link leads nowhere"),
        ("broken link", "train/cat/gone.png", "the symbolic link leads nowhere"),
        ("broken link", "train/cat/loop.png", "the symbolic link leads nowhere"),
        ("empty class", "train/self", "the class folder holds no image"),
    ]
    assert ("left out", "train/cat/up", "no file: folders in a class are not entered") in notes


def test_classes(check: Callable, folder: Path) -> None:
    (folder / "train" / "bird").mkdir()
    (folder / "val" / "dog" / "0.png").unlink()
    (folder / "val" / "dog" / "1.png").unlink()
    (folder / "val" / "fish").mkdir()
    (folder / "val" / "fish" / "0.png").write_bytes(encoded())
    code, problems, notes = check()
    assert code == 1
    assert problems == [
        ("empty class", "train/bird", "the class folder holds no image"),
        ("unknown class", "val/fish", "the class is not in train/"),
    ]
    assert notes == [("empty class", "val/dog", "the class folder holds no image")]
    (folder / "train" / "bird").rmdir()
    shutil.rmtree(folder / "val" / "fish")
    assert check()[0] == 0
    assert open_source("image_folder", folder, "val").num_samples == 2, "a class that val/ lacks images of is fine"
    shutil.rmtree(folder / "train" / "dog")
    shutil.rmtree(folder / "val" / "dog")
    assert check() == (1, [("one class", "train", "there is one class only: nothing to tell apart")], [])


def test_too_few_images(check: Callable, folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    assert check("--min_images", "3")[1] == [("damaged", "train/cat/0.png", "the file is empty")]
    found = check("--min_images", "4")[1]
    assert found[1:] == [("few images", "train/cat", "3 usable image(s), 4 needed")]
    for path in (folder / "train").glob("*/*"):
        path.write_bytes(b"")
    kinds = [kind for kind, _, _ in check()[1]]
    assert kinds == ["damaged"] * 8 + ["few images"] * 2 + ["no image"]


def test_missing_folders(check: Callable, folder: Path) -> None:
    shutil.rmtree(folder / "val")
    assert check() == (0, [], [("no folder", "val", "is missing: val_fraction can replace it")])
    shutil.rmtree(folder / "train")
    assert check()[:2] == (1, [("no folder", "train", "is missing: the classes are its folders")])
    (folder / "train").mkdir()
    assert check()[:2] == (1, [("no folder", "train", "there are no class folders")])


def test_duplicates(check: Callable, folder: Path) -> None:
    shutil.copy(folder / "train" / "dog" / "2.png", folder / "val" / "cat" / "0.png")
    assert check() == (0, [], [])
    text = "has the same content as train/dog/2.png"
    assert check("--duplicates") == (0, [], [("duplicate", "val/cat/0.png", text)])
