"""Every problem of an image folder, found before training stumbles over the first; many files on all cores."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from PIL.ImageFile import ImageFile

from covpool.data.decoding import EXTENSIONS, MAX_PIXELS, ImageError, image_kind, load_image, open_image, printable
from covpool.data.image_folder import is_folder, leads_nowhere, visible
from covpool.data.sources import SPLITS
from covpool.data.transforms import LONGEST
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
    **dict.fromkeys(("I", "I;16", "I;16B"), "16-bit gray"),
}
_FEW = 256  # files that are not worth starting processes for


@dataclass(frozen=True)
class Finding:
    """One thing about a file or folder."""

    is_problem: bool  # whether the data cannot be used as they are; else it is a note
    kind: str  # a word or two by which findings are grouped
    text: str  # what was found, on one line
    path: str = ""  # file or folder below the root of the data set, on one line; empty for the data set itself


def _inspect(path: Path, wants_digest: bool, max_pixels: int) -> tuple[list[Finding], bytes]:
    """What there is to say about a file, and the digest of its content if wanted.

    An image of more than ``max_pixels`` is a problem, one of more than half a note.
    """
    if path.suffix.lower() not in EXTENSIONS:
        return [_inspect_other(path)], b""
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


def _inspect_other(path: Path) -> Finding:
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
    """Inspect files in their order, in processes where there are many; UserError if one is killed."""
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


def _notes(image: ImageFile, ending: str, max_pixels: int) -> Iterator[Finding]:
    """What training does to an image that not everybody may expect."""
    if image.mode not in ("RGB", "L"):
        yield Finding(False, "converted", f"is {_CONVERSIONS.get(image.mode, image.mode)}; becomes RGB of 8 bits")
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


@dataclass
class Report:
    """What the check of an image folder came to."""

    # number of image files by split, bad ones included
    images: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)  # number of class folders by split
    # problems and notes: of files in the order of their paths, then of classes, then of the whole
    findings: list[Finding] = field(default_factory=list)
    clean: list[str] = field(default_factory=list)  # images that can be used, as ``<split>/<class>/<file>``

    def add(self, is_problem: bool, kind: str, text: str, path: str) -> None:
        self.findings.append(Finding(is_problem, kind, text, printable(path)))

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def notes(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_problem]


def check_image_folder(
    root: Path,
    workers: Optional[int] = None,
    min_images: int = 1,
    duplicates: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Report:
    """Read and decode every image below ``train/`` and ``val/``, and look at the folders.

    A class with fewer than ``min_images`` usable training images is a problem, and so are more than ``max_pixels``.
    With ``duplicates``, images of ``val/`` that are in ``train/`` too, byte for byte, are found. ``progress`` wraps
    an iterable of known length, e.g. in a progress bar.
    """
    report = Report()
    listed = {split: _list_split(root, split, report) for split in SPLITS}
    paths = [path for classes in listed.values() for members in classes.values() for path in members]
    results = inspect_files([root / path for path in paths], workers, duplicates, max_pixels)
    good: Counter[str] = Counter()
    usable: list[str] = []
    digests: dict[bytes, str] = {}
    for (found, digest), path in zip(progress(results, len(paths)), paths):  # in this order the bar sees the end
        split, label, _ = path.split("/")
        report.findings += [replace(finding, path=printable(path)) for finding in found]
        if not _is_image(path):
            continue
        if not any(finding.is_problem for finding in found):
            good[f"{split}/{label}"] += 1
            usable.append(path)
        if split == "train" and digest:
            digests[digest] = path
        elif digest in digests:
            text = f"has the same content as {printable(digests[digest])}"
            report.add(False, "duplicate", text, path)
    report.images = {split: sum(_is_image(p) for p in paths if p.startswith(f"{split}/")) for split in SPLITS}
    report.classes = {split: len(listed[split]) for split in SPLITS}
    _check_classes(listed, good, min_images, report)
    report.clean = [path for path in usable if good[f"train/{path.split('/')[1]}"]]
    return report


def _list_split(root: Path, split: str, report: Report) -> dict[str, list[str]]:
    """Files by class folder, as paths below the root; what cannot be listed goes to the report."""
    if not (root / split).is_dir():
        is_needed = split == "train"
        what = "is missing: the classes are its folders" if is_needed else "is missing: val_fraction can replace it"
        report.add(is_needed, "no folder", what, split)
        return {}
    classes: dict[str, list[str]] = {}
    for name in _entries(root / split, split, report, want_folders=True):
        place = f"{split}/{name}"
        classes[name] = [f"{place}/{file}" for file in _entries(root / split / name, place, report, want_folders=False)]
    return classes


def _entries(folder: Path, place: str, report: Report, want_folders: bool) -> list[str]:
    """Names of the folders, or of the files, in a folder; anything else that is there goes to the report."""
    try:
        entries = sorted(visible(folder), key=lambda entry: entry.name)
    except UserError:
        report.add(True, "unreadable", "the folder cannot be listed", place)
        return []
    names = []
    for entry in entries:
        path = f"{place}/{entry.name}"
        if leads_nowhere(entry):
            report.add(True, "broken link", "the symbolic link leads nowhere", path)
        elif is_folder(entry) if want_folders else entry.is_file():
            names.append(entry.name)
        else:
            what = "a file beside the class folders" if want_folders else "no file: folders in a class are not entered"
            report.add(False, "left out", what, path)
    return names


def _check_classes(listed: dict[str, dict[str, list[str]]], good: Counter[str], least: int, report: Report) -> None:
    add = report.add
    for split, classes in listed.items():
        for label, members in classes.items():
            place = f"{split}/{label}"
            if not any(map(_is_image, members)):
                is_needed = split == "train" or bool(members)
                add(is_needed, "empty class", "the class folder holds no image", place)
            elif split == "train" and good[place] < max(1, least):
                add(True, "few images", f"{good[place]} usable image(s), {max(1, least)} needed", place)
            if split == "val" and label not in listed["train"]:
                add(True, "unknown class", "the class is not in train/", place)
    for split, count in report.classes.items():
        if not count and not any(finding.path == split for finding in report.findings):
            add(True, "no folder", "there are no class folders", split)
    if listed["train"] and not any(count for place, count in good.items() if place.startswith("train/")):
        add(True, "no image", "no training image can be used", "train")
    if len(listed["train"]) == 1:
        add(True, "one class", "there is one class only: nothing to tell apart", "train")


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in EXTENSIONS
