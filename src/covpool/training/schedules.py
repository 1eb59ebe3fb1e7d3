"""Learning-rate schedules as pure functions: one rate for every step of the whole training.

``linear``, ``poly``, ``cosine``, ``one_cycle``, ``step`` and ``steps`` are the standard ones and change at every step;
``port_cosine`` is what the MindSpore ports call cosine. ``lr_norm``, ``lr_fast`` and ``lr_adju`` are those of Wang et
al., CVPR 2020, and change once per epoch, with epochs counted from 0 as in the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import numpy as np

# Fractions of the training after which the rate is multiplied: the points are those of the ports.
_STEPS = ((0.3, 0.1), (0.6, 0.01), (0.8, 0.001))
_STEP = ((0.2, 0.1), (0.5, 0.01), (0.7, 0.001), (0.9, 0.00005))

# CVPR 2020, for ResNet (base rate 0.1, batch 256): epoch -> factor of the base rate.
_RESNET: dict[str, Callable[[float], float]] = {
    "lr_norm": lambda e: 0.1 ** (e // 30),  # 100 epochs
    "lr_fast": lambda e: max(1 - (e - 1) / 52, 0.0) ** 11,  # 30 epochs
    "lr_adju": lambda e: max(1 - (e - 1) / 49, 0.0) ** 2,  # 50 epochs
}
# CVPR 2020, for MobileNetV2: base rates 0.045, 0.06 and 0.06; batch 96, 96 and 192.
_MOBILENETV2: dict[str, Callable[[float], float]] = {
    "lr_norm": lambda e: 0.98**e,
    "lr_fast": lambda e: 0.92**e,  # 100 epochs
    "lr_adju": lambda e: float(np.interp(e, (0, 50, 100, 150), (0.06, 0.01, 0.001, 0.00001)) / 0.06),  # 150 epochs
}
PER_EPOCH = {"resnet": _RESNET, "mobilenetv2": _MOBILENETV2}
# Of the progress p after the warm-up, in [0, 1), the highest and the last rate, and the power.
_STANDARD: dict[str, Callable[[float, float, float, float], float]] = {
    "linear": lambda p, high, low, power: high - (high - low) * p,
    "poly": lambda p, high, low, power: high * (1 - p) ** power,
    "cosine": lambda p, high, low, power: low + (high - low) * 0.5 * (1 + math.cos(math.pi * p)),
}
PER_STEP = (*_STANDARD, "one_cycle", "port_cosine", "step", "steps")
# PyTorch's OneCycleLR: part of the steps until the highest rate, that over the first, the first over the last.
_RISE, _FIRST, _LAST = 0.3, 25.0, 1e4


def learning_rates(
    mode: str,
    *,
    lr_max: float,
    epochs: int,
    steps_per_epoch: int,
    lr_init: float = 0.0,
    lr_end: float = 0.0,
    warmup_epochs: int = 0,
    cooldown_epochs: int = 0,
    power: float = 2.0,
    milestones: Sequence[int] | None = None,
    gamma: float = 0.1,
    family: str = "resnet",
    designed_epochs: float | None = None,
) -> np.ndarray:
    """The rate of every optimiser step, float32 (epochs * steps_per_epoch,).

    Args:
        mode: A name of the schedules above.
        lr_max: Base rate, reached at the end of the warm-up.
        epochs: Length of the training.
        steps_per_epoch: Optimiser steps of one epoch.
        lr_init: Rate before the first warm-up step; first rate of 'one_cycle', where 0 stands for lr_max / 25.
        lr_end: Last rate of 'linear' and 'cosine', and of 'one_cycle', where 0 stands for the first / 10000; rate of
            the cool-down.
        warmup_epochs: Epochs over which the rate of every schedule rises linearly from lr_init to lr_max. 'linear',
            'poly' and the cosines then decay over the steps that are left; the others count epochs from the start.
            'one_cycle' has its own rise, over 0.3 of its steps, and takes none.
        cooldown_epochs: Last epochs, at the rate lr_end; 'linear', 'poly', 'one_cycle' and the cosines end before.
        power: Of 'poly'.
        milestones: For 'step' and 'steps': epochs at which the rate is multiplied by gamma; else the ports' points.
        gamma: Factor at each milestone.
        family: 'resnet' or 'mobilenetv2': which base the CVPR 2020 schedules are meant for.
        designed_epochs: The length that a CVPR 2020 schedule was designed for, to be stretched to ``epochs``.

    Raises:
        ValueError: Unknown mode or family, lengths out of range, or a rate that would be 0 before the end.
    """
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"epochs and steps_per_epoch must be at least 1, not {epochs} and {steps_per_epoch}")
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must be in [0, {epochs}), not {warmup_epochs}")
    if not 0 <= cooldown_epochs < epochs - warmup_epochs:
        raise ValueError(f"cooldown_epochs must be in [0, {epochs - warmup_epochs}), not {cooldown_epochs}")
    if warmup_epochs and mode == "one_cycle":
        raise ValueError("one_cycle has its own warm-up: warmup_epochs must be 0")
    if family not in PER_EPOCH:
        raise ValueError(f"unknown family {family!r}; one of {', '.join(PER_EPOCH)}")
    if mode not in PER_STEP and mode not in PER_EPOCH[family]:
        raise ValueError(f"unknown schedule {mode!r}; one of {', '.join((*PER_STEP, *PER_EPOCH[family]))}")
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    end = total - cooldown_epochs * steps_per_epoch

    def rate(step: int) -> float:
        epoch = step // steps_per_epoch
        if step < warmup:
            return lr_init + (lr_max - lr_init) * (step + 1) / warmup
        if step >= end:
            return lr_end
        if mode in _STANDARD:
            return _STANDARD[mode]((step - warmup) / (end - warmup), lr_max, lr_end, power)
        if mode == "one_cycle":
            return _one_cycle(step, end, lr_max, lr_init, lr_end)
        if mode == "port_cosine":
            line = (end - step) / (end - warmup)
            return lr_max * (line * 0.5 * (1 + math.cos(0.94 * math.pi * step / (end - warmup))) + 1e-5)
        if mode in ("step", "steps"):
            if milestones is not None:
                return lr_max * gamma ** sum(epoch >= milestone for milestone in milestones)
            passed = [factor for point, factor in (_STEP if mode == "step" else _STEPS) if step / total >= point]
            return lr_max * (passed[-1] if passed else 1.0)
        # Multiplied first: a quotient rounded before would land just under a milestone.
        stretched = epoch * designed_epochs / epochs if designed_epochs else epoch
        factor = PER_EPOCH[family][mode](stretched)
        if factor == 0:
            raise ValueError(f"{mode} is 0 from epoch {math.ceil(stretched)} on: stretch it with designed_epochs")
        return lr_max * factor

    return np.array([rate(step) for step in range(total)], np.float64).astype(np.float32)


def _one_cycle(step: int, steps: int, high: float, first: float, last: float) -> float:
    """Rate of a step of PyTorch's ``OneCycleLR``: half a cosine up, and another down."""
    peak, first = _RISE * steps - 1, first or high / _FIRST
    if step <= peak:
        p, start, end = step / peak, first, high
    else:
        p, start, end = (step - peak) / (steps - 1 - peak), high, last or first / _LAST
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * p))
