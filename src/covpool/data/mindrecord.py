"""Image folders packed into MindRecord files (``mindrecord_writer``), read by index.

Training needs images by number, in an order of its own, which no reader of MindSpore offers at a bearable cost
(``FileReader`` goes front to back, ``MindPage`` searches its index for every row: 10 ms a row at 3 000 rows). So the
index that lies beside every shard (an SQLite file) is read once, and an image is then one read of known place and
length. What header and index say is checked before it is used: they may come from anywhere.

Format, version 3.0: a shard begins with the length of its header (8 bytes, little-endian) and the header (JSON); pages
of ``page_size`` bytes follow at ``header_size``. The index names page and place of every row; what lies there is the
image's length (8 bytes) and its bytes. Columns: ``image`` (the encoded file), ``label``, ``number`` (position in the
split) and ``file`` (path below the split's folder). The schema's description is JSON with the class names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from covpool.data.decoding import printable
from covpool.data.sources import Source, frozen
from covpool.errors import UserError
from covpool.runtime.files import open_regular

VERSION = "3.0"
COLUMNS = {"image": "bytes", "label": "int32", "number": "int64", "file": "string"}
_LENGTH_BYTES = 8
PAGE_SIZES = (1 << 25, 1 << 28)  # MindRecord's default and greatest; a page must hold the largest image
MAX_SHARDS = 1000
_MAX_PAGES = 1 << 31
_MAX_HEADER = 64 << 20  # bytes
_MAX_PATH = 4096
_QUERY = "SELECT number_0, label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, file_0 FROM INDEXES"


class _Handles:
    """Open files, opened when first needed and closed with this object."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getitem__(self, shard: int) -> int:
        if shard not in self._open:
            with self._lock:
                if shard not in self._open:
                    self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._open[shard]

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)


@dataclasses.dataclass(frozen=True)
class MindRecordSource(Source):
    """Encoded images in the shards of one split."""

    shards: tuple[Path, ...] = ()  # the MindRecord files
    # path of every image below the split's folder when it was packed, as bytes, shape (n,)
    files: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, "S1"))
    # number of the shard of every image, int32, shape (n,)
    shard_of: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int32))
    # place of every image in its shard, in bytes, int64, shape (n,)
    offsets: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    # bytes of every image, int64, shape (n,)
    lengths: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    handles: _Handles = dataclasses.field(repr=False, compare=False, default_factory=lambda: _Handles(()))

    def describe(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]]}:{printable(os.fsdecode(self.files[index]))}"

    def read(self, index: int) -> np.ndarray:
        length = np.empty(_LENGTH_BYTES, np.uint8)
        data = np.empty(self.lengths[index], np.uint8)
        try:
            # One call for both; a position of its own for every call, so threads share the handle.
            got = os.preadv(self.handles[int(self.shard_of[index])], [length.data, data.data], int(self.offsets[index]))
        except OSError as error:
            raise UserError(f"cannot read image {self.describe(index)}: {error.strerror or error}") from error
        if got != _LENGTH_BYTES + len(data) or int.from_bytes(length.tobytes(), "little") != len(data):
            raise UserError(f"damaged image {self.describe(index)}: the shard does not hold what its index says")
        return data

    def stamp(self) -> str:
        """Return names, sizes and times of change of the shards, and which images are taken."""
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.shards]
        return hashlib.sha256(repr(found).encode() + self.shard_of.tobytes() + self.offsets.tobytes()).hexdigest()


def open_mindrecord(folder: Path, split: str) -> MindRecordSource:
    """Open one split that ``pack_image_folder`` wrote: images, labels and class names as in the packed folder.

    UserError: files are missing or damaged, or hold other columns.
    """
    pattern = re.compile(rf"{split}\.mindrecord\d*")
    present = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not present:
        raise UserError(f"no {split}.mindrecord files in {folder}: covpool pack makes them")
    header = _read_header(present[0], split)
    shards = tuple(folder / name for name in header.shards)
    parts = [_read_index(shard, number, split) for number, shard in enumerate(shards)]
    numbers, labels, files, shard_of, offsets, lengths = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(numbers)
    if len(numbers) != header.num_samples or not np.array_equal(numbers[order], np.arange(len(numbers))):
        raise UserError(f"{folder}: the {split} shards hold {len(numbers)} images, {header.num_samples} were packed")
    if not 0 <= labels.min() <= labels.max() < len(header.class_names):
        raise UserError(f"{folder}: {split} labels reach {labels.max()}, there are {len(header.class_names)} classes")
    return MindRecordSource(
        name=str(folder),
        split=split,
        class_names=header.class_names,
        labels=frozen(labels[order].astype(np.int32)),
        shards=shards,
        files=frozen(files[order]),
        shard_of=frozen(shard_of[order]),
        offsets=frozen(offsets[order]),
        lengths=frozen(lengths[order]),
        handles=_Handles(shards),
    )


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a shard says of itself, checked."""

    shards: tuple[str, ...]
    header_size: int
    page_size: int
    class_names: tuple[str, ...]
    num_samples: int


def _read_header(path: Path, split: str) -> _Header:
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            content = json.loads(file.read(length)) if 0 < length <= _MAX_HEADER else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"damaged MindRecord file {path}: its header cannot be read") from error
    if not isinstance(content, dict) or "version" not in content:
        raise UserError(f"damaged MindRecord file {path}: it has no header")
    if content["version"] != VERSION:
        raise UserError(f"{path}: MindRecord version {content['version']}, readable is {VERSION}")
    try:
        schema = content["schema"][0]
        columns = {name: kind["type"] for name, kind in schema["schema"].items()}
        names, sizes = content["shard_addresses"], (content["header_size"], content["page_size"])
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"damaged MindRecord file {path}: its header lacks {error}") from error
    if columns != COLUMNS:
        raise UserError(f"{path}: columns {', '.join(columns)}, needed are {', '.join(COLUMNS)} (covpool pack)")
    # A name could lead anywhere, a number be of any size: both are used as they stand.
    is_name = re.compile(rf"{split}\.mindrecord\d*").fullmatch
    if not isinstance(names, list) or not 0 < len(names) <= MAX_SHARDS or len(set(map(str, names))) != len(names):
        raise UserError(f"damaged MindRecord file {path}: it names no shards")
    if not all(isinstance(name, str) and is_name(name) for name in names):
        raise UserError(f"damaged MindRecord file {path}: it names shards that are none of {split}")
    if not all(type(size) is int and 0 < size <= PAGE_SIZES[1] for size in sizes):
        raise UserError(f"damaged MindRecord file {path}: sizes of {sizes[0]!r} and {sizes[1]!r} bytes")
    try:
        about = json.loads(schema["desc"])
        classes, count = about["class_names"], about["num_samples"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no class names in the description of its schema (covpool pack)") from error
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not is_list or len(set(classes)) < len(classes):
        raise UserError(f"damaged MindRecord file {path}: its class names are no list of different names")
    if type(count) is not int or count < 1:
        raise UserError(f"damaged MindRecord file {path}: it says that {count!r} images were packed")
    return _Header(tuple(names), *sizes, tuple(classes), count)


def _read_index(shard: Path, number: int, split: str) -> tuple[np.ndarray, ...]:
    """Numbers, labels, files, shard number, places and lengths of the rows of one shard."""
    header = _read_header(shard, split)
    index = Path(f"{shard}.db")
    if not index.is_file():
        raise UserError(f"cannot read {index}: it belongs to {shard.name}, copy both")
    try:
        # immutable: no lock files, which read-only and network file systems may refuse.
        address = f"file:{quote(str(index.resolve()))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            if database.execute("SELECT type FROM sqlite_master WHERE name = 'INDEXES'").fetchall() != [("table",)]:
                raise sqlite3.DatabaseError("it has no table of images")  # a view could compute for ever
            rows = database.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"damaged index {index}: {error}") from error
    if not all(type(file) is str and len(file) <= _MAX_PATH and {*map(type, r)} == {int} for *r, file in rows):
        raise UserError(f"damaged index {index}: a row is not of numbers and the path of a file")
    try:
        numbers, labels, pages, begin, end = np.array([row[:-1] for row in rows], np.int64).reshape(-1, 5).T
    except OverflowError as error:
        raise UserError(f"damaged index {index}: {error}") from error
    is_page, is_row = (pages >= 0) & (pages < _MAX_PAGES), (begin >= 0) & (end <= header.page_size)
    if not (is_page & is_row & (begin + _LENGTH_BYTES < end)).all():
        raise UserError(f"damaged index {index}: an image lies outside of the pages of {shard.name}")
    files = np.array([row[-1].encode("utf-8") for row in rows], dtype=bytes)
    offsets = header.header_size + pages * header.page_size + begin
    return numbers, labels, files, np.full(len(rows), number, np.int32), offsets, end - begin - _LENGTH_BYTES
