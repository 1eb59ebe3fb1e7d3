"""What happens between two steps: losses are followed and reported, checkpoints saved, the training stopped."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore.train import Callback

from covpool.checkpoints.state import Progress
from covpool.errors import UserError
from covpool.runtime.command import clock, progress_bar
from covpool.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
_BAR_S = 1.0  # seconds between two looks at the loss while a bar is shown: each waits for the device


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Plan:
    """Lengths of a training."""

    epochs: int  # of the whole training
    steps: int  # of an epoch
    rates: np.ndarray  # of every step of the training
    global_batch: int  # images of one step over all ranks
    log_interval: int  # steps between two reports
    ranks: int = 1  # which share the images of a step


class EpochProgress(Callback):
    """Follows the steps of one epoch: losses stay on the device and are fetched every ``log_interval`` steps.

    Args:
        plan: Lengths of the training.
        start: Where the epoch begins: after some of its steps where a run within it is resumed.
        folder: Where step records go; None on ranks that do not write.
        bar: Whether to show a bar rather than lines.
        between: Called after every step, once it is counted; a number other than 0 stops the training. With a data
            sink the device runs all steps of an epoch before that.
        hits: Counts the right answers of this rank; None where nobody counts.
    """

    def __init__(
        self,
        plan: Plan,
        start: Progress,
        folder: RunFolder | None = None,
        bar: bool = False,
        between: Callable[[EpochProgress], int] = lambda progress: 0,
        hits: ms.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.start, self.folder, self.between = plan, start, folder, between
        self.done = start.step  # steps of this epoch that are done
        self.signal = 0  # what ``between`` gave last
        self.first_step_s = 0.0  # compilation included
        self.images_per_s = math.nan  # of the other steps, over all ranks; NaN if there were none
        self.train_s = self.train_cpu_s = 0.0  # seconds from the beginning to close(): by the clock, of all cores
        self._loss_sum, self._loss_count, self._last = start.loss_sum, start.loss_count, math.nan
        self._pending: list[Any] = []
        self._hits, self._hits_before = hits, 0 if hits is None else int(hits.asnumpy())
        self._started = self._measured_from = self._shown = time.monotonic()
        self._cpu_started = time.process_time()
        self._unmeasured = 0  # with a data sink one call stands for an epoch, compilation included
        title, shown = f"epoch {start.epoch + 1}/{plan.epochs}", bar and folder is not None
        self._bar = progress_bar(None, plan.steps, title, "step", shown=shown, initial=start.step, bar_format=_BAR)

    @property
    def so_far(self) -> Progress:
        """Where the training is, all losses so far added up; waits for them."""
        self._fetch()
        return Progress(self.start.epoch, self.done, self._loss_sum, self._loss_count, self.hits)

    @property
    def hits(self) -> float:
        """Images of this rank that were answered rightly so far in the epoch; NaN if nobody counted."""
        if self._hits is None:
            return math.nan
        return self.start.hits + (int(self._hits.asnumpy()) - self._hits_before) % 2**32

    @property
    def speed(self) -> float | None:
        """Images per second, for the records."""
        return None if math.isnan(self.images_per_s) else round(self.images_per_s, 2)

    def on_train_step_end(self, run_context: Any) -> None:
        """Keep the loss; report, save and stop when it is time."""
        arguments, before = run_context.original_args(), self.done
        outputs = arguments.net_outputs
        self._pending.append(outputs[0] if isinstance(outputs, (tuple, list)) else outputs)
        self.done = self.start.step + arguments.cur_step_num
        if before == self.start.step:
            self._fetch()
            self.first_step_s = time.monotonic() - self._started
            if self.done - before == 1:  # compiles the graph: not part of the speed
                self._measured_from, self._unmeasured = self._started + self.first_step_s, 1
        if not self._bar.disable and time.monotonic() - self._shown >= _BAR_S:
            self._fetch()
            self._bar.set_postfix_str(self._status(), refresh=False)
            self._shown = time.monotonic()
        self._bar.update(self.done - before)
        if self.done % self.plan.log_interval == 0 or self.done == self.plan.steps:
            self._fetch()
            self._report()
        self.signal = self.between(self)
        if self.signal:
            run_context.request_stop()

    def close(self) -> None:
        """Stop the clocks and remove the bar."""
        self.train_s = time.monotonic() - self._started
        self.train_cpu_s = time.process_time() - self._cpu_started
        self._bar.close()

    def _fetch(self) -> None:
        """Wait for the losses of the steps so far and add them up; one that is NaN or infinite is an error."""
        losses = [float(loss.asnumpy()) for loss in self._pending]
        self._pending.clear()
        first = self.start.epoch * self.plan.steps + self.done - len(losses) + 1
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"the loss is {loss} at step {step} (epoch {self.start.epoch + 1}): training stopped; the "
                    "checkpoints before it are as they were. A lower lr_max or a longer warm-up usually helps"
                )
            self._loss_sum += loss  # one by one: the sum must not depend on when losses are fetched
            self._loss_count += 1
            self._last = loss

    def _status(self) -> str:
        """Loss, rate, speed and time left of the whole training, as of the losses that were fetched."""
        plan, step = self.plan, self.start.epoch * self.plan.steps + self.done
        measured = self.done - self.start.step - self._unmeasured
        if measured > 0:
            self.images_per_s = measured * plan.global_batch / (time.monotonic() - self._measured_from)
        accuracy = self.hits * plan.ranks / (self.done * plan.global_batch)
        known = "" if math.isnan(accuracy) else f", accuracy {accuracy:.3f}"
        left = clock((plan.epochs * plan.steps - step) * plan.global_batch / self.images_per_s)
        return (
            f"loss {self._last:.4f}{known}, rate {plan.rates[step - 1]:.3g}{speed_text(self.images_per_s)}, {left} left"
        )

    def _report(self) -> None:
        plan, epoch, status = self.plan, self.start.epoch + 1, self._status()
        if self.folder is None:
            return
        step = self.start.epoch * plan.steps + self.done
        values = {"loss": self._last, "learning_rate": float(plan.rates[step - 1]), "images_per_s": self.speed}
        self.folder.record("step", epoch=epoch, step=step, **values)
        if not self._bar.disable:
            self._bar.set_postfix_str(status)
        elif self.done < plan.steps:
            logger.info("epoch %d/%d step %d/%d: %s", epoch, plan.epochs, self.done, plan.steps, status)


def speed_text(images_per_s: float) -> str:
    """A speed to follow other figures; nothing where it is not known, as in an epoch of one step."""
    return "" if math.isnan(images_per_s) else f", {images_per_s:.0f} images/s"
