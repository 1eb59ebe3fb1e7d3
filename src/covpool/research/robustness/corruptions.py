"""The 15 corruptions of ImageNet-C as functions of an image, an argument and a random generator.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, and its released code, which needs OpenCV, scikit-image and ImageMagick; here NumPy, SciPy and Pillow do. What
differs from it:

* frost: its six photographs of frost may not be passed on; frost is drawn instead (:func:`frost_texture`).
* fog: a sum of octaves of noise with the same decay instead of the diamond-square algorithm.
* motion: a one-sided Gaussian along a line, as ImageMagick computes it, at positions between pixels.
* images of any height and width; noise on a gray image is gray.

As in the released code, glass blur copies a near pixel over each (the paper says that it swaps them).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
from PIL import Image
from scipy import ndimage

_NAMES = """
    gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur
    snow frost fog brightness contrast elastic_transform pixelate jpeg_compression
"""
CORRUPTIONS = tuple(_NAMES.split())
SEVERITIES = (1, 2, 3, 4, 5)

# Arguments at severities 1 to 5: those of ImageNet-C, for 224 x 224 pixels, and of CIFAR-10-C, for 32 x 32.
IMAGENET: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": (60, 25, 12, 5, 3),  # photons at full scale
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of the values
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, sigma that softens the disk
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),  # sigma, distance, rounds
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
    "zoom_blur": ((0.11, 0.01), (0.16, 0.01), (0.21, 0.02), (0.26, 0.02), (0.31, 0.03)),  # end (left out), step
    # mean, deviation, zoom, threshold, radius and sigma of the motion, share of the image that stays
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # weights of image and frost
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # weight, decay of the octaves
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    # in sides of the image: amplitude and sigma of the displacement, bound of the affine map's corners
    "elastic_transform": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # share of the side
    "jpeg_compression": (25, 18, 15, 10, 7),  # quality
}
SMALL: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((0.06, 0.01), (0.11, 0.01), (0.16, 0.01), (0.21, 0.01), (0.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}
SCALES = {"imagenet": IMAGENET, "small": SMALL}


def corrupt(image: np.ndarray, name: str, severity: int, scale: str, generator: np.random.Generator) -> np.ndarray:
    """One corrupted image, uint8 (H, W, 3) -> (H, W, 3), at a severity from 1 to 5.

    ``scale`` is ``imagenet`` (about 224 pixels) or ``small`` (about 32 pixels). ValueError: an image of another type or
    shape, or a name that is not allowed.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if name not in CORRUPTIONS or scale not in SCALES or severity not in SEVERITIES:
        raise ValueError(
            f"unknown corruption {name!r} of severity {severity!r} at scale {scale!r}: allowed are "
            f"{', '.join(CORRUPTIONS)}; 1 to 5; {', '.join(SCALES)}"
        )
    argument = SCALES[scale][name][severity - 1]
    result = _FUNCTIONS[name](image.astype(np.float64) / 255, argument, generator)
    return np.round(np.clip(result, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(x: np.ndarray, deviation: float, generator: np.random.Generator) -> np.ndarray:
    """Add normal noise."""
    return x + generator.normal(scale=deviation, size=_noise_shape(x))


def shot_noise(x: np.ndarray, photons: float, generator: np.random.Generator) -> np.ndarray:
    """Poisson noise of a light that gives ``photons`` at full scale."""
    return generator.poisson(x[:, :, : _noise_shape(x)[2]] * photons) / photons + np.zeros_like(x)


def impulse_noise(x: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """A share of the values becomes 0 or 1, with equal probability."""
    shape = _noise_shape(x)
    hit, high = generator.random(shape) < share, generator.random(shape) < 0.5
    return np.where(hit, high.astype(x.dtype), x)


def defocus_blur(x: np.ndarray, argument: tuple[float, float], _: np.random.Generator) -> np.ndarray:
    """Convolve with a disk whose edge is softened."""
    radius, sigma = argument
    half = max(8, int(radius))
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (rows**2 + columns**2 <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), sigma, radius=1 if radius <= 8 else 2)
    return ndimage.convolve(x, kernel[:, :, None], mode="mirror")


def glass_blur(x: np.ndarray, argument: tuple[float, int, int], generator: np.random.Generator) -> np.ndarray:
    """Blur, put a near pixel in the place of each, a few times, and blur again."""
    sigma, distance, rounds = argument
    height, width = x.shape[:2]
    places = np.arange(height * width).reshape(height, width).tolist()  # lists: one at a time they are faster
    for _ in range(rounds):
        moves = generator.integers(-distance, distance, size=(height, width, 2)).tolist()
        for row in range(height - distance - 1, distance, -1):
            for column in range(width - distance - 1, distance, -1):
                down, right = moves[row][column]
                places[row][column] = places[row + down][column + right]
    blurred = _blur(x, sigma).reshape(-1, x.shape[2])[np.array(places)]
    return _blur(blurred, sigma)


def motion_blur(x: np.ndarray, argument: tuple[int, float], generator: np.random.Generator) -> np.ndarray:
    """Blur along a line at a random angle within 45 degrees of the horizontal."""
    return _along_line(x, *argument, angle=generator.uniform(-45, 45))


def zoom_blur(x: np.ndarray, argument: tuple[float, float], _: np.random.Generator) -> np.ndarray:
    """Mean of the image and of enlargements of it."""
    end, step = argument
    factors = np.arange(1, 1 + end - step / 2, step)
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x: np.ndarray, argument: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """Flakes that fall, over an image that is paler."""
    mean, deviation, zoom, threshold, radius, sigma, share = argument
    flakes = _zoom(generator.normal(mean, deviation, size=(*x.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _along_line(flakes, int(radius), sigma, angle=generator.uniform(-135, -45))
    gray = (x @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    pale = share * x + (1 - share) * np.maximum(x, gray * 1.5 + 0.5)
    return pale + flakes + flakes[::-1, ::-1]


def frost(x: np.ndarray, argument: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """A weighted sum of the image and of frost."""
    image_weight, frost_weight = argument
    return image_weight * x + frost_weight * frost_texture(x.shape[0], x.shape[1], generator)


def frost_texture(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Frost as on a window, in [0, 1], (H, W, 3): bright ridges where two fields of noise cross their middle.

    Mean brightness about 0.5, a little blue, as the photographs of the released code are.
    """
    ridges = sum(1 - np.abs(2 * _octaves(height, width, 1.6, generator) - 1) for _ in range(2))
    low, high = ridges.min(), ridges.max()
    crystals = ((ridges - low) / max(high - low, 1e-12)) ** 2
    return np.clip(crystals[:, :, None] * np.array([0.92, 0.98, 1.05]) + 0.15, 0, 1)


def fog(x: np.ndarray, argument: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """Add clouds, then bring the brightest value back to where it was."""
    weight, decay = argument
    highest = x.max()
    clouds = _octaves(x.shape[0], x.shape[1], decay, generator)[:, :, None]
    return (x + weight * clouds) * highest / (highest + weight)


def brightness(x: np.ndarray, amount: float, _: np.random.Generator) -> np.ndarray:
    """Raise the value of hue, saturation and value."""
    value = x.max(2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def contrast(x: np.ndarray, factor: float, _: np.random.Generator) -> np.ndarray:
    """Bring every channel towards its mean."""
    means = x.mean((0, 1), keepdims=True)
    return (x - means) * factor + means


def elastic_transform(x: np.ndarray, argument: tuple[float, ...], generator: np.random.Generator) -> np.ndarray:
    """A random affine map near the identity, then a smooth random displacement."""
    height, width = x.shape[:2]
    side = min(height, width)
    amplitude, sigma, bound = (value * side for value in argument)
    centre, third = np.array([height, width]) // 2, side // 3
    corners = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + generator.uniform(-bound, bound, size=corners.shape)
    ones = np.ones((3, 1))
    affine = np.linalg.solve(np.hstack([moved, ones]), corners)  # from a place in the result to one in the image
    grid = np.mgrid[:height, :width].reshape(2, -1).T
    places = np.hstack([grid, np.ones((len(grid), 1))]) @ affine
    warped = _sample(x, places.T.reshape(2, height, width), "mirror")
    noise = generator.uniform(-1, 1, size=(2, height, width))
    shift = [amplitude * ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3) for field in noise]
    return _sample(warped, np.mgrid[:height, :width] + np.stack(shift), "reflect")


def pixelate(x: np.ndarray, share: float, _: np.random.Generator) -> np.ndarray:
    """Make the image smaller and large again, by boxes."""
    height, width = x.shape[:2]
    small = _pillow(x).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(x: np.ndarray, quality: int, _: np.random.Generator) -> np.ndarray:
    """Write as JPEG and read again."""
    data = io.BytesIO()
    _pillow(x).save(data, "JPEG", quality=quality)
    with Image.open(data, formats=["JPEG"]) as image:
        return np.asarray(image) / 255


_FUNCTIONS: Mapping[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    name: globals()[name] for name in CORRUPTIONS
}


def _noise_shape(x: np.ndarray) -> tuple[int, int, int]:
    """(H, W, 3), or (H, W, 1) for a gray image."""
    return x.shape[0], x.shape[1], 1 if (x == x[:, :, :1]).all() else 3


def _pillow(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8))


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _sample(x: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """Values at places (2, H, W) between pixels, linearly."""
    channels = [ndimage.map_coordinates(x[:, :, c], places, order=1, mode=mode) for c in range(x.shape[2])]
    return np.stack(channels, axis=-1)


def _zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge about the centre, same size: (H, W, C) -> (H, W, C)."""
    height, width = x.shape[:2]
    rows = (np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2
    columns = (np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2
    return _sample(x, np.stack(np.meshgrid(rows, columns, indexing="ij")), "nearest")


def _along_line(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Weighted mean of the image and of copies shifted along a line, weights falling as a Gaussian."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    result = np.zeros_like(x)
    for step, weight in zip(steps[weights > 1e-6], weights[weights > 1e-6]):
        result += weight * ndimage.shift(x, (-step * down, -step * right, 0), order=1, mode="nearest")
    return result


def _octaves(height: int, width: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """Noise over scales from the whole image to a pixel, each finer one weaker by ``decay``; in [0, 1], (H, W)."""
    total, weight, cells = np.zeros((height, width)), 1.0, 2
    while cells <= 2 * max(height, width):
        coarse = generator.uniform(-1, 1, size=(cells + 1, cells + 1))
        places = np.stack(np.meshgrid(np.linspace(0, cells, height), np.linspace(0, cells, width), indexing="ij"))
        total += weight * ndimage.map_coordinates(coarse, places, order=1)
        weight, cells = weight / decay, cells * 2
    total -= total.min()
    return total / max(total.max(), 1e-12)
