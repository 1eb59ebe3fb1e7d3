"""Image transforms: how an image becomes the network's input, in evaluation and, augmented, in training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from covpool.data.sources import IMAGENET_MEAN, IMAGENET_STD, Source, check_choice
from covpool.errors import UserError

# All randomness comes from numbers drawn beforehand, one row per image: what happens to an image depends on nothing but
# them, however many threads work.
_TRIES = 10  # of a random crop, as in torchvision
# Numbers per image and kind of augmentation: vertical place, horizontal place, flip, then (area, aspect ratio) per try.
DRAWS = {"imagenet": 3 + 2 * _TRIES, "small": 3, "none": 0}
LONGEST = 16  # times the shorter side
CHUNK = 1024  # positions that share one generator
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area", "pilcubic")

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601

# What to apply, after "operator" for MindSpore's C++ code, "python" for a function of the image, or "draws" for a
# function of the image and its random numbers.
Stage = tuple[str, Callable[..., Any]]


def augmentation_draws(seed: int, epoch: int, chunk: int, width: int) -> np.ndarray:
    """The random numbers of positions 1024 chunk to 1024 chunk + 1023 of an epoch's order, float32 (1024, width)."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch, 1, chunk]))
    return generator.random((CHUNK, width), dtype=np.float32)


def random_crop_box(
    height: int, width: int, draws: np.ndarray, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Choose the part of an image that a random resized crop keeps: (top, left, height, width) in pixels.

    Area uniform in ``scale`` times the image's, width / height log-uniform in ``ratio``, place uniform; ten tries to
    find one that fits, else the largest centred part whose aspect ratio is in the range. The rule is torchvision's
    (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6). ``draws``: in [0, 1), shape (23,).
    """
    values = draws.tolist()
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, ratio_draw in zip(values[3::2], values[4::2]):
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(low + ratio_draw * (high - low))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(values[0] * (height - crop_height + 1))
            left = int(values[1] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_width = min(width, max(1, round(height * ratio[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def flip_horizontally(image: np.ndarray) -> np.ndarray:
    """Mirror an image left to right: (H, W, C) uint8 -> (H, W, C), contiguous."""
    height, width, channels = image.shape
    # Moving whole pixels is twice as fast as letting NumPy step backwards through single bytes.
    pixels = np.ascontiguousarray(image).view(f"V{channels}")
    return np.ascontiguousarray(pixels[:, ::-1]).view(np.uint8).reshape(height, width, channels)


def random_crop(
    image: np.ndarray, draws: np.ndarray, scale: Sequence[float], ratio: Sequence[float], flip_probability: float
) -> np.ndarray:
    """Cut out the random part of an image and perhaps mirror it: (H, W, C) uint8 -> (h, w, C), contiguous."""
    top, left, height, width = random_crop_box(image.shape[0], image.shape[1], draws, scale, ratio)
    # Contiguous, because MindSpore copies a strided array element by element (2 ms for a photo).
    part = np.ascontiguousarray(image[top : top + height, left : left + width])
    return flip_horizontally(part) if draws[2] < flip_probability else part


def random_shift(image: np.ndarray, draws: np.ndarray, padding: int, flip_probability: float) -> np.ndarray:
    """Shift an image by up to ``padding`` pixels, black where nothing is left, and perhaps mirror it.

    The usual augmentation of CIFAR: pad every side, crop the old size at a random place. uint8 (H, W, C) -> the same,
    contiguous; ``draws`` in [0, 1), shape (3,).
    """
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    top = int(float(draws[0]) * (2 * padding + 1))
    left = int(float(draws[1]) * (2 * padding + 1))
    part = np.ascontiguousarray(padded[top : top + height, left : left + width])
    return flip_horizontally(part) if draws[2] < flip_probability else part


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
        mean, std = (_per_channel(o, channels) if v is None else tuple(v) for o, v in zip(own, (mean, std)))
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


@dataclass(frozen=True)
class Augmentation:
    """How training images vary at random; UserError where a value is out of range."""

    # ``imagenet`` (random resized crop, flip), ``small`` (shift by up to an eighth of the side, flip) or ``none`` (as
    # in evaluation)
    kind: str = "imagenet"
    crop_scale: Sequence[float] = (0.08, 1.0)  # least and greatest share of the area in a random resized crop
    crop_ratio: Sequence[float] = (0.75, 1.3333333)  # least and greatest width / height in a random resized crop
    flip_probability: float = 0.5  # probability of mirroring an image

    def __post_init__(self) -> None:
        check_choice("augmentation", self.kind, tuple(DRAWS))
        if not 0 <= self.flip_probability <= 1:
            raise UserError(f"flip_probability must lie in [0, 1], got {self.flip_probability}")
        _check_range("crop_scale", self.crop_scale, 1.0)
        _check_range("crop_ratio", self.crop_ratio, math.inf)

    def stages(self, transform: ImageTransform, shape: Optional[tuple[int, int, int]]) -> list[Stage]:
        """What makes a training input of images (H, W, C), or None for decoded files of any size."""
        if self.kind == "none":
            return transform.stages(shape)
        size, flip = (transform.height, transform.width), self.flip_probability
        varied: list[Stage]
        if self.kind == "imagenet":
            crop = partial(random_crop, scale=self.crop_scale, ratio=self.crop_ratio, flip_probability=flip)
            varied = [("draws", crop), resize(size, transform.interpolation)]
        else:
            shift = partial(random_shift, padding=round(max(size) / 8), flip_probability=flip)
            varied = [*transform.sized(shape, max(size)), ("draws", shift)]
        return [*varied, *transform.normalised(shape)]


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


def _check_range(name: str, bounds: Sequence[float], greatest: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= greatest or math.isinf(bounds[1]):
        limit = "" if math.isinf(greatest) else f" <= {greatest:g}"
        raise UserError(f"{name} must be two numbers with 0 < first <= second{limit}, got {list(bounds)}")


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    return tuple(values) * channels if len(values) == 1 else (sum(values) / len(values),)
