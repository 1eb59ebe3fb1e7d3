"""From the bytes of an image file to its pixels, by Pillow.

MindSpore's own decoder is not used: on a JPEG file whose tables or headers are damaged it ends the process by a
segmentation fault (2.8.0; one in six files with a flipped bit or 64 bytes overwritten), and it names no file.
Pillow calls the same libjpeg, is no slower, does not hold Python's lock while it decodes, and reports every failure.
"""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import Callable, Union

import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from covpool.errors import UserError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png")
# A file of some kilobytes may claim any number of pixels: this many take about 0.4 GB of memory while they are decoded.
MAX_PIXELS = 50_000_000
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes, by version
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"8BPS": "Photoshop",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\1\0": "icon",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"mif1": "HEIF", b"hevc": "HEIF"}
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all that matters to pixels, but for the transparency


class _Jpeg(JpegImageFile):
    """A JPEG file, its first picture where there are several; metadata are left alone."""

    def _read_dpi_from_exif(self) -> None:
        """Nobody needs the resolution, and Pillow warns of every camera whose EXIF block is not quite right."""


_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {"JPEG": _Jpeg, "PNG": PngImageFile, "BMP": BmpImageFile}
_NO_IMAGE = ("damaged", "the file is no image")


class ImageError(Exception):
    """What is wrong with an image file: ``damaged``, ``unsupported`` or ``too large``, and more of it on one line."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


def image_kind(data: bytes) -> str:
    """Return the format of an image file by its first 32 bytes, e.g. ``"JPEG"``; empty for what is none.

    No decoder sees the bytes: those of rare formats are where the faults are.
    """
    if data[:2] == b"BM":
        return "BMP" if int.from_bytes(data[14:18], "little") in _BMP_HEADERS else ""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "")
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), "")


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Read the header of an encoded image; nothing is decoded to find out width times height.

    ImageError: no image, a format that is not supported, a damaged header, or more than ``max_pixels``.
    """
    if not data:
        raise ImageError("damaged", "the file is empty")
    kind = image_kind(data)
    if kind not in _READERS:
        readable = ", ".join(EXTENSIONS)
        raise ImageError(*(("unsupported", f"{kind} data, readable are {readable} files") if kind else _NO_IMAGE))
    try:
        if kind == "PNG":
            _check_png(data)
        image = _READERS[kind](io.BytesIO(data))
    except ImageError:
        raise
    except Exception as error:  # of many types, and about nothing but these bytes
        raise ImageError("damaged", _reason(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too large", f"{width} x {height} pixels, max_pixels is {max_pixels}")
    return image


def load_image(image: ImageFile) -> np.ndarray:
    """Decode an opened image to RGB, uint8 (H, W, 3); ImageError if it is damaged.

    The conversion is Pillow's ``convert("RGB")``: gray is repeated, palettes are looked up, alpha is dropped, CMYK is
    converted without a colour profile. Of 16-bit gray the high byte is kept (Pillow would clip it). The EXIF
    orientation is not applied; of an animation the first picture is taken.
    """
    try:
        image.load()
        if image.mode.startswith("I"):  # 16-bit gray; 16-bit colour comes as 8 bits from Pillow
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        image.info.pop("transparency", None)  # else Pillow warns that the transparent colour is lost
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:
        raise ImageError("damaged", _reason(error)) from error


def decode_image(data: np.ndarray, name: Callable[[], str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the bytes of an image file, uint8 (n,), to RGB, uint8 (H, W, 3), see :func:`load_image`.

    UserError: one line that names the file, by ``name``, and says what is wrong with it.
    """
    try:
        with open_image(data.tobytes(), max_pixels) as image:
            return load_image(image)
    except ImageError as error:
        raise UserError(f"{error.kind} image {name()}: {error.reason}") from error


def printable(path: Union[str, Path]) -> str:
    """Return a path for a message: on one line, whatever bytes its name consists of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in os.fspath(path))


def _check_png(data: bytes) -> None:
    """Compare the checksums of a PNG file, which Pillow does not do for pixels (0.1 ms for 100 KB)."""
    view, place = memoryview(data), 8
    while True:
        kind, end = data[place + 4 : place + 8], place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            raise ImageError("damaged", "the file is truncated")
        if kind in _PNG_CHUNKS and zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError("damaged", f"the checksum of its {kind.decode()} chunk is wrong")
        if kind == b"IEND":
            return
        place = end + 4


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "its header cannot be read" if "not identified by this driver" in text else text
