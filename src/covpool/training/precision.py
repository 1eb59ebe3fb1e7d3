"""Loss scaling of mixed precision: what each device can do."""

from __future__ import annotations

from typing import Any

from mindspore.train import DynamicLossScaleManager, FixedLossScaleManager

from covpool.errors import UserError


def loss_scale_manager(amp_level: str, mode: str, loss_scale: float, device_target: str) -> Any:
    """The manager that ``Model`` gets; None in full precision, where scaling by a constant changes nothing.

    On GPU and Ascend a step whose gradients overflow is left out. MindSpore cannot do that on CPU: there the scale is
    applied, and an overflow shows as a loss that is no number, which stops the training.

    Args:
        amp_level: 'O0' (full precision), 'O1', 'O2', 'O3' or 'auto'.
        mode: 'fixed' or 'dynamic'.
        loss_scale: The scale, or the first one of the dynamic mode.
        device_target: 'CPU', 'GPU' or 'Ascend'.

    Raises:
        UserError: A dynamic scale on CPU.
    """
    if amp_level == "O0":
        return None
    if mode == "dynamic":
        if device_target == "CPU":
            raise UserError("loss_scale_mode=dynamic needs a GPU or Ascend: MindSpore has none on CPU; use fixed", 2)
        return DynamicLossScaleManager(init_loss_scale=loss_scale)
    return FixedLossScaleManager(loss_scale, drop_overflow_update=device_target != "CPU")


def optimizer_loss_scale(amp_level: str, loss_scale: float, device_target: str) -> float:
    """What the optimiser divides gradients by: the scale where no other part of the step undoes it."""
    return loss_scale if amp_level != "O0" and device_target == "CPU" else 1.0
