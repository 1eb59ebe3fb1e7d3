"""Legal images of any kind and shape train on Pillow's pixels."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from covpool.data import open_source
from covpool.data.decoding import EXTENSIONS
from tests.data.image_files import animated, dataset, decoded, encoded, png_of_sixteen_bits

PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}


def by_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would have a palette's transparency kept
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


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
    (batch,) = batches(dataset(source, training=False, **options))
    np.testing.assert_allclose(batch["image"][0].transpose(1, 2, 0), by_pillow(LEGAL[case])[:, 5:35], atol=1e-3)
    (batch,) = batches(dataset(source, training=True, augmentation="imagenet", **options))
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


def test_exif_rotation_is_not_applied() -> None:
    assert decoded(LEGAL["rotated JPEG"]).shape == (30, 40, 3)


def test_of_an_animated_png_the_first_picture_is_taken() -> None:
    assert (decoded(animated("PNG")) == 80).all()


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
    (batch,) = batches(dataset(source, training=False, **options))
    assert batch["image"].shape == (1, 3, 64, 64)
    np.testing.assert_allclose(batch["image"], 90, atol=1e-3)
    (batch,) = batches(dataset(source, training=True, **options))
    assert batch["image"].shape == (1, 3, 64, 64)
    assert set(np.unique(batch["image"].round())) <= {0, 90}  # shifted: black where nothing is left


def test_long_image_is_centred(tmp_path: Path, write_image: Callable, batches: Callable) -> None:
    """The part that is cut off before resizing is the same on both sides."""
    for name, width in (("odd", 4001), ("even", 4000)):
        ramp = np.abs(np.arange(width) - (width - 1) / 2)
        row = np.clip(200 - 2 * ramp, 0, 255).astype(np.uint8)
        write_image(f"train/a/{name}.png", np.repeat(np.tile(row, (20, 1))[:, :, None], 3, 2))
    source = open_source("image_folder", tmp_path, "train")
    (batch,) = batches(dataset(source, training=False, image_size=20, batch_size=2, eval_crop_ratio=1, **PLAIN))
    for image in batch["image"][:, 0]:
        np.testing.assert_allclose(image, image[:, ::-1], atol=2.01)  # a margin that is odd lies one pixel left
        assert image.max() >= 199


def test_extensions_are_those_of_the_decoder() -> None:
    assert {Image.registered_extensions()[ending] for ending in EXTENSIONS} == {"BMP", "JPEG", "PNG"}
