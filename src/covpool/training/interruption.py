"""Between two steps: save when it is due; stop when a rank was asked to, all ranks after the same step."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
from mindspore.train import Callback

from covpool.runtime.distributed import World
from covpool.runtime.signals import StopRequest


def agreed_signal(stop: StopRequest, world: World) -> int:
    """The signal that any rank has received, 0 for none; every rank calls it after the same step."""
    if world.size == 1:
        return stop.received
    ranks = np.zeros(world.size)
    ranks[world.rank] = stop.received
    return int(world.sum(ranks).max())


class StepBoundary(Callback):
    """Between two steps of an epoch: save when it is due, stop when a signal asks for it.

    Args:
        first_step: Steps of this epoch that were done before.
        stop: Gives the signal that all ranks know of after this many steps of the epoch, 0 for none.
        save_every: Steps between two checkpoints within an epoch; 0 for none.
        save: Saves after this many steps of the epoch.
    """

    def __init__(
        self, first_step: int, stop: Callable[[int], int], save_every: int, save: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.first_step = self.done = first_step
        self.signal = 0
        self._stop, self._save_every, self._save = stop, save_every, save

    def on_train_step_end(self, run_context: Any) -> None:
        """Save, stop. With a data sink the device runs all steps of an epoch before this is called."""
        self.done = self.first_step + run_context.original_args().cur_step_num
        self.signal = self._stop(self.done)
        if self.signal or (self._save_every and self.done % self._save_every == 0):
            self._save(self.done)
        if self.signal:
            run_context.request_stop()
