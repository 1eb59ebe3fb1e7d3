"""Images in ``data_path/<split>/<class>/*`` (splits ``train``, ``val``, ``test``), and lists of those to be used.

A list is a text file with one ``<split>/<class>/<file>`` a line. Paths are below the data set's root, in UTF-8. Empty
lines and lines that begin with ``#`` are passed over. A path that would not survive as a line (line breaks, blanks at
its ends, bytes that are no UTF-8) stands as a JSON string.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from covpool.data.decoding import EXTENSIONS, printable
from covpool.data.sources import Source, frozen
from covpool.errors import UserError
from covpool.runtime.files import os_errors_as, read_bytes, read_text, write_text


@dataclasses.dataclass(frozen=True)
class FolderSource(Source):
    """Encoded image files of one split."""

    root: Path = Path()  # the folder ``data_path/<split>``
    # paths below ``root`` as bytes, shape (n,): a third of the memory of a million strings, and names that are no valid
    # UTF-8 keep their bytes
    files: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, "S1"))

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def describe(self, index: int) -> str:
        return printable(self.path(index))

    def read(self, index: int) -> np.ndarray:
        try:
            return np.frombuffer(read_bytes(self.path(index)), np.uint8)
        except OSError as error:
            raise UserError(f"cannot read image {self.describe(index)}: {error.strerror or error}") from error

    def stamp(self) -> str:
        """Return a digest of names, sizes and times of change of all files."""
        digest = hashlib.sha256()
        for index in range(self.num_samples):
            try:
                found = self.path(index).stat()
                state = f"{found.st_size} {found.st_mtime_ns}"
            except OSError as error:
                state = f"error {error.errno}"
            digest.update(bytes(self.files[index]) + b"\0" + state.encode() + b"\0")
        return digest.hexdigest()


def open_image_folder(
    folder: Path, split: str, image_list: Optional[Path] = None, val_fraction: float = 0.0
) -> FolderSource:
    """List one split of an image folder. Class indices follow the sorted folder names of ``train/`` for every split.

    Files are sorted by name within a class. Names that begin with a dot and files that are no images are left out;
    folders below a class folder are not entered; symbolic links are followed. With an ``image_list`` nothing is listed:
    classes and files are those of the list, in the same order. Without ``val/`` the part ``val_fraction`` of ``train/``
    is ``val`` instead, see :func:`_held_out`.

    UserError: no such folders, a class without images, a class that ``train/`` lacks, or a broken symbolic link.
    """
    listed = read_image_list(image_list) if image_list else {}
    has_val = "val" in listed if image_list else os.path.lexists(folder / "val")
    is_split = bool(val_fraction) and not has_val and split != "test"
    place = "train" if is_split else split
    if image_list is None:
        train_classes = class_names(folder / "train")
        names = train_classes if place == "train" else class_names(folder / place)
        members = {name: image_names(folder / place / name, may_be_empty=place != "train") for name in names}
    else:
        for needed in {"train", place}:  # the classes are those of train/
            if needed not in listed:
                raise UserError(f"image_list {image_list} names no image of {needed}/")
        train_classes, members = list(listed["train"]), listed[place]
    if is_split:
        members = {
            name: [file for file, held in zip(files, _held_out(name, files, val_fraction)) if held == (split == "val")]
            for name, files in members.items()
        }
    unknown = [name for name in members if name not in train_classes]
    if unknown:
        raise UserError(
            f"{folder / place}: {len(unknown)} class folder(s) that {folder / 'train'} does not have, "
            f"first {unknown[0]!r}"
        )
    source = listed_source(str(folder), split, train_classes, folder / place, members)
    if not source.num_samples:
        raise UserError(f"no image in the class folders of {folder / place}")
    return source


def listed_source(
    name: str, split: str, classes: Sequence[str], root: Path, members: Mapping[str, Sequence[str]]
) -> FolderSource:
    """The source of these files, by class, below ``root``."""
    index_of = {label: index for index, label in enumerate(classes)}
    labels = np.repeat([index_of[label] for label in members], [len(files) for files in members.values()])
    files = [os.fsencode(f"{label}/{file}") for label, inside in members.items() for file in inside]
    return FolderSource(
        name=name,
        split=split,
        class_names=tuple(classes),
        labels=frozen(labels.astype(np.int32)),
        root=root,
        files=frozen(np.asarray(files, dtype=bytes)),
    )


def _held_out(name: str, files: list[str], fraction: float) -> list[bool]:
    """Which images of a class of ``train/`` are its validation images; UserError for a class with a single image.

    An image is one by a hash of its path alone: others may come and go, it stays where it is. A class has about this
    part of its images there, and at least one on each side.
    """
    if len(files) < 2:
        raise UserError(f"val_fraction = {fraction:g}: class {name!r} has a single image, which cannot be split")
    digests = [hashlib.sha256(os.fsencode(f"{name}/{file}")).digest() for file in files]
    held = [int.from_bytes(digest[:8], "big") < fraction * 2**64 for digest in digests]
    if not any(held):
        held[digests.index(min(digests))] = True
    if all(held):
        held[digests.index(max(digests))] = False
    return held


def class_names(folder: Path) -> list[str]:
    """The names of the class folders of a split, sorted; UserError for none, or a symbolic link that leads nowhere."""
    if not folder.is_dir():
        instead = "; without val/, --val_fraction=0.2 takes that part of train/" if folder.name == "val" else ""
        raise UserError(
            f"no folder {folder}: an image folder holds train/ and val/, each with one folder per class{instead}"
        )
    names = [entry.name for entry in visible(folder) if is_folder(entry)]
    if not names:
        raise UserError(f"no class folders in {folder}")
    return sorted(names)


def image_names(folder: Path, may_be_empty: bool = False) -> list[str]:
    """The names of the images of a class folder, sorted; UserError for none, or a symbolic link that leads nowhere.

    With ``may_be_empty`` a folder in which there is nothing at all is fine.
    """
    names = []
    others = set()
    for entry in visible(folder):
        extension = Path(entry.name).suffix.lower()
        if extension not in EXTENSIONS:
            others.add(extension)
        elif leads_nowhere(entry):
            raise UserError(f"symbolic link leads nowhere: {printable(entry.path)}")
        elif entry.is_file():
            names.append(entry.name)
    if not names and (others or not may_be_empty):
        found = f", only {', '.join(sorted(others - {''}))}" if others - {""} else ""
        raise UserError(
            f"class folder without images: {printable(folder)} (readable are {', '.join(EXTENSIONS)}{found})"
        )
    return sorted(names)


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without names that begin with a dot; UserError if it cannot be listed."""
    with os_errors_as(f"cannot list {printable(folder)}"), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a symbolic link to nothing, or one that leads to itself."""
    try:
        return entry.is_symlink() and not Path(entry.path).exists()
    except OSError:  # a loop, before Python 3.13
        return True


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one; UserError for a link that leads nowhere."""
    if leads_nowhere(entry):
        raise UserError(f"symbolic link leads nowhere: {printable(entry.path)}")
    return entry.is_dir()


def format_line(path: str) -> str:
    """Return the line for one path."""
    return path if path.isprintable() and path == path.strip() and path[:1] not in '#"' else json.dumps(path)


def write_image_list(path: Path, images: Iterable[str], comment: str = "") -> None:
    """Write a list of paths ``<split>/<class>/<file>``, as ``os.fsdecode`` gives them, whole or not at all."""
    lines = [f"# {comment}"] if comment else []
    text = "".join(f"{line}\n" for line in [*lines, *map(format_line, images)])
    with os_errors_as(f"cannot write {path}"):
        write_text(path, text)


def read_image_list(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read a list: file names by split and class, all in sorted order.

    UserError: it cannot be read, or a line is no path ``<split>/<class>/<file>`` or occurs twice.
    """
    try:
        text = read_text(path)
    except UnicodeError as error:
        raise UserError(f"image_list {path} is no text in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read image_list {path}: {error.strerror or error}") from error
    found: dict[str, dict[str, set[str]]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            split, label, name = _path(line).split("/")
        except ValueError:
            split = label = name = ""
        if split not in ("train", "val", "test") or {label, name} & {"", ".", ".."}:
            raise UserError(
                f"image_list {path}, line {number}: {printable(line)[:100]!r} is no path train/<class>/<file> or "
                "val/<class>/<file>"
            )
        names = found.setdefault(split, {}).setdefault(label, set())
        if name in names:
            raise UserError(f"image_list {path}, line {number}: {printable(line)} stands there twice")
        names.add(name)
    return {
        split: {label: sorted(names) for label, names in sorted(classes.items())} for split, classes in found.items()
    }


def _path(line: str) -> str:
    text = json.loads(line) if line.startswith('"') else line
    if "\0" in text:
        raise ValueError
    return str(text)
