"""Image folders packed into MindRecord files, and read back by index.

``pack_image_folder`` writes with MindSpore's ``FileWriter``: any MindRecord reader understands the files. Training
needs images by number, in an order of its own, which no reader of MindSpore offers at a bearable cost (``FileReader``
goes front to back, ``MindPage`` searches its index for every row: 10 ms a row at 3 000 rows). So the index that lies
beside every shard (an SQLite file) is read once, and an image is then one read of known place and length.

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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

import numpy as np

from covpool.data.decoding import decode_image, printable
from covpool.data.image_folder import FolderSource
from covpool.data.sources import IMAGENET_MEAN, IMAGENET_STD, Source, _frozen
from covpool.errors import UserError
from covpool.runtime.environment import available_cores

VERSION = "3.0"
_COLUMNS = {"image": "bytes", "label": "int32", "number": "int64", "file": "string"}
_LENGTH_BYTES = 8
_PAGE_SIZES = (1 << 25, 1 << 28)  # MindRecord's default and greatest; a page must hold the largest image
_CHUNK_BYTES = 64 << 20
_MAX_SHARDS = 1000
DEFAULT_SHARD_BYTES = 1 << 30


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
    """Encoded images in the shards of one split.

    Attributes:
        shards: The MindRecord files.
        files: Path of every image below the split's folder when it was packed, as bytes, shape (n,).
        shard_of: Number of the shard of every image, int32, shape (n,).
        offsets: Place of every image in its shard, in bytes, int64, shape (n,).
        lengths: Bytes of every image, int64, shape (n,).
    """

    shards: tuple[Path, ...] = ()
    files: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, "S1"))
    shard_of: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int32))
    offsets: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    lengths: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty(0, np.int64))
    handles: _Handles = dataclasses.field(repr=False, compare=False, default_factory=lambda: _Handles(()))

    @property
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        """None: encoded images of any size."""
        return None

    def describe(self, index: int) -> str:
        """Return shard and original path of one image."""
        return f"{self.shards[self.shard_of[index]]}:{printable(os.fsdecode(self.files[index]))}"

    def read(self, index: int) -> np.ndarray:
        """Return the bytes of one image file, uint8 (n,)."""
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

    def _subset_fields(self, chosen: np.ndarray) -> dict[str, Any]:
        return {name: getattr(self, name)[chosen] for name in ("files", "shard_of", "offsets", "lengths")}


def open_mindrecord(folder: Path, split: str) -> MindRecordSource:
    """Open one split that ``pack_image_folder`` wrote: images, labels and class names as in the packed folder.

    Args:
        folder: Holds ``train.mindrecord*`` and, for that split, ``val.mindrecord*``.
        split: ``"train"`` or ``"val"``.

    Raises:
        UserError: Files are missing or damaged, or hold other columns.
    """
    pattern = re.compile(rf"{split}\.mindrecord\d*")
    present = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if not present:
        raise UserError(f"no {split}.mindrecord files in {folder}: scripts/to_mindrecord.py makes them")
    header = _read_header(present[0])
    shards = tuple(folder / name for name in header["shard_addresses"])
    parts = [_read_index(shard, number) for number, shard in enumerate(shards)]
    numbers, labels, files, shard_of, offsets, lengths = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(numbers)
    class_names, expected = _description(header, present[0])
    if not np.array_equal(numbers[order], np.arange(expected)):
        raise UserError(f"{folder}: the {split} shards hold {len(numbers)} images, {expected} were packed")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise UserError(f"{folder}: {split} labels reach {labels.max()}, there are {len(class_names)} classes")
    return MindRecordSource(
        name=str(folder),
        split=split,
        class_names=class_names,
        labels=_frozen(labels[order].astype(np.int32)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        shards=shards,
        files=_frozen(files[order]),
        shard_of=_frozen(shard_of[order]),
        offsets=_frozen(offsets[order]),
        lengths=_frozen(lengths[order]),
        handles=_Handles(shards),
    )


def pack_image_folder(
    source: FolderSource, folder: Path, shards: Optional[int] = None, workers: Optional[int] = None
) -> Iterator[int]:
    """Write one split of an image folder as ``folder/<split>.mindrecord*``; the files appear where they stay.

    Nothing else may use ``folder`` meanwhile: give it a temporary name and rename it when all is there.

    Args:
        source: The images, in the order that the packed split keeps.
        folder: An existing folder.
        shards: Number of files, 1 to 1000; by default one per GiB.
        workers: Threads that read images; by default one per core.

    Yields:
        Images written, after every portion.

    Raises:
        UserError: An image cannot be read or is damaged, or the files cannot be written.
    """
    sizes = np.array([_size(source.path(index)) for index in range(source.num_samples)], np.int64)
    if shards is None:
        shards = -(-int(sizes.sum()) // DEFAULT_SHARD_BYTES)
        shards = min(max(shards, 1), source.num_samples, _MAX_SHARDS)
    if not 1 <= shards <= min(source.num_samples, _MAX_SHARDS):
        most = min(source.num_samples, _MAX_SHARDS)
        raise UserError(f"shards must lie in 1 to {most} for {source.num_samples} images, got {shards}")
    # Equal portions for every shard: what does not divide would always go to the last one.
    chunk = shards * max(1, int(_CHUNK_BYTES // max(1, sizes.mean() * shards)))
    try:
        writer = _writer(source, folder, shards, int(sizes.max()))
        for rows in _portions(source, chunk, workers):
            writer.write_raw_data(rows)
            yield len(rows)
        writer.commit()
        for path in folder.glob(f"{source.split}.mindrecord*"):
            path.chmod(0o644)  # MindSpore makes them readable by their owner alone
    except (RuntimeError, OSError) as error:  # MindRecord's errors are RuntimeErrors
        told = re.search(r"\[ERROR\] (.+)", str(error))  # MindSpore frames its messages
        raise UserError(f"cannot write {folder}: {told[1] if told else error}") from error
    packed = open_mindrecord(folder, source.split)
    if not np.array_equal(packed.lengths, sizes) or not np.array_equal(packed.labels, source.labels):
        raise UserError(f"{folder}: what was written is not what was read; did {source.root} change meanwhile?")


def _writer(source: FolderSource, folder: Path, shards: int, largest: int) -> Any:
    from mindspore.mindrecord import FileWriter

    page = _PAGE_SIZES[0]
    while page < largest + (1 << 20) and page < _PAGE_SIZES[1]:
        page *= 2
    if page < largest + (1 << 20):
        raise UserError(f"an image of {largest} bytes is too large for a MindRecord file (its pages end at 256 MiB)")
    writer = FileWriter(str(folder / f"{source.split}.mindrecord"), shards)
    writer.set_page_size(page)
    about = {"class_names": source.class_names, "num_samples": source.num_samples}
    writer.add_schema({name: {"type": kind} for name, kind in _COLUMNS.items()}, json.dumps(about))
    writer.add_index([name for name in _COLUMNS if name != "image"])
    return writer


def _portions(source: FolderSource, chunk: int, workers: Optional[int]) -> Iterator[list[dict[str, Any]]]:
    """Rows of ``chunk`` images; while a portion is written the next one is read."""
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        pending: list[Future[dict[str, Any]]] = []
        try:
            for start in range(0, source.num_samples + chunk, chunk):
                rows, pending = (
                    pending,
                    [
                        pool.submit(_row, source, index)
                        for index in range(start, min(start + chunk, source.num_samples))
                    ],
                )
                if rows:
                    yield [row.result() for row in rows]
        finally:
            for row in pending:
                row.cancel()


def _row(source: FolderSource, index: int) -> dict[str, Any]:
    data = source.read(index)
    decode_image(data, lambda: source.describe(index))
    return {
        "image": data.tobytes(),
        "label": int(source.labels[index]),
        "number": index,
        "file": source.files[index].decode("utf-8", "backslashreplace"),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from error


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if 0 < length < 1 << 30 else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"damaged MindRecord file {path}: its header cannot be read") from error
    if not isinstance(header, dict) or "version" not in header:
        raise UserError(f"damaged MindRecord file {path}: it has no header")
    if header["version"] != VERSION:
        raise UserError(f"{path}: MindRecord version {header['version']}, readable is {VERSION}")
    columns = {name: kind.get("type") for name, kind in header["schema"][0]["schema"].items()}
    if columns != _COLUMNS:
        raise UserError(f"{path}: columns {', '.join(columns)}, needed are {', '.join(_COLUMNS)} (to_mindrecord.py)")
    return header


def _description(header: dict[str, Any], path: Path) -> tuple[tuple[str, ...], int]:
    try:
        about = json.loads(header["schema"][0]["desc"])
        return tuple(about["class_names"]), int(about["num_samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no class names in the description of its schema (to_mindrecord.py)") from error


def _read_index(shard: Path, number: int) -> tuple[np.ndarray, ...]:
    """Numbers, labels, files, shard number, places and lengths of the rows of one shard."""
    header = _read_header(shard)
    index = Path(f"{shard}.db")
    if not index.is_file():
        raise UserError(f"cannot read {index}: it belongs to {shard.name}, copy both")
    query = "SELECT number_0, label_0, file_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES"
    try:
        # immutable: no lock files, which read-only and network file systems may refuse.
        address = f"file:{quote(str(index.resolve()))}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            rows = database.execute(query).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"damaged index {index}: {error}") from error
    table = np.array([(row[0], row[1], *row[3:]) for row in rows], np.int64).reshape(-1, 5)
    numbers, labels, pages, begin, end = table.T
    files = np.array([row[2].encode("utf-8") for row in rows], dtype=bytes)
    offsets = header["header_size"] + pages * header["page_size"] + begin
    return numbers, labels, files, np.full(len(rows), number, np.int32), offsets, end - begin - _LENGTH_BYTES
