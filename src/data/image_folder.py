"""Images in ``data_path/train/<class>/*`` and ``data_path/val/<class>/*``."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image, UnidentifiedImageError

from src.data.sources import IMAGENET_MEAN, IMAGENET_STD, Source, _frozen
from src.errors import UserError

# What MindSpore's decoder reads well: it has neither WebP nor GIF, and multiplies the colours of a TIFF by its alpha.
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png")
_PILLOW_FORMATS = ("BMP", "JPEG", "MPO", "PNG")  # MPO: JPEG with a second picture behind it


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """Encoded image files of one split.

    Attributes:
        root: The folder ``data_path/<split>``.
        files: Paths below ``root`` as bytes, shape (n,): a third of the memory of a million strings, and names that
            are no valid UTF-8 keep their bytes.
    """

    root: Path = Path()
    files: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, "S1"))

    @property
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        """None: files of any size."""
        return None

    def path(self, index: int) -> Path:
        """Return the path of one image."""
        return self.root / os.fsdecode(self.files[index])

    def describe(self, index: int) -> str:
        """Return the path of one image."""
        return str(self.path(index))

    def read(self, index: int) -> np.ndarray:
        """Return the bytes of one file, uint8 (n,)."""
        path = self.path(index)
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise UserError(f"cannot read image {path}: {error.strerror or error}") from error
        check_encoded(data, path)
        return data

    def _subset_fields(self, chosen: np.ndarray) -> dict[str, Any]:
        return {"files": self.files[chosen]}


def open_image_folder(folder: Path, split: str) -> FolderSource:
    """List one split of an image folder. Class indices follow the sorted folder names of ``train/`` for both splits.

    Files are sorted by name within a class. Names that begin with a dot and files that are no images are left out;
    folders below a class folder are not entered; symbolic links are followed.

    Args:
        folder: Holds ``train/`` and, for that split, ``val/``.
        split: ``"train"`` or ``"val"``.

    Raises:
        UserError: No such folders, a class without images, a class in ``val/`` that ``train/`` lacks, or a symbolic
            link that leads nowhere.
    """
    train_classes = _class_names(folder / "train")
    names = train_classes if split == "train" else _class_names(folder / split)
    index_of = {name: index for index, name in enumerate(train_classes)}
    unknown = [name for name in names if name not in index_of]
    if unknown:
        raise UserError(
            f"{folder / split}: {len(unknown)} class folder(s) that {folder / 'train'} does not have, "
            f"first {unknown[0]!r}"
        )
    files: list[bytes] = []
    labels: list[int] = []
    for name in names:
        members = _image_names(folder / split / name)
        files += [os.fsencode(f"{name}/{member}") for member in members]
        labels += [index_of[name]] * len(members)
    return FolderSource(
        name=str(folder),
        split=split,
        class_names=tuple(train_classes),
        labels=_frozen(np.asarray(labels, np.int32)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        root=folder / split,
        files=_frozen(np.asarray(files, dtype=bytes)),
    )


def check_encoded(data: np.ndarray, path: Path) -> None:
    """Raise UserError if these bytes are not a whole image that MindSpore decodes.

    MindSpore's own message names no file once the bytes come from a Python source. The usual damage (empty, cut
    short, not an image) shows at the two ends of the file, which costs microseconds; only a file that looks odd there
    is decoded by Pillow, for its verdict.

    Args:
        data: The file's bytes, uint8 (n,).
        path: Its name, for the message.
    """
    if not len(data):
        raise UserError(f"damaged image {path}: the file is empty")
    if _looks_whole(data[:8].tobytes(), data[-12:].tobytes(), len(data)):
        return
    try:
        with Image.open(io.BytesIO(data.tobytes())) as image:
            kind = image.format
            image.load()
    except UnidentifiedImageError as error:
        raise UserError(f"damaged image {path}: the file is no image") from error
    except Exception as error:  # whatever Pillow raises on such a file (many types), the file is the reason
        raise UserError(f"damaged image {path}: {error or type(error).__name__}".replace("\n", " ")) from error
    if kind not in _PILLOW_FORMATS:
        raise UserError(f"unsupported image {path}: {kind} data, readable are {', '.join(EXTENSIONS)} files")


def _looks_whole(head: bytes, tail: bytes, size: int) -> bool:
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    if head == b"\x89PNG\r\n\x1a\n":
        return tail[4:8] == b"IEND"
    return head.startswith(b"BM") and int.from_bytes(head[2:6], "little") == size


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: an image folder holds train/ and val/, each with one folder per class")
    names = [entry.name for entry in _visible(folder) if _is_folder(entry)]
    if not names:
        raise UserError(f"no class folders in {folder}")
    return sorted(names)


def _image_names(folder: Path) -> list[str]:
    names = []
    others = set()
    for entry in _visible(folder):
        extension = Path(entry.name).suffix.lower()
        if extension not in EXTENSIONS:
            others.add(extension)
        elif entry.is_symlink() and not Path(entry.path).exists():
            raise UserError(f"symbolic link leads nowhere: {entry.path}")
        elif entry.is_file():
            names.append(entry.name)
    if not names:
        found = f", only {', '.join(sorted(others - {''}))}" if others - {""} else ""
        raise UserError(f"class folder without images: {folder} (readable are {', '.join(EXTENSIONS)}{found})")
    return sorted(names)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror or error}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_dir():
            return True
        broken = entry.is_symlink() and not Path(entry.path).exists()
    except OSError:  # a link that leads to itself, before Python 3.13
        broken = True
    if broken:
        raise UserError(f"symbolic link leads nowhere: {entry.path}")
    return False
