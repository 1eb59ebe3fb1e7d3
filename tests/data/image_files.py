"""Image files as bytes, of every kind that the tests of the data need."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from covpool.data import Augmentation, ImageTransform, create_dataset
from covpool.data.decoding import decode_image

PIXELS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
)


def encoded(kind: str = "PNG", mode: str = "RGB", pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    """An image file; mode as Pillow names it."""
    if mode == "I;16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[:, :, 1]))
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def animated(kind: str) -> bytes:
    """Three pictures of 4 x 4 pixels, the first of value 80."""
    pictures = [Image.fromarray(np.full((4, 4, 3), 80 * i, np.uint8)) for i in (1, 2, 3)]
    stream = io.BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def png_of_sixteen_bits(values: np.ndarray) -> bytes:
    """PNG that Pillow cannot write: uint16 (H, W, C) with C = 2 (gray, alpha) or 3."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG file of some bytes that claims 30 000 x 30 000 pixels."""
    data = encoded()
    header = (30_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4, "big") + data[33:]


def decoded(data: bytes) -> np.ndarray:
    """What the project reads from a file called x.png."""
    return decode_image(np.frombuffer(data, np.uint8), lambda: "x.png")


def dataset(source: Any, training: bool, image_size: int, **options: Any) -> Any:
    """Batches of a source: the fields of transform and augmentation, and the arguments of ``create_dataset``."""
    statistics = {key: options.pop(key) for key in ("mean", "std", "channels") if key in options}
    geometry = {key: options.pop(key) for key in ("interpolation",) if key in options}
    if "eval_crop_ratio" in options:
        geometry["crop_ratio"] = options.pop("eval_crop_ratio")
    varied = {field.name: options.pop(field.name) for field in fields(Augmentation) if field.name in options}
    augmentation = Augmentation(options.pop("augmentation", "imagenet"), **varied)
    transform = ImageTransform.for_source(source, image_size, **statistics, **geometry)
    return create_dataset(source, transform, augmentation=augmentation if training else None, **options)
