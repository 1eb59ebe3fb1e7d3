"""Image transforms: how an image becomes the network's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from covpool.data.sources import IMAGENET_MEAN, IMAGENET_STD, Source, check_choice
from covpool.errors import UserError

LONGEST = 16  # times the shorter side
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area", "pilcubic")

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601

# What to apply, after "operator" for MindSpore's C++ code, "python" for a function of the image, or "draws" for a
# function of the image and its random numbers.
Stage = tuple[str, Callable[..., Any]]


def trim_long_side(image: np.ndarray) -> np.ndarray:
    """Keep the central part of an extremely long image, (H, W, C) -> (h, w, C): at most 16 times the shorter side.

    Resizing by the shorter side before the centre crop would make gigabytes of a stripe of some pixels; the crop does
    not reach what is cut off here.
    """
    height, width = image.shape[:2]
    excess = max(height, width) - LONGEST * min(height, width)
    if excess <= 1:
        return image
    cut = excess // 2  # the same on both sides, so that the centre stays where it is
    return np.ascontiguousarray(image[cut : height - cut] if height > width else image[:, cut : width - cut])


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes the input of a network; stored in its checkpoints and exported files.

    With ``side = max(height, width)``: resize the shorter side to ``side / crop_ratio`` pixels, cut out the central
    square of ``side`` pixels and of it the central ``height`` x ``width``, then ``(value / 255 - mean) / std``.
    UserError: a value is out of range.
    """

    height: int  # height of the input in pixels
    width: int  # width of the input in pixels
    mean: tuple[float, ...]  # mean per channel, 1 = full scale
    std: tuple[float, ...]  # standard deviation per channel
    crop_ratio: float = 0.875  # share of the shorter side that the crop keeps; 0.875 resizes to 256 before cropping 224
    interpolation: str = "bilinear"  # one of ``INTERPOLATIONS``
    channels: int = 3  # 3, or 1 for gray

    def __post_init__(self) -> None:
        check_counts(height=self.height, width=self.width)
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"crop_ratio must lie in (0, 1], got {self.crop_ratio}")
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        for name, allowed in (("mean", "[0, 1]"), ("std", "(0, 1]")):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != self.channels:
                raise UserError(f"{name} needs {self.channels} value(s), one per channel, got {len(values)}")
            if not all(0 <= value <= 1 for value in values) or (name == "std" and min(values) == 0):
                raise UserError(f"{name} must lie in {allowed} (1 = full scale), got {values}")
            object.__setattr__(self, name, values)

    @classmethod
    def for_source(
        cls,
        source: Optional[Source],
        size: int,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        channels: int = 3,
        **others: Any,
    ) -> ImageTransform:
        """A transform to squares of ``size`` pixels with mean and standard deviation of a data set, unless given.

        Without a data set they are ImageNet's. A gray data set read as three channels repeats its constants; a colour
        data set read as one channel takes the average of the three.
        """
        own = (source.mean, source.std) if source else (IMAGENET_MEAN, IMAGENET_STD)
        mean, std = (per_channel(o, channels) if v is None else tuple(v) for o, v in zip(own, (mean, std)))
        return cls(size, size, mean, std, channels=channels, **others)

    @classmethod
    def from_dict(cls, values: Any) -> ImageTransform:
        """The transform that a checkpoint or an exported file holds, see ``to_dict``; UserError if it is none."""
        try:
            return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"no image transform: {type(error).__name__} {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which JSON can hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @property
    def shorter_side(self) -> int:
        """Length of the shorter side before the crop, e.g. 256 for 224 pixels and 0.875."""
        side = max(self.height, self.width)
        return max(side, round(side / self.crop_ratio))

    def stages(self, shape: Optional[tuple[int, int, int]]) -> list[Stage]:
        """What makes the input of images (H, W, C), or None for decoded files of any size."""
        return [*self.sized(shape, self.shorter_side), *self.normalised(shape)]

    def sized(self, shape: Optional[tuple[int, int, int]], shorter_side: int) -> list[Stage]:
        """What resizes the shorter side and cuts out the centre."""
        from mindspore.dataset import vision

        side = max(self.height, self.width)
        stages: list[Stage] = []
        if shape is None:
            stages.append(("python", trim_long_side))
        if shape is None or (*shape[:2], shorter_side) != (side, side, side):
            stages += [resize(shorter_side, self.interpolation), ("operator", vision.CenterCrop((side, side)))]
        if self.height != self.width:
            stages.append(("python", partial(_cut_out, height=self.height, width=self.width)))
        return stages

    def normalised(self, shape: Optional[tuple[int, int, int]]) -> list[Stage]:
        """What makes (channels, height, width) float32 of an image of the right size."""
        from mindspore.dataset import vision

        scaled = vision.Normalize([m * 255 for m in self.mean], [s * 255 for s in self.std])
        channels = _match_channels(3 if shape is None else shape[2], self.channels)
        return [*channels, ("operator", scaled), ("operator", vision.HWC2CHW())]

    def normalise_frames(self, frames: np.ndarray) -> np.ndarray:
        """The same for colour frames: uint8 (n, height, width, 3) -> float32 (n, channels, height, width)."""
        images = frames.astype(np.float32) / 255
        if self.channels == 1:
            images = (images @ _LUMA)[..., None]
        images = (images - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def resize(size: Any, interpolation: str) -> Stage:
    """The operator that resizes (C++, OpenCV; shrinking does not smooth first, except ``area``, ``pilcubic``).

    ``size`` is the length of the shorter side, or (height, width), in pixels.
    """
    from mindspore.dataset import vision

    return "operator", vision.Resize(size, getattr(vision.Inter, interpolation.upper()))


def _cut_out(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _match_channels(present: int, wanted: int) -> list[Stage]:
    """What turns (H, W, present) into (H, W, wanted): gray repeated, or colour to luma (ITU-R 601)."""
    from mindspore.dataset import vision

    if present == wanted:
        return []
    if present == 1:
        return [("python", lambda image: np.repeat(image, wanted, axis=2))]
    gray = vision.ConvertColor(vision.ConvertMode.COLOR_RGB2GRAY)
    return [("operator", gray), ("python", lambda image: image[:, :, None])]


def check_counts(least: int = 1, **values: int) -> None:
    """Raise UserError for what is no whole number of at least ``least``, by name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Constants of each channel for another number of channels: the one repeated, or the average of all."""
    if len(values) == channels:
        return tuple(values)
    return tuple(values) * channels if len(values) == 1 else (sum(values) / len(values),)
