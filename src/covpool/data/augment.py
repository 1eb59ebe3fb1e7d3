"""How training images vary at random: crops, shifts, flips, random operations, random erasing, repetition.

All randomness comes from numbers in [0, 1) drawn beforehand, one row per image: what happens to an image depends on
nothing but them, however many threads work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

import numpy as np
from PIL import Image

from covpool.data.auto_augment import Change, Fill, auto_augment, color_jitter
from covpool.data.sources import check_choice
from covpool.data.transforms import ImageTransform, Stage, check_counts, per_channel, resize
from covpool.errors import UserError

CHUNK = 1024  # positions that share one generator
_TRIES = 10  # of a random crop, as in torchvision, and of random erasing, as in timm
# Numbers per image and kind of augmentation: vertical place, horizontal place, flip, then (area, aspect ratio) per try.
DRAWS = {"imagenet": 3 + 2 * _TRIES, "small": 3, "none": 0}
# Whether, vertical place, horizontal place, two for the noise, then (area, aspect ratio) per try.
_ERASING_DRAWS = 5 + 2 * _TRIES
_JITTER_DRAWS = 4


def augmentation_draws(seed: int, epoch: int, chunk: int, width: int, more: int = 0) -> np.ndarray:
    """The random numbers of an epoch's positions 1024 chunk to 1024 chunk + 1023, float32 (1024, width + more).

    The last ``more`` come from a generator of their own, so that the first do not depend on how many they are.
    """
    parts = []
    for tag, count in ((1, width), (3, more)):
        generator = np.random.Generator(np.random.PCG64([seed, epoch, tag, chunk]))
        parts.append(generator.random((CHUNK, count), dtype=np.float32))
    return np.concatenate(parts, axis=1)


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


def change_pixels(
    image: np.ndarray, draws: np.ndarray, vertical_flip: float, change: Optional[Change], fill: Fill
) -> np.ndarray:
    """Perhaps turn an image upside down, then change it: (H, W, 1 or 3) uint8 -> the same, contiguous.

    The first of ``draws`` decides on the flip, the others are for ``change``.
    """
    if draws[0] < vertical_flip:
        image = np.ascontiguousarray(image[::-1])
    if change is None:
        return image
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    changed = change(picture, draws[1:].tolist(), fill)
    return image if changed is picture else np.asarray(changed).reshape(image.shape)


def erasing_box(height: int, width: int, draws: Sequence[float]) -> Optional[tuple[int, int, int, int]]:
    """Choose the part of an image that random erasing fills, (top, left, height, width); None if no try fits.

    Area uniform in 0.02 to 1/3 of the image's, height / width log-uniform in 0.3 to 1/0.3, place uniform.
    """
    log_ratio = math.log(0.3)
    for area_draw, ratio_draw in zip(draws[5::2], draws[6::2]):
        area = (0.02 + (1 / 3 - 0.02) * area_draw) * height * width
        aspect = math.exp(log_ratio + (math.log(1 / 0.3) - log_ratio) * ratio_draw)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(draws[1] * (height - h + 1)), int(draws[2] * (width - w + 1)), h, w
    return None


def random_erasing(image: np.ndarray, draws: np.ndarray, probability: float, mode: str) -> np.ndarray:
    """Perhaps fill a rectangle of a normalised image with normal noise (``pixel``) or 0 (``const``), as timm does.

    float32 (C, H, W) -> the same; ``draws``: in [0, 1), shape (25,). Source: Z. Zhong, L. Zheng, G. Kang, S. Li,
    Y. Yang, "Random Erasing Data Augmentation", AAAI 2020.
    """
    values = draws.tolist()
    box = erasing_box(image.shape[1], image.shape[2], values) if values[0] < probability else None
    if box is None:
        return image
    top, left, height, width = box
    image = image.copy()
    part = image[:, top : top + height, left : left + width]
    part[:] = 0
    if mode == "pixel":
        generator = np.random.Generator(np.random.PCG64([int(value * 2**24) for value in values[3:5]]))
        part[:] = generator.standard_normal(part.shape, np.float32)
    return image


@dataclass(frozen=True)
class Augmentation:
    """How training images vary at random; UserError where a value is out of range."""

    # ``imagenet`` (random resized crop, flip), ``small`` (shift by up to an eighth of the side, flip) or ``none`` (as
    # in evaluation)
    kind: str = "imagenet"
    crop_scale: Sequence[float] = (0.08, 1.0)  # least and greatest share of the area in a random resized crop
    crop_ratio: Sequence[float] = (0.75, 1.3333333)  # least and greatest width / height in a random resized crop
    flip_probability: float = 0.5  # probability of mirroring an image
    vertical_flip: float = 0.0  # probability of turning an image upside down
    color_jitter: float = 0.0  # brightness, contrast and saturation change by factors of up to 1 -+ this
    auto_augment: str = ""  # ``rand-m9-mstd0.5-inc1`` and the like (see ``rand_augment``), ``trivial``, or nothing
    random_erasing: float = 0.0  # probability of erasing a rectangle
    erasing_mode: str = "pixel"  # what is put there: ``pixel`` (normal noise) or ``const`` (0, the mean)
    repeated_augmentation: int = 1  # times that an epoch has an image in a row, each time varied anew

    def __post_init__(self) -> None:
        check_choice("augmentation", self.kind, tuple(DRAWS))
        check_choice("erasing_mode", self.erasing_mode, ("pixel", "const"))
        for name in ("flip_probability", "vertical_flip", "color_jitter", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        _check_range("crop_scale", self.crop_scale, 1.0)
        _check_range("crop_ratio", self.crop_ratio, math.inf)
        check_counts(repeated_augmentation=self.repeated_augmentation)
        if self.auto_augment and self.color_jitter:
            raise UserError("auto_augment changes the colours already: give it or color_jitter")
        self._change()

    @property
    def widths(self) -> tuple[int, int]:
        """How many random numbers an image takes: for its crop or shift and flip, and for all others."""
        change, count = self._change()
        more = bool(change or self.vertical_flip or self.random_erasing)
        return DRAWS[self.kind], more * (1 + count + _ERASING_DRAWS)

    def stages(self, transform: ImageTransform, shape: Optional[tuple[int, int, int]]) -> list[Stage]:
        """What makes a training input of images (H, W, C), or None for decoded files of any size."""
        size, flip, first = (transform.height, transform.width), self.flip_probability, DRAWS[self.kind]
        stages: list[Stage]
        if self.kind == "imagenet":
            crop = partial(random_crop, scale=self.crop_scale, ratio=self.crop_ratio, flip_probability=flip)
            stages = [_drawing(crop, 0, first), resize(size, transform.interpolation)]
        elif self.kind == "small":
            shift = partial(random_shift, padding=round(max(size) / 8), flip_probability=flip)
            stages = [*transform.sized(shape, max(size)), _drawing(shift, 0, first)]
        else:
            stages = transform.sized(shape, transform.shorter_side)
        change, count = self._change()
        if change or self.vertical_flip:
            fill = tuple(
                min(255, round(255 * m)) for m in per_channel(transform.mean, 3 if shape is None else shape[2])
            )
            varied = partial(change_pixels, vertical_flip=self.vertical_flip, change=change, fill=fill)
            stages.append(_drawing(varied, first, 1 + count))
        stages += transform.normalised(shape)
        if self.random_erasing:
            erased = partial(random_erasing, probability=self.random_erasing, mode=self.erasing_mode)
            stages.append(_drawing(erased, first + 1 + count, _ERASING_DRAWS))
        return stages

    def _change(self) -> tuple[Optional[Change], int]:
        """The random operations on pixels, and how many random numbers they take."""
        if self.auto_augment:
            return auto_augment(self.auto_augment)
        return (partial(color_jitter, strength=self.color_jitter), _JITTER_DRAWS) if self.color_jitter else (None, 0)


def _drawing(function: Callable[[np.ndarray, np.ndarray], np.ndarray], first: int, count: int) -> Stage:
    """The stage of a function that takes ``count`` of an image's random numbers, from ``first`` on."""
    return "draws", lambda image, draws: function(image, draws[first : first + count])


def _check_range(name: str, bounds: Sequence[float], greatest: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= greatest or math.isinf(bounds[1]):
        limit = "" if math.isinf(greatest) else f" <= {greatest:g}"
        raise UserError(f"{name} must be two numbers with 0 < first <= second{limit}, got {list(bounds)}")
