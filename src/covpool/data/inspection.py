"""What is wrong with, or noteworthy of, single image files; many files on all cores."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Optional

from PIL.ImageFile import ImageFile

from covpool.data.augmentation import LONGEST
from covpool.data.decoding import EXTENSIONS, MAX_PIXELS, ImageError, image_kind, load_image, open_image
from covpool.errors import UserError
from covpool.runtime.environment import available_cores
from covpool.runtime.files import open_regular, read_bytes
from covpool.runtime.processes import process_pool

_ORIENTATION = 0x0112  # EXIF tag
_ENDINGS = {"JPEG": (".jpeg", ".jpg"), "PNG": (".png",), "BMP": (".bmp",)}
_CONVERSIONS = {
    "1": "black and white",
    "P": "a palette",
    "PA": "a palette with alpha",
    "LA": "gray with alpha, which is dropped",
    "RGBA": "colour with alpha, which is dropped",
    "CMYK": "CMYK",
    "I": "16-bit gray",
    "I;16": "16-bit gray",
    "I;16B": "16-bit gray",
}
_FEW = 256  # files that are not worth starting processes for


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing about a file or folder.

    Attributes:
        is_problem: Whether the data cannot be used as they are; else it is a note.
        kind: A word or two by which findings are grouped.
        text: What was found, on one line.
        path: File or folder below the root of the data set, on one line; empty for the data set itself.
    """

    is_problem: bool
    kind: str
    text: str
    path: str = ""


def inspect_image(path: Path, wants_digest: bool = False, max_pixels: int = MAX_PIXELS) -> tuple[list[Finding], bytes]:
    """Read and decode a file that training would read.

    Args:
        path: A file with one of the readable endings.
        wants_digest: Whether to compute the digest of its content.
        max_pixels: An image of more is a problem, one of more than half a note.

    Returns:
        What there is to say, with an empty path; the digest, or nothing.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        return [Finding(True, "unreadable", error.strerror or str(error))], b""
    digest = hashlib.blake2b(data, digest_size=16).digest() if wants_digest else b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about metadata
        try:
            with open_image(data, max_pixels) as image:
                notes = list(_notes(image, path.suffix.lower(), max_pixels))
                load_image(image)
        except ImageError as error:
            return [Finding(True, error.kind, error.reason)], digest
    return notes, digest


def inspect_other(path: Path) -> Finding:
    """Look at a file whose ending training passes over: images are a problem, other files a note."""
    try:
        with open_regular(path) as file:
            kind = image_kind(file.read(32))
    except OSError as error:
        return Finding(False, "left out", f"cannot be read ({error.strerror or error})")
    if not kind:
        return Finding(False, "left out", f"is no image (readable are {', '.join(EXTENSIONS)})")
    if kind in _ENDINGS:
        return Finding(True, "unsupported", f"{kind} data whose name does not end in {' or '.join(_ENDINGS[kind])}")
    return Finding(True, "unsupported", f"{kind} data, readable are {', '.join(EXTENSIONS)} files")


def inspect_files(
    paths: Sequence[Path],
    workers: Optional[int] = None,
    wants_digest: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[list[Finding], bytes]]:
    """Inspect files in their order, in processes where there are many.

    Args:
        paths: Files; those without a readable ending go to ``inspect_other``.
        workers: Number of processes, None for one per core.
        wants_digest: See ``inspect_image``.
        max_pixels: See ``inspect_image``.

    Raises:
        UserError: A process was killed.
    """
    inspect = partial(_inspect, wants_digest=wants_digest, max_pixels=max_pixels)
    workers = workers or available_cores()
    if workers == 1 or len(paths) < _FEW:
        for path in paths:
            yield inspect(path)
        return
    try:
        with process_pool(workers) as pool:
            chunk = max(1, min(64, len(paths) // (4 * workers)))
            yield from pool.map(inspect, paths, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError("a process that read images was killed; is the memory full? (try fewer --workers)") from error


def _inspect(path: Path, wants_digest: bool, max_pixels: int) -> tuple[list[Finding], bytes]:
    if path.suffix.lower() in EXTENSIONS:
        return inspect_image(path, wants_digest, max_pixels)
    return [inspect_other(path)], b""


def _notes(image: ImageFile, ending: str, max_pixels: int) -> Iterator[Finding]:
    """What training does to an image that not everybody may expect."""
    mode = _CONVERSIONS.get(image.mode)
    if mode is None and image.mode not in ("RGB", "L"):
        mode = image.mode
    if mode is not None:
        yield Finding(False, "converted", f"is {mode}; becomes RGB of 8 bits")
    elif "transparency" in image.info:
        yield Finding(False, "converted", "has a transparent colour, which is kept as a colour")
    if getattr(image, "is_animated", False):
        yield Finding(False, "animated", f"the first of {getattr(image, 'n_frames', 2)} pictures is taken")
    orientation = _orientation(image)
    if orientation > 1:
        yield Finding(False, "rotated", f"EXIF orientation {orientation} is not applied")
    width, height = image.size
    if 2 * width * height > max_pixels:
        yield Finding(False, "large", f"{width} x {height} pixels take {3 * width * height / 2**20:.0f} MiB decoded")
    if max(width, height) > LONGEST * min(width, height):
        yield Finding(False, "long", f"{width} x {height} pixels: evaluation sees the central part")
    kind = image.format or ""
    if ending not in _ENDINGS.get(kind, (ending,)):
        yield Finding(False, "misnamed", f"{kind} data in a {ending} file")


def _orientation(image: ImageFile) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata, which nothing else reads
        return 1
    return value if isinstance(value, int) else 1
