"""CIFAR-10 in its original binary files.

Source:
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; binary version from
    https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from covpool.data.sources import ArraySource, array_source
from covpool.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Over all pixels of the 50 000 training images, 1 = full scale; the values in common use for this data set.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "val": ("test_batch.bin",)}
_RECORD = 1 + 3 * 32 * 32


def open_cifar10(folder: Path, split: str) -> ArraySource:
    """Read one split of CIFAR-10 into memory.

    Args:
        folder: Holds the binary files, or a folder ``cifar-10-batches-bin`` with them.
        split: ``"train"`` (``data_batch_1.bin`` to ``data_batch_5.bin``) or ``"val"`` (``test_batch.bin``).

    Raises:
        UserError: A file is missing or damaged.
    """
    nested = folder / "cifar-10-batches-bin"
    folder = nested if nested.is_dir() else folder
    records = np.concatenate([_read_batch(folder / name) for name in FILES[split]])
    # One record: the label, then 32 x 32 red values row by row, then green, then blue.
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return array_source("cifar10", split, CLASS_NAMES, images, records[:, 0], CIFAR10_MEAN, CIFAR10_STD)


def _read_batch(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"no file {path} (CIFAR-10 is read in its binary version, cifar-10-binary.tar.gz)")
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % _RECORD:
        raise UserError(f"{path} is damaged: {values.size} bytes are no multiple of {_RECORD}")
    return values.reshape(-1, _RECORD)
