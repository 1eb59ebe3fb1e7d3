"""Images as they come: legal ones train on Pillow's pixels, damaged ones are named or skipped."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import create_dataset, open_source, pipeline_error
from src.data import decoding as decoding_module
from src.data.decoding import EXTENSIONS, decode_image, printable
from src.errors import UserError

PIXELS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
)
PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}


def encoded(kind: str, pixels: np.ndarray = PIXELS, mode: str = "RGB", **options: Any) -> bytes:
    """An image file as bytes."""
    image = Image.fromarray(pixels).convert("RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[:, :, 1]))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return decode_image(np.frombuffer(data, np.uint8), lambda: "x.png")


def by_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would have a palette's transparency kept
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


PALETTE = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
LEGAL = {
    "progressive JPEG": encoded("JPEG", progressive=True),
    "JPEG of full chroma": encoded("JPEG", subsampling=0),
    "gray JPEG": encoded("JPEG", mode="L"),
    "CMYK JPEG": encoded("JPEG", mode="CMYK"),
    "rotated JPEG": encoded("JPEG", exif=exif(6)),
    "JPEG with a damaged EXIF block": encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 9),
    "JPEG with bytes behind it": encoded("JPEG") + b"notes of a camera",
    "gray PNG": encoded("PNG", mode="L"),
    "gray PNG with alpha": encoded("PNG", mode="LA"),
    "PNG with alpha": encoded("PNG", mode="RGBA"),
    "PNG of 1 bit": encoded("PNG", mode="1"),
    "palette PNG": encoded("PNG", mode="P"),
    "palette PNG with a transparent colour": encoded("PNG", mode="P", transparency=3),
    "palette PNG with alpha values": encoded("PNG", mode="P", transparency=bytes(range(100))),
    "PNG with a transparent colour": encoded("PNG", transparency=(1, 2, 3)),
    "BMP": encoded("BMP"),
    "gray BMP": encoded("BMP", mode="L"),
    "BMP with alpha": encoded("BMP", mode="RGBA"),
}


@pytest.mark.parametrize("case", LEGAL)
def test_legal_images_decode_as_pillow_converts_them(case: str) -> None:
    """The same bits: the decoder is Pillow's."""
    np.testing.assert_array_equal(decoded(LEGAL[case]), by_pillow(LEGAL[case]))


@pytest.mark.parametrize("case", LEGAL)
def test_legal_images_reach_the_network(case: str, tmp_path: Path, batches: Callable) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    name = "1.jpg" if "JPEG" in case else "1.bmp" if "BMP" in case else "1.png"
    (tmp_path / "train" / "a" / name).write_bytes(LEGAL[case])
    source = open_source("image_folder", tmp_path, "train")
    options = {"image_size": 30, "eval_crop_ratio": 1, "batch_size": 1, **PLAIN}
    (batch,) = batches(create_dataset(source, training=False, **options))
    np.testing.assert_allclose(batch["image"][0].transpose(1, 2, 0), by_pillow(LEGAL[case])[:, 5:35], atol=1e-3)
    (batch,) = batches(create_dataset(source, training=True, augmentation="imagenet", **options))
    assert np.isfinite(batch["image"]).all() and batch["image"].std() > 5


@pytest.mark.parametrize("mode", ["gray", "gray with alpha", "colour"])
def test_sixteen_bits_keep_the_high_byte(mode: str) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
    high = (values >> 8).astype(np.uint8)
    if mode == "gray":
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        data, expected = stream.getvalue(), np.repeat(high[:, :, None], 3, 2)
    else:
        channels = 2 if mode == "gray with alpha" else 3
        planes = np.stack([values, 65535 - values, values // 2][:channels], 2)
        data = png_of_sixteen_bits(planes)
        colours = np.repeat(planes[:, :, :1], 3, 2) if channels == 2 else planes
        expected = (colours >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data), expected)


def png_of_sixteen_bits(values: np.ndarray) -> bytes:
    """PNG that Pillow cannot write: uint16 (H, W, C) with C = 2 (gray, alpha) or 3."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_exif_rotation_is_not_applied() -> None:
    assert decoded(LEGAL["rotated JPEG"]).shape == (30, 40, 3)


def test_of_an_animated_png_the_first_picture_is_taken() -> None:
    pictures = [Image.fromarray(np.full((4, 4, 3), 80 * i, np.uint8)) for i in (1, 2, 3)]
    stream = io.BytesIO()
    pictures[0].save(stream, "PNG", save_all=True, append_images=pictures[1:])
    assert (decoded(stream.getvalue()) == 80).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_of_other_formats_are_named(kind: str) -> None:
    pictures = [Image.fromarray(np.full((4, 4, 3), 80 * i, np.uint8)) for i in (1, 2, 3)]
    stream = io.BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    with pytest.raises(UserError, match=rf"^unsupported image x\.png: animated {kind} data, readable are \.bmp"):
        decoded(stream.getvalue())


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 900), (17, 280)], ids=str)
@pytest.mark.parametrize("augmentation", ["imagenet", "small", "none"])
def test_tiny_and_extremely_long_images(
    size: tuple[int, int], augmentation: str, tmp_path: Path, write_image: Callable, batches: Callable
) -> None:
    """Their centre has one value, so the network must see it, whatever is cut off."""
    pixels = np.full((*size, 3), 7, np.uint8)
    middle = tuple(slice(max(0, n // 2 - 200), n // 2 + 200) for n in size)
    pixels[middle] = 90
    write_image("train/a/1.png", pixels)
    source = open_source("image_folder", tmp_path, "train")
    options = {"image_size": 64, "batch_size": 1, "augmentation": augmentation, "flip_probability": 0, **PLAIN}
    (batch,) = batches(create_dataset(source, training=False, **options))
    assert batch["image"].shape == (1, 3, 64, 64)
    np.testing.assert_allclose(batch["image"], 90, atol=1e-3)
    (batch,) = batches(create_dataset(source, training=True, **options))
    assert batch["image"].shape == (1, 3, 64, 64)
    assert set(np.unique(batch["image"].round())) <= {0, 90}  # shifted: black where nothing is left


def test_long_image_is_centred(tmp_path: Path, write_image: Callable, batches: Callable) -> None:
    """The part that is cut off before resizing is the same on both sides."""
    for name, width in (("odd", 4001), ("even", 4000)):
        ramp = np.abs(np.arange(width) - (width - 1) / 2)
        row = np.clip(200 - 2 * ramp, 0, 255).astype(np.uint8)
        write_image(f"train/a/{name}.png", np.repeat(np.tile(row, (20, 1))[:, :, None], 3, 2))
    source = open_source("image_folder", tmp_path, "train")
    (batch,) = batches(create_dataset(source, training=False, image_size=20, batch_size=2, eval_crop_ratio=1, **PLAIN))
    for image in batch["image"][:, 0]:
        np.testing.assert_allclose(image, image[:, ::-1], atol=2.01)  # a margin that is odd lies one pixel left
        assert image.max() >= 199


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
    read = batches(create_dataset(source, training=False, image_size=8, batch_size=4))
    assert sum(len(batch["label"]) for batch in read) == source.num_samples
    for index in range(source.num_samples):
        described = source.describe(index)
        assert described.isprintable() and described.encode("utf-8")
        source.path(index).write_bytes(b"damage")
        one = source.subset([index])
        with pytest.raises(RuntimeError) as raised:
            batches(create_dataset(one, training=False, image_size=8, batch_size=1))
        assert str(pipeline_error(raised.value)) == f"damaged image {described}: the file is no image"


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


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file that claims 30 000 x 30 000 pixels is refused before memory is taken for them."""
    data = png_of_sixteen_bits(np.zeros((1, 1, 3), np.uint16))
    header = data[16:29].replace(bytes(3) + b"\1" + bytes(3) + b"\1", (30_000).to_bytes(4, "big") * 2)
    bomb = data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:]
    with pytest.raises(UserError, match=r"^too large image x\.png: 30000 x 30000 pixels, at most 178956970 are read$"):
        decoded(bomb)
    monkeypatch.setattr(decoding_module, "MAX_PIXELS", PIXELS.shape[0] * PIXELS.shape[1])
    assert decoded(encoded("PNG")).shape == PIXELS.shape
    monkeypatch.setattr(decoding_module, "MAX_PIXELS", PIXELS.shape[0] * PIXELS.shape[1] - 1)
    with pytest.raises(UserError, match="too large image"):
        decoded(encoded("PNG"))


# A damaged image in the middle of training, by the real pipeline in a process of its own.

TRAIN = """
import sys
from src.data import create_dataset, open_source, pipeline_errors
from src.errors import UserError
source = open_source("image_folder", sys.argv[1], "train")
dataset = create_dataset(source, training=True, image_size=16, batch_size=4)
try:
    with pipeline_errors():
        for _ in dataset.create_dict_iterator(num_epochs=1):
            pass
except UserError as error:
    print(error)
    sys.exit(1)
"""


def test_a_jpeg_with_damaged_tables_is_named(tmp_path: Path, root: Path, clean_env: dict[str, str]) -> None:
    """MindSpore's decoder ends the process by a signal here."""
    whole = encoded("JPEG", np.tile(PIXELS, (4, 4, 1)))
    place = whole.index(b"\xff\xc4")
    for number in range(8):
        path = tmp_path / "train" / "a" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole if number != 5 else whole[: place + 5] + b"\xff" * 30 + whole[place + 35 :])
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={**clean_env, "PYTHONPATH": str(root), "GLOG_v": "3"},
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith(f"damaged image {tmp_path / 'train' / 'a' / '5.jpg'}: ")
    assert done.stdout.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train"]


def test_extensions_are_those_of_the_decoder() -> None:
    assert {Image.registered_extensions()[ending] for ending in EXTENSIONS} == {"BMP", "JPEG", "PNG"}
