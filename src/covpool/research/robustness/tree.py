"""Write an ImageNet-C-like tree, CORRUPTION/SEVERITY/CLASS/FILE, from an image folder."""

from __future__ import annotations

import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covpool.data.decoding import ImageError, load_image, open_image, printable
from covpool.data.image_folder import class_names, image_names
from covpool.data.transforms import trim_long_side
from covpool.errors import UserError
from covpool.research.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from covpool.runtime.files import os_errors_as, read_bytes, whole_file
from covpool.runtime.processes import process_pool


@dataclass(frozen=True)
class Plan:
    """What to write."""

    source: Path  # holds a folder per class
    output: Path  # root of the tree
    corruptions: tuple[str, ...] = CORRUPTIONS  # names
    severities: tuple[int, ...] = SEVERITIES  # 1 to 5
    scale: str = "imagenet"  # ``imagenet`` or ``small``
    # side of the square that is cut from the middle after the shorter side was brought to ``size / 0.875``; None to
    # keep images as they are
    size: int | None = 224
    per_class: int | None = None  # at most this many images of a class, the first by name; None for all
    seed: int = 0  # of the random numbers


def list_images(plan: Plan) -> list[str]:
    """Paths CLASS/FILE below the source, sorted; UserError: there is no class folder, or one without images."""
    names = class_names(plan.source)
    return [f"{name}/{file}" for name in names for file in image_names(plan.source / name)[: plan.per_class]]


def write_tree(plan: Plan, images: Sequence[str], workers: int) -> Iterator[int]:
    """Corrupt every image in every way; what is there already is left alone, so that a stopped run goes on.

    An image depends on the seed, its name, the corruption and the severity alone, not on the number of workers. Files
    keep their format if it has no loss; others are JPEG of quality 85, as ImageNet-C is. Yields, for every source
    image, how many files were written for it. UserError: an image cannot be read, or a file not be written.
    """
    labels = {path.split("/")[0] for path in images}
    for corruption, severity, label in itertools.product(plan.corruptions, plan.severities, labels):
        (plan.output / corruption / str(severity) / label).mkdir(parents=True, exist_ok=True)
    write = partial(_write_all, plan, frozenset(_shared_names(plan.source, labels)))
    if workers == 1:
        yield from map(write, images)
        return
    with process_pool(workers) as pool:
        yield from pool.map(write, images, chunksize=4)


def _written_as(path: str) -> str:
    return path if Path(path).suffix.lower() in (".png", ".bmp") else str(Path(path).with_suffix(".JPEG"))


def _shared_names(source: Path, labels: Iterable[str]) -> Iterator[str]:
    """Names that several images would be written as, x.jpg and x.jpeg for one: these images keep their own."""
    for label in labels:
        counts = Counter(_written_as(f"{label}/{file}") for file in image_names(source / label))
        yield from (name for name, count in counts.items() if count > 1)


def _write_all(plan: Plan, shared: frozenset[str], path: str) -> int:
    name = _written_as(path)
    name = path if name in shared else name
    todo = [
        (number, corruption, severity)
        for number, corruption in enumerate(CORRUPTIONS)
        if corruption in plan.corruptions
        for severity in plan.severities
        if not (plan.output / corruption / str(severity) / name).exists()
    ]
    if not todo:
        return 0
    pixels, mode = _read(plan.source / path, plan.size)
    for number, corruption, severity in todo:
        generator = np.random.default_rng([plan.seed, zlib.crc32(os.fsencode(path)), number, severity])
        result = Image.fromarray(corrupt(pixels, corruption, severity, plan.scale, generator))
        _write(result.convert(mode), plan.output / corruption / str(severity) / name)
    return len(todo)


def _read(path: Path, size: int | None) -> tuple[np.ndarray, str]:
    """Pixels as RGB, and L for a gray image or RGB."""
    try:
        with open_image(read_bytes(path)) as opened:
            mode = "L" if opened.mode in ("1", "L") else "RGB"
            pixels = load_image(opened)
    except ImageError as error:
        raise UserError(f"{error.kind} image {printable(path)}: {error.reason}") from error
    except OSError as error:
        raise UserError(f"cannot read image {printable(path)}: {error.strerror or error}") from error
    image = Image.fromarray(pixels)
    if size is not None:
        image = Image.fromarray(trim_long_side(pixels))  # a stripe would become gigabytes
        factor = round(size / 0.875) / min(image.size)
        width, height = (max(size, round(side * factor)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        image = resized.crop((left, top, left + size, top + size))
    return np.asarray(image), mode


def _write(image: Image.Image, path: Path) -> None:
    arguments: dict[str, Any] = {} if path.suffix.lower() in (".png", ".bmp") else {"quality": 85, "optimize": True}
    with os_errors_as(f"cannot write {path}"), whole_file(path, durable=False) as temporary:  # millions of files
        image.save(temporary, **arguments)
