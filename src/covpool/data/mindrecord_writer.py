"""Image folders packed into MindRecord files, by MindSpore's ``FileWriter``: any MindRecord reader understands them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np

from covpool.data.decoding import decode_image, printable
from covpool.data.image_folder import FolderSource
from covpool.data.mindrecord import COLUMNS, MAX_SHARDS, PAGE_SIZES, open_mindrecord
from covpool.errors import UserError
from covpool.runtime.environment import available_cores
from covpool.runtime.files import mode_of_new_file, os_errors_as

_CHUNK_BYTES = 64 << 20
DEFAULT_SHARD_BYTES = 1 << 30


def pack_image_folder(
    source: FolderSource, folder: Path, shards: Optional[int] = None, workers: Optional[int] = None
) -> Iterator[int]:
    """Write one split of an image folder as ``folder/<split>.mindrecord*``; yields images written, portion by portion.

    Nothing else may use ``folder`` meanwhile: give it a temporary name and rename it when all is there. By default it
    has one of 1 to 1000 ``shards`` per GiB. UserError: an image cannot be read or is damaged, or a file not written.
    """
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {printable(folder)}: MindSpore needs a path of valid UTF-8") from error
    sizes = np.array([_size(source.path(index)) for index in range(source.num_samples)], np.int64)
    if shards is None:
        shards = -(-int(sizes.sum()) // DEFAULT_SHARD_BYTES)
        shards = min(max(shards, 1), source.num_samples, MAX_SHARDS)
    if not 1 <= shards <= min(source.num_samples, MAX_SHARDS):
        most = min(source.num_samples, MAX_SHARDS)
        raise UserError(f"shards must lie in 1 to {most} for {source.num_samples} images, got {shards}")
    # Equal portions for every shard: what does not divide would always go to the last one.
    chunk = shards * max(1, int(_CHUNK_BYTES // max(1, sizes.mean() * shards)))
    try:
        writer = _writer(source, folder, shards, int(sizes.max()))
        for rows in _portions(source, chunk, workers):
            writer.write_raw_data(rows)
            yield len(rows)
        writer.commit()
        mode = mode_of_new_file(folder / ".mode")
        for path in folder.iterdir():
            if path.name.startswith(f"{source.split}.mindrecord"):
                path.chmod(mode)  # MindSpore makes them readable by their owner alone
    except (RuntimeError, OSError) as error:  # MindRecord's errors are RuntimeErrors
        told = re.search(r"\[ERROR\] (.+)", str(error))  # MindSpore frames its messages
        raise UserError(f"cannot write {folder}: {told[1] if told else error}") from error
    packed = open_mindrecord(folder, source.split)
    if not np.array_equal(packed.lengths, sizes) or not np.array_equal(packed.labels, source.labels):
        raise UserError(f"{folder}: what was written is not what was read; did {source.root} change meanwhile?")


def _writer(source: FolderSource, folder: Path, shards: int, largest: int) -> Any:
    from mindspore.mindrecord import FileWriter

    page = PAGE_SIZES[0]
    while page < largest + (1 << 20) and page < PAGE_SIZES[1]:
        page *= 2
    if page < largest + (1 << 20):
        raise UserError(f"an image of {largest} bytes is too large for a MindRecord file (its pages end at 256 MiB)")
    writer = FileWriter(str(folder / f"{source.split}.mindrecord"), shards)
    writer.set_page_size(page)
    about = {"class_names": source.class_names, "num_samples": source.num_samples}
    writer.add_schema({name: {"type": kind} for name, kind in COLUMNS.items()}, json.dumps(about))
    writer.add_index([name for name in COLUMNS if name != "image"])
    return writer


def _portions(source: FolderSource, chunk: int, workers: Optional[int]) -> Iterator[list[dict[str, Any]]]:
    """Rows of ``chunk`` images; while a portion is written the next one is read."""
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        pending: list[Future[dict[str, Any]]] = []
        try:
            for start in range(0, source.num_samples + chunk, chunk):
                rows, next_ones = pending, range(start, min(start + chunk, source.num_samples))
                pending = [pool.submit(_row, source, index) for index in next_ones]
                if rows:
                    yield [row.result() for row in rows]
        finally:
            for row in pending:
                row.cancel()


def _row(source: FolderSource, index: int) -> dict[str, Any]:
    data = source.read(index)
    decode_image(data, lambda: source.describe(index), source.max_pixels)
    return {
        "image": data.tobytes(),
        "label": int(source.labels[index]),
        "number": index,
        "file": source.files[index].decode("utf-8", "backslashreplace"),
    }


def _size(path: Path) -> int:
    with os_errors_as(f"cannot read image {path}"):
        return path.stat().st_size
