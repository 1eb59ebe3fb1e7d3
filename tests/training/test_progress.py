"""What is shown of a training while it runs, and the guard against losses that are no numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

from covpool.checkpoints.state import Progress
from covpool.training.progress import EpochProgress, NonFiniteLoss, Plan
from covpool.training.run_folder import RunFolder


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_loss_that_is_no_number_is_named_by_its_step(bad: float) -> None:
    progress = EpochProgress(Plan(5, 10, np.full(50, 0.1), 4, 3), Progress(2))
    losses = [1.0, 2.0, 3.0, 4.0, bad, bad]

    def step(number: int) -> None:
        loss = ms.Tensor(losses[number - 1], ms.float32)
        arguments = SimpleNamespace(net_outputs=loss, cur_step_num=number)
        progress.on_train_step_end(SimpleNamespace(original_args=lambda: arguments))

    for number in range(1, 6):
        step(number)  # losses are fetched at the first step and at every third
    assert progress._loss_sum == 6 and progress._loss_count == 3
    with pytest.raises(NonFiniteLoss, match=rf"^the loss is {bad} at step 25 \(epoch 3\): training stopped"):
        step(6)
    assert progress._loss_sum == 10 and progress._loss_count == 4


def test_speed_where_one_call_stands_for_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a data sink the first call comes after all steps, and no time is left to measure after it."""
    now = [100.0]
    monkeypatch.setattr("covpool.training.progress.time.monotonic", lambda: now[0])
    progress = EpochProgress(Plan(1, 50, np.full(50, 0.1), 4, 100), Progress())
    now[0] += 10.0
    arguments = SimpleNamespace(net_outputs=ms.Tensor(1.0, ms.float32), cur_step_num=50)
    progress.on_train_step_end(SimpleNamespace(original_args=lambda: arguments))
    assert progress.images_per_s == pytest.approx(50 * 4 / 10.0)


def test_a_bar_shows_loss_rate_speed_and_time_left_every_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [100.0]
    monkeypatch.setattr("covpool.training.progress.time.monotonic", lambda: now[0])
    plan, folder = Plan(2, 50, np.full(100, 0.1), 4, 100), RunFolder(tmp_path)
    progress = EpochProgress(plan, Progress(), folder, bar=True)
    for number in range(1, 8):
        now[0] += 0.5
        arguments = SimpleNamespace(net_outputs=ms.Tensor(number, ms.float32), cur_step_num=number)
        progress.on_train_step_end(SimpleNamespace(original_args=lambda arguments=arguments: arguments))
    assert progress._loss_count == 6 and progress.so_far.loss_sum == 28  # looked at every second, not every step
    bar = progress._bar
    assert bar is not None and str(bar).startswith("epoch 1/2:  14%|") and "| 7/50, loss 6.0000" in str(bar)
    assert str(bar).endswith("loss 6.0000, rate 0.1, 8 images/s, 0:47 left")  # 94 steps of half a second
    progress.close()


def test_accuracy_is_that_of_the_epoch_so_far_and_goes_on_after_a_resumption(tmp_path: Path) -> None:
    """Two ranks share batches of 8; 10 of this rank's 20 images before the resumption were right."""
    hits = ms.Parameter(ms.Tensor(2**31 - 3, ms.int32), name="hits")
    plan = Plan(2, 50, np.full(100, 0.1), 8, 100, ranks=2)
    progress = EpochProgress(plan, Progress(0, 5, 5.0, 5, hits=10.0), RunFolder(tmp_path), hits=hits)
    ms.ops.assign(hits, ms.Tensor(-(2**31) + 3, ms.int32))  # six more: the counter wraps around
    arguments = SimpleNamespace(net_outputs=ms.Tensor(1.0), cur_step_num=1)
    progress.on_train_step_end(SimpleNamespace(original_args=lambda: arguments))
    assert progress.so_far == Progress(0, 6, 6.0, 6, 16.0)
    assert progress._status().startswith("loss 1.0000, accuracy 0.667, rate")
