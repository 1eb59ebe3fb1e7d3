"""From a source to batches: order, sharding over ranks, and the chain of MindSpore operators."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from covpool.data import transforms
from covpool.data.sources import Source, check_choice
from covpool.data.transforms import Stage
from covpool.errors import UserError
from covpool.runtime.environment import available_cores


def epoch_order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of all images in one epoch, the same for every number of ranks.

    Returns:
        A permutation of 0 ... num_samples - 1, int64.
    """
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples)


def steps_per_epoch(num_samples: int, batch_size: int, world_size: int = 1) -> int:
    """Return the number of whole global batches in one epoch.

    Args:
        num_samples: Images in the training split.
        batch_size: Images per rank and step.
        world_size: Number of ranks.

    Raises:
        UserError: There is less than one global batch.
    """
    global_batch = batch_size * world_size
    if num_samples < global_batch:
        raise UserError(
            f"training needs at least one global batch: {num_samples} images are fewer than "
            f"{batch_size} per rank x {world_size} rank(s) = {global_batch}"
        )
    return num_samples // global_batch


def training_positions(num_samples: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Return the positions in the epoch's order that one rank trains on: every ``world_size``-th, whole batches only.

    Step k over all ranks is exactly step k of one process with the global batch size.

    Returns:
        int64, shape (steps * batch_size,).
    """
    steps = steps_per_epoch(num_samples, batch_size, world_size)
    return np.arange(rank, steps * batch_size * world_size, world_size, dtype=np.int64)


def evaluation_indices(num_samples: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Return the images that one rank evaluates: every ``world_size``-th, each image on exactly one rank.

    With fewer images than ranks some ranks have none.

    Returns:
        int64, shape (n,); n differs by at most one between ranks.
    """
    return np.arange(rank, num_samples, world_size, dtype=np.int64)


def create_dataset(
    source: Source,
    *,
    training: bool,
    image_size: int,
    batch_size: int,
    augmentation: str = "imagenet",
    eval_crop_ratio: float = 0.875,
    crop_scale: Sequence[float] = (0.08, 1.0),
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip_probability: float = 0.5,
    interpolation: str = "bilinear",
    mean: Optional[Sequence[float]] = None,
    std: Optional[Sequence[float]] = None,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: Optional[int] = None,
    channels: int = 3,
) -> Any:
    """Make the batches of one epoch for one rank, columns ``image`` and ``label``.

    ``image`` is float32 (N, channels, image_size, image_size), normalised; ``label`` is int32 (N,).

    Training: shuffled by (seed, epoch), augmented, whole batches only. What a batch holds depends on the images, the
    arguments, seed, epoch and position in the epoch alone: not on the number of threads, of ranks, or on time.
    Evaluation: in order, every image exactly once over all ranks, the last batch as small as it comes.

    Args:
        source: The images, from ``open_source``.
        training: Whether to shuffle, augment and drop the incomplete last batch.
        image_size: Side of the square the network sees, in pixels.
        batch_size: Images per rank and step.
        augmentation: For training: ``imagenet`` (random resized crop, flip), ``small`` (shift by up to
            image_size / 8 pixels, flip) or ``none`` (the evaluation transform).
        eval_crop_ratio: Share of the shorter side that the centre crop keeps; 0.875 resizes to 256 before cropping
            224; 1 crops nothing from a square image.
        crop_scale: Least and greatest share of the area in a random resized crop.
        crop_ratio: Least and greatest width / height in a random resized crop.
        flip_probability: Probability of mirroring an image in training.
        interpolation: ``bilinear``, ``bicubic``, ``nearest``, ``area`` or ``pilcubic``.
        mean: Mean per channel, 1 = full scale; None takes the data set's.
        std: Standard deviation per channel; None takes the data set's.
        seed: Seed of order and augmentation, 0 or more.
        epoch: Number of the epoch, 0 or more; another epoch has another order and other crops.
        first_step: Training: start at this step of the epoch, at no cost, to continue an interrupted one.
        rank: This process, 0 to world_size - 1.
        world_size: Number of ranks.
        num_workers: Threads per stage, None for one per core available to this process; more than the machine's
            cores are not started. Any number gives the same batches.
        channels: 3, or 1 for gray.

    Returns:
        A ``mindspore.dataset.Dataset``, for one pass; None in evaluation if this rank's part is empty.

    Raises:
        UserError: An argument is out of range, or training has less than one global batch.
    """
    import mindspore.dataset as ds

    _check_counts(image_size=image_size, batch_size=batch_size, world_size=world_size, num_workers=num_workers or 1)
    _check_counts(0, seed=seed, epoch=epoch, first_step=first_step, rank=rank)
    if rank >= world_size:
        raise UserError(f"rank must lie in 0 to {world_size - 1}, got {rank}")
    if channels not in (1, 3):
        raise UserError(f"channels must be 1 or 3, got {channels}")
    if not 0 < eval_crop_ratio <= 1 or not 0 <= flip_probability <= 1:
        raise UserError(
            f"eval_crop_ratio must lie in (0, 1] and flip_probability in [0, 1], "
            f"got {eval_crop_ratio} and {flip_probability}"
        )
    _check_range("crop_scale", crop_scale, 1.0)
    _check_range("crop_ratio", crop_ratio, math.inf)
    check_choice("augmentation", augmentation, transforms.AUGMENTATIONS)
    mean, std = transforms.channel_statistics(source, channels, mean, std)
    if training:
        positions = training_positions(source.num_samples, batch_size, rank, world_size)
        if not 0 <= first_step < len(positions) // batch_size:
            raise UserError(f"first_step must lie in 0 to {len(positions) // batch_size - 1}, got {first_step}")
        positions = positions[first_step * batch_size :]
        order = epoch_order(source.num_samples, seed, epoch)[positions]
    else:
        positions = order = evaluation_indices(source.num_samples, rank, world_size)
        augmentation = "none"
        if not len(order):
            return None

    sized: list[Stage]
    if augmentation == "imagenet":
        crop = partial(transforms.random_crop, scale=crop_scale, ratio=crop_ratio, flip_probability=flip_probability)
        sized = [("draws", crop), transforms.resize((image_size, image_size), interpolation)]
    elif augmentation == "small":
        shift = partial(transforms.random_shift, padding=round(image_size / 8), flip_probability=flip_probability)
        sized = [*_fixed_size(source, image_size, image_size, interpolation), ("draws", shift)]
    else:
        side = transforms.evaluation_resize(image_size, eval_crop_ratio)
        sized = _fixed_size(source, image_size, side, interpolation)
    shape = source.image_shape
    stages: list[Stage] = [("python", lambda index: source.pixels(int(index))), *sized]
    stages += transforms.match_channels(3 if shape is None else shape[2], channels)
    stages += transforms.normalise(mean, std)

    workers = min(num_workers or available_cores(), os.cpu_count() or 1)
    rows = _Rows(order, source.labels, positions, seed, epoch, transforms.DRAWS[augmentation])
    dataset = ds.GeneratorDataset(
        rows, rows.columns, shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
    dataset = _apply(dataset, stages, workers).project(["image", "label"])
    return dataset.batch(batch_size, drop_remainder=training, num_parallel_workers=workers)


class _Rows:
    """The rows a pipeline starts from: image index, label and the image's random numbers."""

    def __init__(
        self, order: np.ndarray, labels: np.ndarray, positions: np.ndarray, seed: int, epoch: int, width: int
    ) -> None:
        self.columns = ["image", "label", "draws"] if width else ["image", "label"]
        self._order, self._labels, self._positions = order, labels, positions
        self._seed, self._epoch, self._width = seed, epoch, width
        self._chunk = (-1, np.empty(0, np.float32))  # one tuple: replaced at once, so readers never see half of it

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        index = self._order[row]
        found = (np.asarray(index, np.int64), np.asarray(self._labels[index], np.int32))
        return (*found, self._draws(int(self._positions[row]))) if self._width else found

    def _draws(self, position: int) -> np.ndarray:
        number, draws = self._chunk
        wanted, place = divmod(position, transforms.CHUNK)
        if wanted != number:
            draws = transforms.augmentation_draws(self._seed, self._epoch, wanted, self._width)
            self._chunk = (wanted, draws)
        return draws[place]


def _fixed_size(source: Source, image_size: int, shorter_side: int, interpolation: str) -> list[Stage]:
    shape = source.image_shape
    resize = transforms.resize(shorter_side, interpolation)
    if shape is not None and shape[:2] == (image_size, image_size) and shorter_side == image_size:
        return []
    trim: list[Stage] = [] if shape is not None else [("python", transforms.trim_long_side)]
    return [*trim, resize, transforms.centre_crop(image_size)]


def _apply(dataset: Any, stages: Sequence[Stage], workers: int) -> Any:
    """Append the stages, neighbours of one kind in one map.

    Never both kinds in one map: MindSpore would run the operators after a Python function as Pillow code.
    """
    for python, group in itertools.groupby(stages, key=lambda stage: stage[0] != "operator"):
        members = list(group)
        columns = ["image", "draws"] if any(kind == "draws" for kind, _ in members) else ["image"]
        operations: list[Callable[..., Any]] = [operator for _, operator in members]
        if python:
            operations = [partial(_run, members)]
        dataset = dataset.map(
            operations, columns, ["image"], num_parallel_workers=workers, python_multiprocessing=False
        )
    return dataset


def _run(stages: Sequence[Stage], image: np.ndarray, draws: Optional[np.ndarray] = None) -> np.ndarray:
    for kind, function in stages:
        image = function(image, draws) if kind == "draws" else function(image)
    return image


def _check_counts(least: int = 1, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_range(name: str, bounds: Sequence[float], greatest: float) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] <= greatest or math.isinf(bounds[1]):
        limit = "" if math.isinf(greatest) else f" <= {greatest:g}"
        raise UserError(f"{name} must be two numbers with 0 < first <= second{limit}, got {list(bounds)}")
