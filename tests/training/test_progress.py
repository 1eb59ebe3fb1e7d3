"""The guard against losses that are no numbers."""

from __future__ import annotations

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from src.training.progress import NonFiniteLoss, StepProgress


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_loss_that_is_no_number_is_named_by_its_step(bad: float) -> None:
    progress = StepProgress(2, 5, 10, np.full(50, 0.1), 4, 3, None, False)
    losses = [1.0, 2.0, 3.0, 4.0, bad, bad]

    def step(number: int) -> None:
        loss = ms.Tensor(losses[number - 1], ms.float32)
        arguments = SimpleNamespace(net_outputs=loss, cur_step_num=number)
        progress.on_train_step_end(SimpleNamespace(original_args=lambda: arguments))

    for number in range(1, 6):
        step(number)  # losses are fetched at the first step and at every third
    assert progress.loss_sum == 6 and progress.loss_count == 3
    with pytest.raises(NonFiniteLoss, match=rf"^the loss is {bad} at step 25 \(epoch 3\): training stopped"):
        step(6)
    assert progress.loss_sum == 10 and progress.loss_count == 4
