"""The public robustness sets: which classes, which files, which sequences of frames."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from covpool.data.decoding import EXTENSIONS, MAX_PIXELS, decode_image, printable
from covpool.data.image_folder import FolderSource, class_names, image_names, is_folder, listed_source, visible
from covpool.errors import UserError
from covpool.research.robustness.corruptions import CORRUPTIONS
from covpool.runtime.files import os_errors_as, read_bytes, read_text

EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_PERTURBATIONS = """
    gaussian_noise shot_noise motion_blur zoom_blur snow brightness translate rotate tilt scale
    speckle_noise gaussian_blur spatter shear
"""
PERTURBATIONS = tuple(_PERTURBATIONS.split())
_FILMS = (".mp4", ".avi", ".mkv", ".webm")
_SEVERAL = (".gif", ".png", ".webp", ".tif", ".tiff")
_FORMATS = ("GIF", "PNG", "WEBP", "TIFF")
_MOST_FRAMES = 10_000


def find_folders(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Folders with one of the names in ``root`` or one level deeper, as some archives unpack; UserError for none."""
    if not root.is_dir():
        raise UserError(f"data_path is not a folder: {root}")
    inside = sorted((Path(entry.path) for entry in visible(root) if is_folder(entry)), key=lambda path: path.name)
    deeper = [Path(entry.path) for folder in inside for entry in visible(folder) if is_folder(entry)]
    found = {path.name: path for path in [*deeper, *inside] if path.name in names}
    if not found:
        raise UserError(f"{root} holds none of the folders {', '.join(names)}")
    return {name: found[name] for name in names if name in found}


def corruption_folders(root: Path) -> dict[str, dict[int, Path]]:
    """Corruption: severity: folder with a folder per class; UserError for none, or a corruption without a severity."""
    folders = {}
    for name, folder in find_folders(root, (*CORRUPTIONS, *EXTRA)).items():
        severities = sorted(entry.name for entry in visible(folder) if is_folder(entry))
        if not severities or any(severity not in "12345" or len(severity) > 1 for severity in severities):
            raise UserError(f"{folder} must hold folders named 1 to 5, it holds {severities or 'none'}")
        folders[name] = {int(severity): folder / severity for severity in severities}
    return folders


def folder_source(folder: Path, names: Sequence[str], what: str) -> FolderSource:
    """The images of a folder with a folder per class, some of the network's classes ``names``.

    ``what`` is what messages call the set. UserError: a class that the network does not know, or no image.
    """
    present = class_names(folder)
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise UserError(
            f"{folder}: {unknown[0]!r} is not among the {len(names)} classes of the network"
            + (f", nor are {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    return listed_source(what, "val", names, folder, {name: image_names(folder / name) for name in present})


def network_classes(listed: Path | None, in_checkpoint: Sequence[str], folders: Sequence[str], count: int) -> list[str]:
    """Names of the network's ``count`` classes, in the order of its outputs.

    They are the lines of the file ``listed``; else those that the checkpoint holds; else the names of the set's class
    folders, sorted, if there are as many of them. UserError: none of these, or a file that does not fit.
    """
    if listed is not None:
        try:
            lines = read_text(listed).removeprefix("\ufeff").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read class_names {listed}: {error}", 2) from error
        names = [line.strip() for line in lines if line.strip()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"class_names {listed} names {twice[0]!r} twice", 2)
        if len(names) != count:
            raise UserError(f"class_names {listed} names {len(names)} classes, the configuration class_num={count}", 2)
        return names
    if in_checkpoint:
        return list(in_checkpoint)
    if len(folders) == count:
        return sorted(folders)
    raise UserError(
        f"the checkpoint does not name its classes and the set has {len(folders)} of {count}: give --class_names=FILE, "
        "one name a line in the order of the network's outputs",
        2,
    )


def sequences(folder: Path) -> list[Path]:
    """Sequences of a perturbation, PERTURBATION/CLASS/SEQUENCE, each a film, a picture file or a folder; sorted."""
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
    """Frames of a sequence, uint8 (T, size, size, 3); resized where they have another size. ffmpeg reads films.

    UserError: it cannot be read, has less than two frames, or ffmpeg is not installed.
    """
    with os_errors_as(f"cannot read the sequence {path}"):
        if path.is_dir():
            frames = [
                _sized(_decoded(entry), size) for entry in sorted(path.iterdir()) if entry.suffix.lower() in EXTENSIONS
            ]
        elif path.suffix.lower() in _FILMS:
            frames = list(_read_film(path, size))
        else:
            frames = _read_frames(path, size)
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
    command = [program, "-v", "error", "-i", str(path), "-vf", f"scale={size}:{size}"]
    to_bytes = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([*command, *to_bytes], capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"cannot read the sequence {path}: {done.stderr.decode('utf-8', 'replace').strip()[:200]}")
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 3)
