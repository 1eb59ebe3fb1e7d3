"""How the images of a batch are mixed with each other: the random numbers of every step, as timm draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

UNMIXED = (1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of whole batches, each with itself reversed.

    Raises:
        ValueError: Neither is on.
    """

    mixup: float = 0.0  # alpha of mixup: the part that an image keeps is Beta(alpha, alpha); 0 for none
    cutmix: float = 0.0  # alpha of CutMix, for the part outside the box; 0 for none
    probability: float = 1.0  # part of the batches that are mixed
    switch_probability: float = 0.5  # part of these that CutMix takes, where both are on
    off_epoch: int = 0  # epochs after which no batch is mixed; 0 for never

    def __post_init__(self) -> None:
        if not (self.mixup > 0 or self.cutmix > 0):
            raise ValueError(f"mixup = {self.mixup} and cutmix = {self.cutmix}: one must be above 0")

    def draw(self, height: int, width: int, seed: int, epoch: int, step: int) -> np.ndarray:
        """What is done with the batch of a step, the same on every rank: float32 (5,), a function of the arguments.

        ``(kept, top, bottom, left, right)``: inside the box, in pixels, each image shows the one it is mixed with, and
        outside ``kept`` of itself and ``1 - kept`` of the other. ``UNMIXED`` leaves the batch as it is.

        Args:
            height: Of the images, in pixels.
            width: Of the images, in pixels.
            seed: Seed of the training.
            epoch: Number of the epoch, from 0.
            step: Number of the step in the epoch, from 0.
        """
        unmixed = np.array(UNMIXED, np.float32)
        if self.off_epoch and epoch >= self.off_epoch:
            return unmixed
        generator = np.random.Generator(np.random.PCG64([seed, epoch, 2, step]))
        if generator.random() >= self.probability:
            return unmixed
        cuts = self.cutmix > 0 and (not self.mixup > 0 or generator.random() < self.switch_probability)
        alpha = self.cutmix if cuts else self.mixup
        kept = generator.beta(alpha, alpha)
        if not cuts:
            return np.array([kept, 0, 0, 0, 0], np.float32)
        box_height, box_width = int(height * np.sqrt(1 - kept)), int(width * np.sqrt(1 - kept))
        y, x = generator.integers(0, height), generator.integers(0, width)  # the middle: the border may cut the box
        rows = np.clip([y - box_height // 2, y + (box_height + 1) // 2], 0, height)
        columns = np.clip([x - box_width // 2, x + (box_width + 1) // 2], 0, width)
        return np.array([1, *rows, *columns], np.float32)

    def dataset(self, height: int, width: int, seed: int, epoch: int, steps: range) -> Any:
        """The draws of some steps of an epoch as a dataset of one column, ``mix``."""
        import mindspore.dataset as ds

        rows = [self.draw(height, width, seed, epoch, step) for step in steps]
        return ds.NumpySlicesDataset(np.stack(rows), ["mix"], num_parallel_workers=1, shuffle=False)
