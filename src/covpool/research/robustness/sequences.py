"""Sequences of frames, as ImageNet-P has them: films, pictures with several frames, or folders of pictures."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from covpool.data.decoding import EXTENSIONS, MAX_PIXELS, decode_image, printable
from covpool.data.image_folder import is_folder, visible
from covpool.errors import UserError
from covpool.runtime.files import read_bytes

_FILMS = (".mp4", ".avi", ".mkv", ".webm")
_SEVERAL = (".gif", ".png", ".webp", ".tif", ".tiff")
_FORMATS = ("GIF", "PNG", "WEBP", "TIFF")
_MOST_FRAMES = 10_000


def sequences(folder: Path) -> list[Path]:
    """Sequences of a perturbation, PERTURBATION/CLASS/SEQUENCE, each a film, a picture file or a folder; sorted.

    Raises:
        UserError: There is none.
    """
    classes = [Path(entry.path) for entry in visible(folder) if is_folder(entry)]
    found = [
        Path(entry.path)
        for label in classes
        for entry in visible(label)
        if is_folder(entry) or Path(entry.name).suffix.lower() in (*_FILMS, *_SEVERAL)
    ]
    if not found:
        raise UserError(
            f"{folder} holds no CLASS/SEQUENCE: a film ({', '.join(_FILMS)}), {', '.join(_SEVERAL)}, a folder"
        )
    return sorted(found)


def read_frames(path: Path, size: int) -> np.ndarray:
    """Frames of a sequence, uint8 (T, size, size, 3); resized where they have another size.

    Films are read by the program ffmpeg.

    Raises:
        UserError: It cannot be read, has less than two frames, or ffmpeg is not installed.
    """
    try:
        if path.is_dir():
            frames = [
                _sized(_decoded(entry), size) for entry in sorted(path.iterdir()) if entry.suffix.lower() in EXTENSIONS
            ]
        elif path.suffix.lower() in _FILMS:
            frames = list(_read_film(path, size))
        else:
            frames = _read_frames(path, size)
    except OSError as error:
        raise UserError(f"cannot read the sequence {path}: {error.strerror or error}") from error
    if len(frames) < 2:
        raise UserError(f"{path} has {len(frames)} frame(s), a sequence needs 2")
    return np.stack(frames)


def _decoded(path: Path) -> Image.Image:
    return Image.fromarray(decode_image(np.frombuffer(read_bytes(path), np.uint8), lambda: printable(path)))


def _read_frames(path: Path, size: int) -> list[np.ndarray]:
    """All pictures of a file; each says how large it is before it is decoded."""
    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about metadata and its own, greater limit
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                frames: list[np.ndarray] = []
                for frame in ImageSequence.Iterator(image):
                    width, height = frame.size
                    if width * height > MAX_PIXELS or len(frames) == _MOST_FRAMES:
                        raise ValueError(f"more than {MAX_PIXELS} pixels or {_MOST_FRAMES} frames")
                    frames.append(_sized(frame, size))
                return frames
    except Exception as error:  # of many types, and about nothing but these bytes
        raise UserError(f"cannot read the sequence {path}: {error}") from error


def _sized(image: Image.Image, size: int) -> np.ndarray:
    colour = image.convert("RGB")
    if colour.size != (size, size):
        colour = colour.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(colour)


def _read_film(path: Path, size: int) -> np.ndarray:
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(f"{path}: films are read by the program ffmpeg, which is not there; or unpack them to folders")
    done = subprocess.run(
        [
            program,
            "-v",
            "error",
            "-i",
            str(path),
            "-vf",
            f"scale={size}:{size}",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"cannot read the sequence {path}: {done.stderr.decode('utf-8', 'replace').strip()[:200]}")
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3)
