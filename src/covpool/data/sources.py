"""What a data set is to the rest of the project: images by index, labels and class names."""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np

from covpool.data.decoding import decode_image
from covpool.errors import UserError

# Mean and standard deviation of the red, green and blue values (1 = full scale) over the ImageNet training images;
# the constants of torchvision and of nearly every published ImageNet model.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Source(ABC):
    """The images of one split, addressed by index. Listing and checking happen once, when it is opened.

    Attributes:
        name: Data set name, as in messages.
        split: ``"train"`` or ``"val"``.
        class_names: Name of every class; the position is the class index.
        labels: Class index per image, int32, shape (n,), read-only.
        mean: Mean per channel of the data set, 1 = full scale.
        std: Standard deviation per channel.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    @abstractmethod
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        """(H, W, C) of every image, or None when images are encoded files of any size, to be decoded as RGB."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return one image: uint8 (H, W, C), or the bytes of the encoded file, uint8 (n,).

        Runs in worker threads; safe to call from several at once.

        Raises:
            UserError: The file cannot be read; the message names it.
        """

    def pixels(self, index: int) -> np.ndarray:
        """Return one image, uint8 (H, W, C): as it is held in memory, or decoded to RGB.

        Runs in worker threads; safe to call from several at once.

        Raises:
            UserError: The file cannot be read or is no complete image; the message names it.
        """
        data = self.read(index)
        return decode_image(data, lambda: self.describe(index)) if self.image_shape is None else data

    def describe(self, index: int) -> str:
        """Return what a message should call this image, on one line: its path, or its number in the split."""
        return f"{self.name} {self.split} image {index}"

    def stamp(self) -> str:
        """Return a text that changes when the files of this source do; empty for images in memory."""
        return ""

    def subset(self, indices: Sequence[int]) -> Source:
        """Return a source with only these images, in this order (for clean lists and small runs)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return dataclasses.replace(self, labels=_frozen(self.labels[chosen]), **self._subset_fields(chosen))

    @abstractmethod
    def _subset_fields(self, chosen: np.ndarray) -> dict[str, Any]:
        """Return the fields that hold the images, of these images only."""


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """Images held in memory.

    Attributes:
        images: uint8, shape (n, H, W, C) with C = 1 or 3.
    """

    images: np.ndarray = dataclasses.field(repr=False, default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8))

    @property
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        """(H, W, C) of every image."""
        height, width, channels = self.images.shape[1:]
        return (height, width, channels)

    def read(self, index: int) -> np.ndarray:
        """Return one image, uint8 (H, W, C)."""
        return self.images[index]

    def _subset_fields(self, chosen: np.ndarray) -> dict[str, Any]:
        return {"images": self.images[chosen]}


def array_source(
    name: str,
    split: str,
    class_names: Sequence[str],
    images: np.ndarray,
    labels: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
) -> ArraySource:
    """Make a source of images in memory.

    Args:
        name: Data set name, as in messages.
        split: ``"train"`` or ``"val"``.
        class_names: Name of every class.
        images: uint8, shape (n, H, W, C) with C = 1 or 3.
        labels: Class indices, shape (n,).
        mean: Mean per channel, 1 = full scale.
        std: Standard deviation per channel.

    Raises:
        UserError: Shapes do not fit together, or a label is outside the classes.
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
        labels=_frozen(labels.astype(np.int32)),
        mean=tuple(mean),
        std=tuple(std),
        images=_frozen(images),
    )


def open_source(
    dataset: str, data_path: Union[str, Path], split: str, image_list: Optional[Union[str, Path]] = None
) -> Source:
    """Open one split of a data set.

    Args:
        dataset: ``image_folder`` (also ``imagenet2012``, ``imagenet``), ``mindrecord``, ``fashion_mnist`` or
            ``cifar10``.
        data_path: Folder of the data set; see docs/data.md for what each expects there.
        split: ``"train"`` or ``"val"``.
        image_list: For image folders: a file that names the images to use, as ``scripts/check_dataset.py`` writes it;
            None or empty for all.

    Raises:
        UserError: Unknown data set or split, or the folder does not hold what it should.
    """
    # Imported here because these modules build on the classes above.
    from covpool.data.cifar10 import open_cifar10
    from covpool.data.fashion_mnist import open_fashion_mnist
    from covpool.data.image_folder import open_image_folder
    from covpool.data.mindrecord import open_mindrecord

    openers: dict[str, Callable[[Path, str], Source]] = {
        "image_folder": open_image_folder,
        "imagenet2012": open_image_folder,
        "imagenet": open_image_folder,
        "mindrecord": open_mindrecord,
        "fashion_mnist": open_fashion_mnist,
        "cifar10": open_cifar10,
    }
    check_choice("dataset", dataset, tuple(openers))
    check_choice("split", split, SPLITS)
    folder = Path(data_path)
    if not folder.is_dir():
        raise UserError(f"data_path is not a folder: {folder}")
    if not image_list:
        return openers[dataset](folder, split)
    if openers[dataset] is not open_image_folder:
        raise UserError(f"image_list names files of an image folder, dataset is {dataset!r}", exit_code=2)
    return open_image_folder(folder, split, Path(image_list))


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError that names the allowed values, and the nearest one, unless ``value`` is among them."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {what} {value!r}: allowed are {', '.join(allowed)}{hint}")


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
