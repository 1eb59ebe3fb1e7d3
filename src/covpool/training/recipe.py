"""The recipe of a training: optimiser, rates and loss scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import nn
from mindspore.train import DynamicLossScaleManager, FixedLossScaleManager

from covpool.config import Config
from covpool.errors import UserError
from covpool.models.layer_groups import rate_factors
from covpool.pooling import pooling_info
from covpool.training.optimizers import build_optimizer
from covpool.training.schedules import learning_rates
from covpool.training.update import WeightAverage


def recipe_rates(config: Config, steps: int, global_batch: int) -> np.ndarray:
    """The rate of every step of the configured training, float32 (epochs * steps,).

    Args:
        config: With ``lr_base`` the highest rate is in proportion to the global batch.
        steps: Those of an epoch.
        global_batch: Images of a step, of all ranks.
    """
    several = config.epoch_size > 1  # one epoch is a trial: all of it at the rates of the schedule
    return rate_factor(config) * learning_rates(
        config.lr_decay_mode,
        lr_max=config.lr_max if config.lr_base is None else config.lr_base * global_batch / config.lr_base_size,
        lr_init=config.lr_init,
        lr_end=config.lr_end,
        epochs=config.epoch_size,
        steps_per_epoch=steps,
        warmup_epochs=config.warmup_epochs if several else 0,
        cooldown_epochs=config.cooldown_epochs if several else 0,
        power=config.lr_power,
        milestones=config.lr_epochs,
        gamma=config.lr_gamma,
        family=config.lr_family,
        designed_epochs=config.lr_designed_epochs,
    )


def rate_factor(config: Config) -> float:
    """What all rates are multiplied by."""
    return pooling_info(config.pooling).rate_factor if config.lr_factor == "auto" else config.lr_factor


def recipe_optimizer(config: Config, network: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """The configured optimiser of a network's trainable parameters.

    UserError: ``layer_decay`` for a network whose layers are not known, ``head_lr_factor`` for one without a head.
    """
    optimizer = build_optimizer(
        list(network.trainable_params()),
        rates,
        kind=config.optimizer,
        momentum=config.momentum,
        nesterov=config.nesterov,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
        factors=factors_of_rate(config, network),
        loss_scale=optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target),
    )
    if config.ema_decay:
        optimizer.average = WeightAverage(network, config.ema_decay, config.ema_warmup)
    return optimizer


def factors_of_rate(config: Config, network: nn.Cell) -> dict[str, float] | None:
    """What the rate of every parameter is multiplied by, by name; None where all have the same rate.

    A UserError says that the network has no layers, or no head, that are known by their names.
    """
    if config.layer_decay == config.head_lr_factor == 1:
        return None
    try:
        return rate_factors([p.name for p in network.get_parameters()], config.layer_decay, config.head_lr_factor)
    except ValueError as error:
        raise UserError(f"{config.net_name}: {error}", 2) from error


def loss_scale_manager(amp_level: str, mode: str, loss_scale: float, device_target: str) -> Any:
    """What ``Model`` gets for a 'fixed' or 'dynamic' loss scale; None in full precision (O0).

    On GPU and Ascend a step whose gradients overflow is left out. MindSpore cannot do that on CPU: there the scale is
    applied, and an overflow shows as a loss that is NaN, which stops the training.
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
