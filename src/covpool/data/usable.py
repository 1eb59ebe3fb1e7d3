"""The images of a source that can be decoded, found before training so that all ranks count the same ones."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from covpool.data.sources import Source
from covpool.errors import UserError
from covpool.runtime.environment import available_cores
from covpool.runtime.files import os_errors_as, read_text, write_json

_CHUNK = 64  # images that a thread takes at once


def usable(
    source: Source,
    workers: Optional[int] = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    total: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    cache: Optional[Path] = None,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Source, list[str]]:
    """Leave out the images that cannot be read or decoded; every rank calls it and gets the same answer.

    Each rank decodes every ``world_size``-th image, by Pillow, in threads; the marks are summed, so no rank can be of
    another opinion, whatever its own file system shows it. In memory there is nothing to check.

    Args:
        source: The images.
        workers: Threads, None for one per core available to this process.
        rank: This process, 0 to world_size - 1.
        world_size: Number of ranks.
        total: Sums a float64 array over all ranks.
        cache: File for the answer; used again (by rank 0, for all) while names, sizes and times of the images are
            the same. An answer that rests on an unreadable file is not kept: it may be readable next time.
        progress: Called with a number of images of this rank that have been checked.

    Returns the source without bad images, in the old order, and one line per bad image. UserError: no image is left,
    ranks see different numbers of images, or the cache cannot be written.
    """
    if source.image_shape is not None:
        return source, []
    count = source.num_samples
    seen = int(total(np.array([count], np.float64))[0])
    if seen != count * world_size:
        raise UserError(
            f"the ranks do not see the same images: {source.split} has {count} on rank {rank} and {seen} on all "
            f"{world_size} ranks together"
        )
    stamp = f"{source.stamp()} {source.max_pixels}" if cache is not None and rank == 0 else ""
    marks = _remembered(cache, stamp, count) if cache is not None and rank == 0 else None
    known = marks is not None
    if not total(np.array([known], np.float64))[0]:
        marks = _marks(source, range(rank, count, world_size), workers or available_cores(), progress)
    bad = np.flatnonzero(total(np.zeros(count) if marks is None else marks))
    problems = [_problem(source, int(index)) for index in bad]
    if len(bad) == count:
        raise UserError(f"none of the {count} {source.split} images can be used, first: {problems[0]}")
    if cache is not None and rank == 0 and not known and not any(p.startswith("cannot read") for p in problems):
        with os_errors_as(f"cannot write {cache}"):
            write_json(cache, {"stamp": stamp, "num_samples": count, "bad": bad.tolist(), "problems": problems})
    return (source.subset(np.setdiff1d(np.arange(count), bad).tolist()) if len(bad) else source), problems


def _marks(source: Source, indices: range, workers: int, progress: Callable[[int], object]) -> np.ndarray:
    """1 for every image of these that cannot be decoded, else 0, float64 (n,)."""
    marks = np.zeros(source.num_samples)

    def check(part: range) -> int:
        for index in part:
            try:
                source.pixels(index)
            except UserError:
                marks[index] = 1  # no two threads have the same element
        return len(part)

    with ThreadPoolExecutor(workers) as pool:
        parts = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
        for done in pool.map(check, parts):
            progress(done)
    return marks


def _problem(source: Source, index: int) -> str:
    try:
        source.pixels(index)
    except UserError as error:
        return str(error)
    return f"image {source.describe(index)} could not be read by another rank"


def _remembered(cache: Path, stamp: str, count: int) -> Optional[np.ndarray]:
    """Marks from the cache, if it is there, undamaged and of the same files."""
    try:
        content = json.loads(read_text(cache))
        if content["stamp"] != stamp or content["num_samples"] != count:
            return None
        marks = np.zeros(count)
        marks[np.asarray(content["bad"], np.int64)] = 1
        return marks
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
