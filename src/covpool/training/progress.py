"""What Model.train reports while it runs: losses, rate, speed; and the stop at a loss that is no number."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
from mindspore.train import Callback
from tqdm import tqdm

from covpool.errors import UserError
from covpool.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


class StepProgress(Callback):
    """Follows the steps of one epoch.

    Losses stay on the device and are fetched every ``interval`` steps: a step waits for nothing.

    Args:
        epoch: Epoch that runs, from 0.
        epochs: Length of the training.
        steps: Steps of an epoch.
        rates: The rate of every step of the training.
        global_batch: Images of one step over all ranks.
        interval: Steps between two reports.
        folder: Where step records go; None on ranks that do not write.
        bar: Whether to show a bar rather than lines.
        first_step: Steps of this epoch that were done before.
        loss_sum: Sum of their losses.
        loss_count: How many losses that are.
    """

    def __init__(
        self,
        epoch: int,
        epochs: int,
        steps: int,
        rates: np.ndarray,
        global_batch: int,
        interval: int,
        folder: RunFolder | None,
        bar: bool,
        first_step: int = 0,
        loss_sum: float = 0.0,
        loss_count: int = 0,
    ) -> None:
        super().__init__()
        self.epoch, self.epochs, self.steps = epoch, epochs, steps
        self.rates, self.global_batch, self.interval = rates, global_batch, interval
        self.folder = folder
        self.loss_sum, self.loss_count = loss_sum, loss_count
        self.first_step_s, self.images_per_s = 0.0, math.nan
        self._pending: list[Any] = []
        self._last = math.nan
        self._started = self._measured_from = time.monotonic()
        self._unmeasured = 0  # with a data sink one call stands for an epoch, compilation included
        self._first = self._done = first_step
        self._bar = None
        if folder is not None and bar:
            self._bar = tqdm(
                total=steps, initial=first_step, desc=f"epoch {epoch + 1}/{epochs}", unit="step", leave=False
            )

    def on_train_step_end(self, run_context: Any) -> None:
        """Keep the loss; report when it is time."""
        arguments = run_context.original_args()
        outputs, before = arguments.net_outputs, self._done
        self._pending.append(outputs[0] if isinstance(outputs, (tuple, list)) else outputs)
        self._done = self._first + arguments.cur_step_num
        if before == self._first:
            self.fetch()
            self.first_step_s = time.monotonic() - self._started
            if self._done - before == 1:  # compiles the graph: not part of the speed
                self._measured_from, self._unmeasured = self._started + self.first_step_s, 1
        if self._bar is not None:
            self._bar.update(self._done - before)
        if self._done % self.interval == 0 or self._done == self.steps:
            self._report(self.fetch())

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def fetch(self) -> float:
        """Wait for the losses of the steps so far and add them up; the last of them.

        Raises:
            NonFiniteLoss: One of them is NaN or infinite.
        """
        losses = [float(loss.asnumpy()) for loss in self._pending]
        self._pending.clear()
        for step, loss in enumerate(losses, start=self.epoch * self.steps + self._done - len(losses) + 1):
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"the loss is {loss} at step {step} (epoch {self.epoch + 1}): training stopped; the checkpoints "
                    "before it are as they were. A lower lr_max or a longer warm-up usually helps"
                )
            self.loss_sum += loss  # one by one: the sum must not depend on when losses are fetched
            self.loss_count += 1
            self._last = loss
        return self._last

    def _report(self, loss: float) -> None:
        measured = self._done - self._first - self._unmeasured
        if measured > 0:
            self.images_per_s = measured * self.global_batch / (time.monotonic() - self._measured_from)
        step = self.epoch * self.steps + self._done
        rate = float(self.rates[step - 1])
        if self.folder is None:
            return
        self.folder.record(
            "step",
            epoch=self.epoch + 1,
            step=step,
            loss=loss,
            learning_rate=rate,
            images_per_s=None if math.isnan(self.images_per_s) else round(self.images_per_s, 2),
        )
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, rate {rate:.3g}, {self.images_per_s:.0f} images/s")
        elif self._done < self.steps:
            left = (self.epochs * self.steps - step) * self.global_batch / self.images_per_s
            logger.info(
                "epoch %d/%d step %d/%d: loss %.4f, rate %.3g, %.0f images/s, %s left",
                self.epoch + 1,
                self.epochs,
                self._done,
                self.steps,
                loss,
                rate,
                self.images_per_s,
                clock(left),
            )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour; a dash where unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
