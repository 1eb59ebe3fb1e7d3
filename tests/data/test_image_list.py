"""Lists of images: what a line may be, and what an image folder makes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest

from covpool.data import open_source
from covpool.data.image_folder import format_line, read_image_list, write_image_list
from covpool.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable) -> Path:
    """An image folder of one image."""
    return write_image("data/train/cat/0.png").parents[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no image of train/"),
        ("val/a/1.png", "names no image of train/"),
        ("train/a/1.png\ntrain/b.png", r"line 2: 'train/b.png' is no path train/<class>/<file>"),
        ("train/a/../1.png", "line 1: .* is no path"),
        ("train/../1.png", "line 1: .* is no path"),
        ("/etc/passwd/x", "line 1: .* is no path"),
        ("dev/a/1.png", "line 1: .* is no path"),
        ('"train/a', "line 1: .* is no path"),
        ('"train/a/\\u0000"', "line 1: .* is no path"),
        ("# c\n\ntrain/a/1.png\r\ntrain/a/1.png", "line 4: train/a/1.png stands there twice"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (None, "cannot read image_list .*No such file"),
    ],
)
def test_bad_image_lists(content: Any, message: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        open_source("image_folder", folder, "train", path)


def test_image_lists_belong_to_image_folders(folder: Path, tmp_path: Path) -> None:
    write_image_list(tmp_path / "list.txt", ["train/cat/0.png"])
    with pytest.raises(UserError, match="image_list names files of an image folder, dataset is 'cifar10'") as raised:
        open_source("cifar10", folder, "train", tmp_path / "list.txt")
    assert raised.value.exit_code == 2
    with pytest.raises(UserError, match="names no image of val/"):
        open_source("image_folder", folder, "val", tmp_path / "list.txt")
    source = open_source("image_folder", folder, "train", tmp_path / "list.txt")
    (folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*0\.png: No such file"):
        source.pixels(0)


def test_lines_of_a_list(tmp_path: Path) -> None:
    assert format_line("train/a/ä b.png") == "train/a/ä b.png"
    odd = ["train/a/\n", "train/a/x ", "train/a/\udcff"]
    assert all(format_line(path).isprintable() and format_line(path).startswith('"') for path in odd)
    write_image_list(tmp_path / "l", odd)
    assert read_image_list(tmp_path / "l") == {"train": {"a": sorted(p.split("/")[2] for p in odd)}}
    (tmp_path / "d").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_image_list(tmp_path / "d" / "l", odd)


def test_a_fifo_in_the_list_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "train" / "a" / "x.png")
    write_image_list(tmp_path / "list.txt", ["train/a/x.png"])
    source = open_source("image_folder", tmp_path, "train", tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"cannot read image .*x\.png: not a regular file"):
        source.read(0)
