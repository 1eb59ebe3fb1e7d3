"""What a training is made of between two steps: saved, and restored to the last bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.format import (
    Checkpoint,
    load_network,
    load_optimizer,
    optimizer_state,
    other_classes,
    read_checkpoint,
)
from covpool.checkpoints.store import CheckpointStore
from covpool.errors import UserError
from covpool.runtime.distributed import World

logger = logging.getLogger(__name__)


class NonFiniteState(UserError):
    """A parameter, or what the optimiser remembers of it, became NaN or infinite."""


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    epoch: int = 0  # whole epochs that are done
    step: int = 0  # steps that are done of the epoch after them
    loss_sum: float = 0.0  # sum of this rank's losses in these steps
    loss_count: int = 0  # how many they are
    hits: float = 0.0  # images of this rank that were answered rightly in these steps; NaN if nobody counted


@dataclass(frozen=True)
class TrainingState:
    """Network, optimiser and their checkpoints."""

    network: nn.Cell
    optimizer: nn.Optimizer
    store: CheckpointStore
    world: World  # rank 0 writes
    steps: int  # of an epoch
    about: Mapping[str, Any]  # what every checkpoint says of the network and its data

    @property
    def parameters(self) -> list[ms.Parameter]:
        """All that a training changes: the network's parameters, what the optimiser remembers, averages."""
        return [*self.network.get_parameters(), *optimizer_state(self.optimizer, self.network).values()]

    def evaluated(self) -> AbstractContextManager[None]:
        """Within the block the network is what is evaluated: with a moving average, the averaged one."""
        average = getattr(self.optimizer, "average", None)
        return nullcontext() if average is None else average.in_place()

    def begin_average(self) -> None:
        """Let a moving average begin with the network as it is now."""
        if hasattr(self.optimizer, "average"):
            self.optimizer.average.follow()

    def save(self, progress: Progress, metric: float | None = None, regular: bool = True, best: bool = False) -> None:
        """Save checkpoints; every rank calls it and waits until they are written.

        Within an epoch the ranks' running statistics and losses differ: all of them are saved. ``metric`` is the top-1
        accuracy there, if it was evaluated; with ``regular`` it is saved among the newest checkpoints, with
        ``best`` as the best one, if the metric is higher than any before. NonFiniteState: see ``check_finite``.
        """
        epoch, step = progress.epoch, progress.epoch * self.steps + progress.step
        self.check_finite(step)
        ranks, about = None, dict(self.about)
        if progress.step:
            statistics = running_statistics(self.parameters)
            ranks = self.world.gather(statistics).astype(statistics.dtype)
            losses = self.world.gather(np.array([progress.loss_sum, progress.loss_count, progress.hits]))
            kept = losses[:, :2] if np.isnan(losses).any() else losses  # JSON has no NaN
            about.update(steps_per_epoch=self.steps, losses=kept.tolist())
        if self.world.is_main:
            if regular:
                self.store.save(self.network, self.optimizer, epoch, step, metric, about, ranks)
            if best and metric is not None:
                self.store.save_best(self.network, self.optimizer, epoch, step, metric, about)
        self.world.barrier()

    def check_finite(self, step: int) -> None:
        """Raise NonFiniteState on every rank if one has a parameter that is NaN or infinite; every rank calls it.

        Gradients that are no numbers show in the next loss, too late for a checkpoint that is due before it.
        """
        bad = [p.name for p in self.parameters if not np.isfinite(p.asnumpy()).all()]
        if self.world.sum(np.array([len(bad)], np.float64)).any():
            names = f"{len(bad)} of them, first {bad[0]}" if bad else "on another rank"
            raise NonFiniteState(
                f"parameters are NaN or infinite after step {step} ({names}), as its gradients were: training stopped; "
                "the checkpoints before it are as they were. A lower lr_max, a longer warm-up or, in mixed precision, "
                "a lower loss_scale usually helps"
            )

    def find(self, path: str) -> Checkpoint | None:
        """The checkpoint at ``path``; for 'auto' the newest whole one in the store, None if there is none."""
        return self.store.newest_valid() if path == "auto" else read_checkpoint(Path(path))

    def restore(self, checkpoint: Checkpoint, architecture: Mapping[str, Any]) -> Progress:
        """Set network and optimiser to what a checkpoint holds; where to go on.

        After whole epochs an epoch may have become longer or shorter: rates go on from the same epoch. UserError: it
        is of other classes, another network or optimiser, or from within an epoch of another length.
        """
        if difference := other_classes(checkpoint, self.about.get("class_names", ())):
            raise UserError(f"{checkpoint.path} does not fit the classes of the data: {difference}")
        load_network(self.network, checkpoint, architecture)
        load_optimizer(self.optimizer, self.network, checkpoint)
        progress = self._progress(checkpoint)
        within = f" and {progress.step} steps" if progress.step else ""
        logger.info("resumed from %s after epoch %d%s", checkpoint.path, progress.epoch, within)
        before, now = counts(checkpoint)[1], progress.epoch * self.steps + progress.step
        if before != now:
            # Rates are found by this count. Left alone where epochs are as long: steps that overflowed do not count.
            self.optimizer.global_step.set_data(ms.Tensor([now], ms.int32))
            logger.info(
                "an epoch has %d steps here and had %g before: rates go on from epoch %d",
                self.steps,
                before / max(1, progress.epoch),
                progress.epoch,
            )
        return progress

    def _progress(self, checkpoint: Checkpoint) -> Progress:
        about = checkpoint.about
        if "steps_per_epoch" not in about:
            return Progress(counts(checkpoint)[0])
        if about["steps_per_epoch"] != self.steps:
            raise UserError(
                f"{checkpoint.path} was saved within an epoch of {about['steps_per_epoch']} steps; here an epoch has "
                f"{self.steps}: keep data, batch size and ranks, or resume from the end of an epoch"
            )
        losses = np.asarray(about["losses"], np.float64)
        statistics = checkpoint.ranks
        if statistics is None or len(statistics) != len(losses):
            raise UserError(f"{checkpoint.path} does not hold the running statistics of its {len(losses)} ranks")
        same = len(losses) == self.world.size
        mine = statistics[self.world.rank] if same else statistics.mean(0)
        set_running_statistics(self.parameters, mine)
        loss_sum, loss_count, *hits = losses[self.world.rank] if same else losses.sum(0) / self.world.size
        epoch, step = divmod(counts(checkpoint)[1], self.steps)
        return Progress(epoch, step, float(loss_sum), int(loss_count), float(hits[0]) if hits else math.nan)


def place(checkpoint: Checkpoint) -> tuple[int, int]:
    """Whole epochs, and the steps over all epochs in a checkpoint from within an epoch, else 0: to be compared."""
    epoch, step = counts(checkpoint)
    return epoch, step if "steps_per_epoch" in checkpoint.about else 0


def counts(checkpoint: Checkpoint) -> tuple[int, int]:
    """Whole epochs, and steps over all epochs, after which a checkpoint was saved; UserError if it does not say so."""
    epoch, step = (checkpoint.about.get(key, -1) for key in ("epoch", "step"))
    if not 0 <= epoch <= step:
        raise UserError(f"{checkpoint.path}: damaged, it does not say after which epoch and step it was saved")
    return epoch, step


def running_statistics(parameters: Iterable[ms.Parameter]) -> np.ndarray:
    """All running means and variances of batch normalisation among these, float32 (n,)."""
    values = [p.asnumpy().reshape(-1) for p in _statistics(parameters)]
    return np.concatenate(values) if values else np.zeros(0, np.float32)


def set_running_statistics(parameters: Iterable[ms.Parameter], values: np.ndarray) -> None:
    """Set what :func:`running_statistics` gives."""
    statistics = _statistics(parameters)
    ends = np.cumsum([p.size for p in statistics])
    for parameter, end in zip(statistics, ends):
        part = values[end - parameter.size : end].reshape(parameter.shape)
        parameter.set_data(ms.Tensor(np.ascontiguousarray(part)))


def _statistics(parameters: Iterable[ms.Parameter]) -> list[ms.Parameter]:
    return [p for p in parameters if p.name.endswith((".moving_mean", ".moving_variance"))]
