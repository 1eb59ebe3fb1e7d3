"""Damaged and unsupported images are named on one line and never end the process."""

from __future__ import annotations

import io
import os
import resource
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from covpool.data import open_source, pipeline_errors
from covpool.data.decoding import printable
from covpool.errors import UserError
from tests.data.image_files import PIXELS, animated, bomb, dataset, decoded, encoded


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_of_other_formats_are_named(kind: str) -> None:
    with pytest.raises(UserError, match=rf"^unsupported image x\.png: {kind} data, readable are \.bmp"):
        decoded(animated(kind))


ODD_NAMES = [
    "with space.png",
    " edge .png",
    "line\nbreak.png",
    "tab\t.png",
    "é猫🐈.png",
    "quote'\".png",
    "100%.PNG",
    "-x.png",
]


def test_odd_names_are_read_and_named_on_one_line(tmp_path: Path, batches: Callable) -> None:
    folder = tmp_path / "train" / "class\nof cats"
    folder.mkdir(parents=True)
    for name in ODD_NAMES:
        (folder / name).write_bytes(encoded("PNG"))
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes(encoded("PNG"))
    source = open_source("image_folder", tmp_path, "train")
    assert source.num_samples == len(ODD_NAMES) + 1
    read = batches(dataset(source, training=False, image_size=8, batch_size=4))
    assert sum(len(batch["label"]) for batch in read) == source.num_samples
    for index in range(source.num_samples):
        described = source.describe(index)
        assert described.isprintable() and described.encode("utf-8")
        source.path(index).write_bytes(b"damage")
        with pytest.raises(UserError) as raised:
            source.pixels(index)
        assert str(raised.value) == f"damaged image {described}: the file is no image"
    with pytest.raises(UserError, match=r"^damaged image "), pipeline_errors():
        batches(dataset(source, training=False, image_size=8, batch_size=1))


def test_printable_keeps_what_can_be_shown() -> None:
    assert printable("a b/é猫.png") == "a b/é猫.png"
    assert printable("a\nb\udcff\x00") == "a\\nb\\udcff\\x00"


# Each damage as a function of the whole file.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "header alone": lambda data: data[:20],
    "half": lambda data: data[: len(data) // 2],
    "two bytes short": lambda data: data[:-2],
    "rest never written": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "text": lambda data: b"<html>not found</html>",
    "begins with zeros": lambda data: bytes(64) + data[64:],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named_in_one_line(kind: str, how: str) -> None:
    if (kind, how) == ("BMP", "rest never written"):
        assert not decoded(DAMAGES[how](encoded(kind)))[:5].any()  # black pixels, which nothing tells from others
        return
    with pytest.raises(UserError, match=r"^damaged image x\.png: .+") as raised:
        decoded(DAMAGES[how](encoded(kind)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "BMP"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_ends_the_process(kind: str, data: st.DataObject) -> None:
    """Any bytes overwritten anywhere: pixels of some image, or one line. MindSpore's decoder dies on many a JPEG."""
    whole = encoded("JPEG", progressive=True) if kind == "progressive" else encoded(kind)
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    if data.draw(st.booleans()):
        broken[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        new = data.draw(st.binary(min_size=1, max_size=64))
        broken[place : place + len(new)] = new
    try:
        pixels = decoded(bytes(broken))
    except UserError as error:
        assert str(error).startswith(("damaged image x.png: ", "unsupported image x.png: ", "too large image x.png: "))
        assert "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_png_damaged_in_the_middle_is_noticed() -> None:
    whole = encoded("PNG")
    for place in np.linspace(8, len(whole) - 1, 60).astype(int):
        broken = bytearray(whole)
        broken[place] ^= 4
        with pytest.raises(UserError, match="damaged image"):
            decoded(bytes(broken))


def test_decompression_bombs(tmp_path: Path) -> None:
    """A small file that claims 30 000 x 30 000 pixels is refused before memory is taken for them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"^too large image x\.png: 30000 x 30000 pixels, max_pixels is 50000000$"):
        decoded(bomb())
    one_bit = io.BytesIO()
    Image.new("1", (8000, 8000)).save(one_bit, "PNG")  # whole, and of a few kilobytes
    with pytest.raises(UserError, match="8000 x 8000 pixels"):
        decoded(one_bit.getvalue())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"
    path = tmp_path / "train" / "a" / "x.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(encoded())
    height, width = PIXELS.shape[:2]
    assert open_source("image_folder", tmp_path, "train", max_pixels=height * width).pixels(0).shape == PIXELS.shape
    source = open_source("image_folder", tmp_path, "train", max_pixels=height * width - 1)
    for one in (source, source.subset([0])):
        with pytest.raises(UserError, match=r"too large image .*x\.png: 40 x 30 pixels, max_pixels is 1199"):
            one.pixels(0)


@pytest.mark.parametrize("data", [b"BM", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF8", b"8BPS"])
def test_no_header_is_cut_so_that_another_error_comes(data: bytes) -> None:
    for whole in (data + bytes(40), data + b"\xff" * 40, data + b"\1" * 40):
        for length in range(len(data), len(whole)):
            with pytest.raises(UserError, match=r"^(damaged|unsupported|too large) image x\.png: "):
                decoded(whole[:length])


def test_a_jpeg_with_damaged_tables_is_named(tmp_path: Path, batches: Callable) -> None:
    """MindSpore's decoder ends the process by a signal here."""
    whole = encoded("JPEG", pixels=np.tile(PIXELS, (4, 4, 1)))
    place = whole.index(b"\xff\xc4")
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(8):
        damaged = whole[: place + 5] + b"\xff" * 30 + whole[place + 35 :]
        (folder / f"{number}.jpg").write_bytes(damaged if number == 5 else whole)
    source = open_source("image_folder", tmp_path, "train")
    with (
        pytest.raises(UserError, match=rf"^damaged image {folder}/5\.jpg: .+bad_images=skip.+check-data"),
        pipeline_errors(),
    ):
        batches(dataset(source, training=True, image_size=16, batch_size=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train"]
