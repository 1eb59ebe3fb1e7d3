"""Colour textures whose classes differ in one statistic alone: what covariance pooling is for, and what it is not.

An image is a Gaussian field of three channels with a random grain, contrast and brightness. Classes differ in the
correlation of the channels (equal means, equal variances, equal grain: second-order information only), in the
direction of the grain, or in the mean colour (first-order information).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DIFFERENCES = ("correlation", "orientation", "colour")
# Signs of the correlations red-green, red-blue, green-blue; each row is a class, with a positive definite matrix.
_SIGNS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], float)
_CONTRAST, _MEAN = 36.0, 128.0  # standard deviation and mean of a channel, in gray levels


@dataclass(frozen=True)
class Textures:
    """A distribution of texture images.

    Args:
        differences: In what the classes differ, of ``DIFFERENCES``.
        classes: Their number, 2 to 8.
        size: Height and width of an image in pixels.
        strength: How much they differ, 0 (not at all) to 1.
    """

    differences: tuple[str, ...] = ("correlation",)
    classes: int = 6
    size: int = 96
    strength: float = 0.6

    def __post_init__(self) -> None:
        unknown = sorted(set(self.differences) - set(DIFFERENCES))
        if unknown:
            raise ValueError(
                f"classes can differ in {', '.join(DIFFERENCES)}, not in {', '.join(unknown) or 'nothing'}"
            )
        if not 2 <= self.classes <= len(_SIGNS):
            raise ValueError(f"classes = {self.classes}: must be 2 to {len(_SIGNS)}")
        if self.size < 8 or not 0 <= self.strength <= 1:
            raise ValueError(f"size = {self.size} must be at least 8, strength = {self.strength} between 0 and 1")

    def correlation(self, label: int) -> np.ndarray:
        """Correlation matrix of the channels in a class, float64 (3, 3)."""
        matrix = np.eye(3)
        if "correlation" in self.differences:
            upper = 0.95 * self.strength * _SIGNS[label]  # below 1: the matrix stays positive definite
            matrix[[0, 0, 1], [1, 2, 2]] = matrix[[1, 2, 2], [0, 0, 1]] = upper
        return matrix

    def images(self, label: int, count: int, seed: int) -> Iterator[np.ndarray]:
        """Images of a class, uint8 (size, size, 3) RGB; the same for the same arguments."""
        mixing = np.linalg.cholesky(self.correlation(label))
        frequency = np.fft.fftfreq(self.size)
        angles = np.arctan2(frequency[:, None], frequency[None, :])
        radius = np.hypot(frequency[:, None], frequency[None, :])
        for number in range(count):
            generator = np.random.Generator(np.random.PCG64([seed, label, number]))
            grain = generator.uniform(0.08, 0.25)  # cycles per pixel
            spectrum = np.exp(-((radius / grain) ** 2))
            if "orientation" in self.differences:
                direction = np.pi / 2 * label / (self.classes - 1)  # a mirror image is no other class
                spectrum = spectrum * np.exp(4 * self.strength * (np.cos(2 * (angles - direction)) - 1))
            spectrum[0, 0] = 0.0  # no mean: brightness is drawn below
            noise = generator.standard_normal((3, self.size, self.size))
            field = np.fft.ifft2(np.fft.fft2(noise) * spectrum).real
            field /= field.std(axis=(1, 2), keepdims=True)
            field = np.einsum("ck,khw->hwc", mixing, field)
            mean = _MEAN + generator.normal(0, 12) + generator.normal(0, 6, 3)
            if "colour" in self.differences:
                mean = mean + 60 * self.strength * _SIGNS[label]
            contrast = _CONTRAST * generator.uniform(0.7, 1.3)
            yield np.clip(np.rint(mean + contrast * field), 0, 255).astype(np.uint8)
