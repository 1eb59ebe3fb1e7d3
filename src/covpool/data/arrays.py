"""Data sets that are held in memory: any arrays, Fashion-MNIST and CIFAR-10 in their original files.

Source:
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv:1708.07747. MIT licence, Zalando SE.
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; binary version from
    https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from covpool.data.sources import Source, frozen
from covpool.errors import UserError
from covpool.runtime.files import open_regular, os_errors_as, read_bytes

_NAMES = "t-shirt_top trouser pullover dress coat sandal shirt sneaker bag ankle_boot"
FASHION_MNIST_CLASSES = tuple(_NAMES.split())
# Over all pixels of the 60 000 training images, 1 = white. covpool fashion-mnist --raw prints them.
FASHION_MNIST_MEAN = (0.2860,)
FASHION_MNIST_STD = (0.3530,)

FASHION_MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Over all pixels of the 50 000 training images, 1 = full scale; the values in common use for this data set.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

CIFAR10_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "val": ("test_batch.bin",)}
_RECORD = 1 + 3 * 32 * 32
_MAX_DIMENSIONS = 4
_MAX_IDX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """Images held in memory."""

    # uint8, shape (n, H, W, C) with C = 1 or 3
    images: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))

    @property
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        height, width, channels = self.images.shape[1:]
        return (height, width, channels)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


def array_source(
    name: str,
    split: str,
    class_names: Sequence[str],
    images: np.ndarray,
    labels: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
) -> ArraySource:
    """Make a source of images in memory: uint8 (n, H, W, 1 or 3), labels (n,), mean and std by channel, 1 = full scale.

    UserError: shapes do not fit together, or a label is outside the classes.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise UserError(f"{name}: images must be uint8 (n, H, W, 1 or 3), got {images.dtype} {images.shape}")
    if len(images) != len(labels):
        raise UserError(f"{name} {split}: {len(images)} images but {len(labels)} labels")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < len(class_names)):
        raise UserError(
            f"{name} {split}: labels go from {labels.min()} to {labels.max()}, allowed are 0 to {len(class_names) - 1}"
        )
    return ArraySource(
        name=name,
        split=split,
        class_names=tuple(class_names),
        labels=frozen(labels.astype(np.int32)),
        mean=tuple(mean),
        std=tuple(std),
        images=frozen(images),
    )


def open_fashion_mnist(folder: Path, split: str) -> ArraySource:
    """Read one split of Fashion-MNIST (or of another set in MNIST's format with ten classes) into memory.

    The folder holds the four original files, with or without ``.gz``. UserError: one is missing or damaged.
    """
    images_name, labels_name = FASHION_MNIST_FILES[split]
    images = read_idx(find_idx(folder, images_name))
    labels = read_idx(find_idx(folder, labels_name))
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(
            f"{folder}: {images_name} has {images.ndim} dimensions and {labels_name} {labels.ndim}, not 3 and 1"
        )
    return array_source(
        "fashion_mnist", split, FASHION_MNIST_CLASSES, images[..., None], labels, FASHION_MNIST_MEAN, FASHION_MNIST_STD
    )


def find_idx(folder: Path, name: str) -> Path:
    """The path of an idx file, with or without ``.gz``; UserError if neither is there."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(f"no file {name}(.gz) in {folder}; covpool fashion-mnist --raw puts it there")


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in idx format (optionally compressed), uint8, read-only.

    The format is two zero bytes, the type code (8 = unsigned byte), the number of dimensions, each length as a
    big-endian 32-bit number, then the values. UserError: damaged, of another type, or more than 1 GiB.
    """
    try:
        with open_regular(path) as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
            head = file.read(4)
            lengths = file.read(4 * head[3]) if len(head) == 4 else b""
            if head[:3] != b"\0\0\x08" or not head[3:] or not 0 < len(lengths) == 4 * head[3] <= 4 * _MAX_DIMENSIONS:
                raise UserError(f"{path} is not an idx file of unsigned bytes")
            shape = struct.unpack(f">{head[3]}I", lengths)
            size = math.prod(shape)
            if size > _MAX_IDX_BYTES:
                raise UserError(f"{path} claims {size} values, more than {_MAX_IDX_BYTES} are not read")
            values = np.frombuffer(file.read(size + 1), np.uint8)  # not all that a compressed file would become
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if values.size != size:
        held = f"more than {size}" if values.size > size else values.size
        raise UserError(f"{path} is damaged: {held} values, its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def open_cifar10(folder: Path, split: str) -> ArraySource:
    """Read one split of CIFAR-10 into memory, from its binary files or a folder ``cifar-10-batches-bin`` with them.

    UserError: a file is missing or damaged.
    """
    nested = folder / "cifar-10-batches-bin"
    folder = nested if nested.is_dir() else folder
    records = np.concatenate([_read_batch(folder / name) for name in CIFAR10_FILES[split]])
    # One record: the label, then 32 x 32 red values row by row, then green, then blue.
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return array_source("cifar10", split, CIFAR10_CLASSES, images, records[:, 0], CIFAR10_MEAN, CIFAR10_STD)


def _read_batch(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"no file {path} (CIFAR-10 is read in its binary version, cifar-10-binary.tar.gz)")
    with os_errors_as(f"cannot read {path}"):
        values = np.frombuffer(read_bytes(path), np.uint8)
    if not values.size or values.size % _RECORD:
        raise UserError(f"{path} is damaged: {values.size} bytes are no multiple of {_RECORD}")
    return values.reshape(-1, _RECORD)
