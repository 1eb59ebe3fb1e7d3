"""What a data set is to the rest of the project: images by index, labels and class names."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from covpool.data.decoding import MAX_PIXELS, decode_image
from covpool.errors import UserError, nearest

# Mean and standard deviation of the red, green and blue values (1 = full scale) over the ImageNet training images;
# the constants of torchvision and of nearly every published ImageNet model.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Source(ABC):
    """The images of one split, addressed by index; every array holds one value an image. Checked once, when opened."""

    name: str  # data set name, as in messages
    split: str  # ``"train"`` or ``"val"``
    class_names: tuple[str, ...]  # name of every class; the position is the class index
    labels: np.ndarray  # class index per image, int32, shape (n,), read-only
    mean: tuple[float, ...] = IMAGENET_MEAN  # mean per channel of the data set, 1 = full scale
    std: tuple[float, ...] = IMAGENET_STD  # standard deviation per channel
    max_pixels: int = MAX_PIXELS  # encoded images of more pixels are not decoded: they would fill the memory

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> Optional[tuple[int, int, int]]:
        """(H, W, C) of every image, or None when images are encoded files of any size, to be decoded as RGB."""
        return None

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """One image: uint8 (H, W, C), or the bytes of the encoded file, uint8 (n,); UserError that names it.

        Runs in worker threads; safe to call from several at once.
        """

    def pixels(self, index: int) -> np.ndarray:
        """One image, uint8 (H, W, C): as it is held in memory, or decoded to RGB; UserError that names it.

        Runs in worker threads; safe to call from several at once.
        """
        data = self.read(index)
        return data if self.image_shape else decode_image(data, lambda: self.describe(index), self.max_pixels)

    def describe(self, index: int) -> str:
        """Return what a message should call this image, on one line: its path, or its number in the split."""
        return f"{self.name} {self.split} image {index}"

    def stamp(self) -> str:
        """Return a text that changes when the files of this source do; empty for images in memory."""
        return ""

    def subset(self, indices: Sequence[int]) -> Source:
        """Return a source with only these images, in this order (for clean lists and small runs)."""
        chosen = np.asarray(indices, dtype=np.int64)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays: dict[str, Any] = {name: frozen(v[chosen]) for name, v in values.items() if isinstance(v, np.ndarray)}
        return dataclasses.replace(self, **arrays)


def check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError that names the allowed values, and the nearest one, unless ``value`` is among them."""
    if value in allowed:
        return
    near = nearest(str(value), allowed, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {what} {value!r}: allowed are {', '.join(allowed)}{hint}")


def frozen(array: np.ndarray) -> np.ndarray:
    """Return a view of an array that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
