"""From a source to batches: order, sharding over ranks, and the chain of MindSpore operators."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from covpool.data.augment import CHUNK, Augmentation, augmentation_draws
from covpool.data.mixing import Mixing
from covpool.data.sources import Source
from covpool.data.transforms import ImageTransform, Stage, check_counts
from covpool.errors import UserError
from covpool.runtime.environment import available_cores

# MindSpore passes on what a Python function raised as text: the traceback, in an error of its own.
_RAISED = re.compile(rf"^{re.escape(UserError.__module__)}\.{UserError.__name__}: (.+)$", re.MULTILINE)
_ADVICE = "--bad_images=skip leaves such images out, covpool check-data lists them"


def epoch_order(num_samples: int, seed: int, epoch: int, repeats: int = 1) -> np.ndarray:
    """The order of all images in one epoch, the same for every number of ranks: a permutation, int64 (num_samples,).

    With ``repeats`` each image comes that many times in a row, and the order ends where it is as long as without.
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_samples)
    return order if repeats == 1 else np.repeat(order, repeats)[:num_samples]


def steps_per_epoch(num_samples: int, batch_size: int, world_size: int = 1) -> int:
    """The number of whole global batches, of ``batch_size`` per rank, in one epoch; UserError if there is none."""
    global_batch = batch_size * world_size
    if num_samples < global_batch:
        raise UserError(
            f"training needs at least one global batch: {num_samples} images are fewer than "
            f"{batch_size} per rank x {world_size} rank(s) = {global_batch}"
        )
    return num_samples // global_batch


def training_positions(num_samples: int, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """The positions in the epoch's order that one rank trains on, int64: every ``world_size``-th, whole batches only.

    Step k over all ranks is exactly step k of one process with the global batch size.
    """
    steps = steps_per_epoch(num_samples, batch_size, world_size)
    return np.arange(rank, steps * batch_size * world_size, world_size, dtype=np.int64)


def evaluation_indices(num_samples: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """The images that one rank evaluates, int64: every ``world_size``-th, each on exactly one rank; maybe none."""
    return np.arange(rank, num_samples, world_size, dtype=np.int64)


def create_dataset(
    source: Source,
    transform: ImageTransform,
    batch_size: int,
    augmentation: Optional[Augmentation] = None,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: Optional[int] = None,
    mixing: Optional[Mixing] = None,
) -> Any:
    """Make the batches of one epoch for one rank, columns ``image`` and ``label``, and ``mix`` where they are mixed.

    ``image`` is float32 (N, channels, height, width), normalised; ``label`` is int32 (N,); ``mix`` is float32 (5,), see
    ``Mixing.draw``.

    Training: shuffled by (seed, epoch), augmented, whole batches only. What a batch holds depends on the images, the
    arguments, seed, epoch and position in the epoch alone: not on the number of threads, of ranks, or on time.
    Evaluation: in order, every image exactly once over all ranks, the last batch as small as it comes.

    Args:
        source: The images, from ``open_source``.
        transform: How they become the network's input.
        batch_size: Images per rank and step.
        augmentation: How training images vary; None for evaluation.
        seed: Seed of order and augmentation, 0 or more.
        epoch: Number of the epoch, 0 or more; another epoch has another order and other crops.
        first_step: Training: start at this step of the epoch, at no cost, to continue an interrupted one.
        rank: This process, 0 to world_size - 1.
        world_size: Number of ranks.
        num_workers: Threads per stage, None for one per core available to this process; more than the machine's
            cores are not started. Any number gives the same batches.
        mixing: Training: how the images of a batch are to be mixed; None for not at all.

    Returns:
        A ``mindspore.dataset.Dataset``, for one pass; None in evaluation if this rank's part is empty.

    Raises:
        UserError: An argument is out of range, or training has less than one global batch.
    """
    import mindspore.dataset as ds

    check_counts(batch_size=batch_size, world_size=world_size, num_workers=num_workers or 1)
    check_counts(0, seed=seed, epoch=epoch, first_step=first_step, rank=rank)
    if rank >= world_size:
        raise UserError(f"rank must lie in 0 to {world_size - 1}, got {rank}")
    stages: list[Stage] = [("python", lambda index: source.pixels(int(index)))]
    if augmentation is not None:
        positions = training_positions(source.num_samples, batch_size, rank, world_size)
        if first_step >= len(positions) // batch_size:
            raise UserError(f"first_step must lie in 0 to {len(positions) // batch_size - 1}, got {first_step}")
        positions = positions[first_step * batch_size :]
        order = epoch_order(source.num_samples, seed, epoch, augmentation.repeated_augmentation)[positions]
        stages += augmentation.stages(transform, source.image_shape)
    else:
        positions = order = evaluation_indices(source.num_samples, rank, world_size)
        if not len(order):
            return None
        stages += transform.stages(source.image_shape)

    workers = min(num_workers or available_cores(), os.cpu_count() or 1)
    rows = _Rows(order, source.labels, positions, seed, epoch, augmentation.widths if augmentation else (0, 0))
    dataset = ds.GeneratorDataset(
        rows, rows.columns, shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
    dataset = _apply(dataset, stages, workers).project(["image", "label"])
    dataset = dataset.batch(batch_size, drop_remainder=augmentation is not None, num_parallel_workers=workers)
    if augmentation is None or mixing is None:
        return dataset
    steps = range(first_step, first_step + len(order) // batch_size)
    return dataset.zip(mixing.dataset(transform.height, transform.width, seed, epoch, steps))


@contextmanager
def pipeline_errors() -> Iterator[None]:
    """Turn an error of the pipeline within the block into the source's own, with what helps, where there is one."""
    try:
        yield
    except RuntimeError as error:
        found = _RAISED.search(str(error))
        if not found:
            raise
        raise UserError(f"{found[1]} ({_ADVICE})") from error


class _Rows:
    """The rows a pipeline starts from: image index, label and the image's random numbers."""

    def __init__(
        self,
        order: np.ndarray,
        labels: np.ndarray,
        positions: np.ndarray,
        seed: int,
        epoch: int,
        widths: tuple[int, int],
    ) -> None:
        self.columns = ["image", "label", "draws"] if any(widths) else ["image", "label"]
        self._order, self._labels, self._positions = order, labels, positions
        self._seed, self._epoch, self._widths = seed, epoch, widths
        self._chunk = (-1, np.empty(0, np.float32))  # one tuple: replaced at once, so readers never see half of it

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        index = self._order[row]
        found = (np.asarray(index, np.int64), np.asarray(self._labels[index], np.int32))
        return (*found, self._draws(int(self._positions[row]))) if any(self._widths) else found

    def _draws(self, position: int) -> np.ndarray:
        number, draws = self._chunk
        wanted, place = divmod(position, CHUNK)
        if wanted != number:
            draws = augmentation_draws(self._seed, self._epoch, wanted, *self._widths)
            self._chunk = (wanted, draws)
        return draws[place]


def _apply(dataset: Any, stages: Sequence[Stage], workers: int) -> Any:
    """Append the stages, neighbours of one kind in one map.

    Never both kinds in one map: MindSpore would run the operators after a Python function as Pillow code.
    """
    for python, group in itertools.groupby(stages, key=lambda stage: stage[0] != "operator"):
        members = list(group)
        columns = ["image", "draws"] if any(kind == "draws" for kind, _ in members) else ["image"]
        done: list[Callable[..., Any]] = [operator for _, operator in members]
        done = [partial(_run, members)] if python else done
        dataset = dataset.map(done, columns, columns, num_parallel_workers=workers, python_multiprocessing=False)
    return dataset


def _run(stages: Sequence[Stage], image: np.ndarray, *draws: np.ndarray) -> tuple[np.ndarray, ...]:
    for kind, function in stages:
        image = function(image, *draws) if kind == "draws" else function(image)
    return image, *draws
