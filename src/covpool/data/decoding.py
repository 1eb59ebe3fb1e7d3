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
from typing import Any, Callable, Union

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from covpool.errors import UserError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png")
# Pillow's own limit against decompression bombs: a small file of more pixels than this would fill the memory.
MAX_PIXELS = 178_956_970
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # all that matters to pixels, but for the transparency


class _Jpeg(JpegImageFile):
    """A JPEG file, its first picture where there are several; metadata are left alone."""

    def _read_dpi_from_exif(self) -> None:
        """Nobody needs the resolution, and Pillow warns of every camera whose EXIF block is not quite right."""


class ImageError(Exception):
    """What is wrong with an image file.

    Attributes:
        kind: ``damaged``, ``unsupported`` or ``too large``.
        reason: More of it, on one line.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason = kind, reason


def open_image(data: bytes) -> ImageFile:
    """Read the header of an encoded image.

    Raises:
        ImageError: No image, a format that is not supported, a damaged header, or more than ``MAX_PIXELS``.
    """
    if not data:
        raise ImageError("damaged", "the file is empty")
    stream = io.BytesIO(data)
    try:
        if data.startswith(b"\xff\xd8\xff"):
            image: ImageFile = _Jpeg(stream)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png(data)
            image = PngImageFile(stream)
        elif data.startswith(b"BM"):
            image = BmpImageFile(stream)
        else:
            raise _other_format(stream)
    except ImageError:
        raise
    except Exception as error:  # of many types, and about nothing but these bytes
        raise ImageError("damaged", _reason(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too large", f"{width} x {height} pixels, at most {MAX_PIXELS} are read")
    return image


def load_image(image: ImageFile) -> np.ndarray:
    """Decode an opened image to RGB, uint8 (H, W, 3).

    The conversion is Pillow's ``convert("RGB")``: gray is repeated, palettes are looked up, alpha is dropped, CMYK is
    converted without a colour profile. Of 16-bit gray the high byte is kept (Pillow would clip it). The EXIF
    orientation is not applied; of an animation the first picture is taken.

    Args:
        image: From :func:`open_image`.

    Raises:
        ImageError: The data are damaged.
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


def decode_image(data: np.ndarray, name: Callable[[], str]) -> np.ndarray:
    """Decode an image file to RGB, uint8 (H, W, 3), see :func:`load_image`.

    Args:
        data: The file's bytes, uint8 (n,).
        name: Gives what a message calls the file.

    Raises:
        UserError: One line that names the file and says what is wrong with it.
    """
    try:
        with open_image(data.tobytes()) as image:
            return load_image(image)
    except ImageError as error:
        raise UserError(f"{error.kind} image {name()}: {error.reason}") from error


def printable(path: Union[str, Path]) -> str:
    """Return a path for a message: on one line, whatever bytes its name consists of."""
    return "".join(c if c.isprintable() else _escape(c) for c in os.fspath(path))


def _escape(character: str) -> str:
    try:
        return character.encode("unicode_escape").decode("ascii")
    except UnicodeError:
        return ascii(character)[1:-1]


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


def _other_format(stream: io.BytesIO) -> ImageError:
    try:
        with Image.open(stream) as image:
            kind: Any = image.format
            animated = getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        return ImageError("damaged", "the file is no image")
    except Exception as error:
        return ImageError("damaged", _reason(error))
    readable = ", ".join(EXTENSIONS)
    return ImageError("unsupported", f"{'animated ' if animated else ''}{kind} data, readable are {readable} files")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "its header cannot be read" if "not identified by this driver" in text else text
