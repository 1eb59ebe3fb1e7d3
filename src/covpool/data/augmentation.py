"""Which part of an image is cut out, at random or not: pure functions.

All randomness comes from numbers drawn beforehand, one row per image (``augmentation_draws``). So what happens to an
image depends on nothing but those numbers, however many threads work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_TRIES = 10  # of a random crop, as in torchvision
# Numbers per image and kind of augmentation: vertical place, horizontal place, flip, then (area, aspect ratio) per try.
DRAWS = {"imagenet": 3 + 2 * _TRIES, "small": 3, "none": 0}
LONGEST = 16  # times the shorter side
CHUNK = 1024  # positions that share one generator


def augmentation_draws(seed: int, epoch: int, chunk: int, width: int) -> np.ndarray:
    """Return the random numbers of one chunk of an epoch's positions.

    Args:
        seed: Seed of the run.
        epoch: Epoch number.
        chunk: Number of the chunk: it covers positions 1024 * chunk to 1024 * chunk + 1023 of the global order.
        width: Numbers per image.

    Returns:
        float32 in [0, 1), shape (1024, width).
    """
    generator = np.random.Generator(np.random.PCG64([seed, epoch, 1, chunk]))
    return generator.random((CHUNK, width), dtype=np.float32)


def random_crop_box(
    height: int, width: int, draws: np.ndarray, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Choose the part of an image that a random resized crop keeps.

    Area uniform in ``scale`` times the image's, aspect ratio log-uniform in ``ratio``, place uniform; ten tries to
    find one that fits, else the largest centred part whose aspect ratio is in the range. The rule is torchvision's.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        draws: Uniform numbers in [0, 1), shape (23,).
        scale: Least and greatest share of the area.
        ratio: Least and greatest width / height.

    Returns:
        (top, left, height, width) in pixels.

    Source:
        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
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

    The usual augmentation of CIFAR: pad every side, crop the old size at a random place.

    Args:
        image: uint8, shape (H, W, C).
        draws: Uniform numbers in [0, 1), shape (3,).
        padding: Pixels added to each side.
        flip_probability: Probability of mirroring.

    Returns:
        uint8, shape (H, W, C), contiguous.
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
