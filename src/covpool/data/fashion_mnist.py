"""Fashion-MNIST in its four original files.

Source:
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv:1708.07747. MIT licence, Zalando SE.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from covpool.data.sources import ArraySource, array_source
from covpool.errors import UserError

CLASS_NAMES = (
    "t-shirt_top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle_boot",
)
# Over all pixels of the 60 000 training images, 1 = white. covpool fashion-mnist --raw prints them.
FASHION_MNIST_MEAN = (0.2860,)
FASHION_MNIST_STD = (0.3530,)

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def open_fashion_mnist(folder: Path, split: str) -> ArraySource:
    """Read one split of Fashion-MNIST (or of another set in MNIST's format with ten classes) into memory.

    Args:
        folder: Holds the four original files, with or without ``.gz``.
        split: ``"train"`` (``train-*``) or ``"val"`` (``t10k-*``).

    Raises:
        UserError: A file is missing or damaged.
    """
    images_name, labels_name = FILES[split]
    images = read_idx(find_idx(folder, images_name))
    labels = read_idx(find_idx(folder, labels_name))
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(
            f"{folder}: {images_name} has {images.ndim} dimensions and {labels_name} {labels.ndim}, not 3 and 1"
        )
    return array_source(
        "fashion_mnist", split, CLASS_NAMES, images[..., None], labels, FASHION_MNIST_MEAN, FASHION_MNIST_STD
    )


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of an idx file, with or without ``.gz``.

    Raises:
        UserError: Neither is there.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UserError(f"no file {name}(.gz) in {folder}; covpool fashion-mnist --raw puts it there")


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in idx format (optionally compressed), uint8, read-only.

    The format is two zero bytes, the type code (8 = unsigned byte), the number of dimensions, each length as a
    big-endian 32-bit number, then the values.

    Raises:
        UserError: The file is damaged or holds another type.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is not an idx file of unsigned bytes")
    dimensions = data[3]
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{path} is damaged: {values.size} values, its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)
