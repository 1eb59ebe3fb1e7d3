"""The recipe of a training: optimiser, rates and loss scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train import DynamicLossScaleManager, FixedLossScaleManager

from covpool.config import Config
from covpool.errors import UserError
from covpool.pooling import pooling_info
from covpool.training.schedules import learning_rates
from covpool.training.update import WeightAverage


def recipe_rates(config: Config, steps: int) -> np.ndarray:
    """The rate of every step of the configured training, float32 (epochs * steps,); ``steps`` are those of an epoch."""
    return rate_factor(config) * learning_rates(
        config.lr_decay_mode,
        lr_max=config.lr_max,
        lr_init=config.lr_init,
        lr_end=config.lr_end,
        epochs=config.epoch_size,
        steps_per_epoch=steps,
        warmup_epochs=config.warmup_epochs if config.epoch_size > 1 else 0,  # one epoch is a trial
        milestones=config.lr_epochs,
        gamma=config.lr_gamma,
        family=config.lr_family,
        designed_epochs=config.lr_designed_epochs,
    )


def rate_factor(config: Config) -> float:
    """What all rates are multiplied by."""
    return pooling_info(config.pooling).rate_factor if config.lr_factor == "auto" else config.lr_factor


def recipe_optimizer(config: Config, network: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """The configured optimiser of a network's trainable parameters."""
    optimizer = build_optimizer(
        list(network.trainable_params()),
        rates,
        kind=config.optimizer,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        decay_all=config.decay_all,
        loss_scale=optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target),
    )
    if config.ema_decay:
        optimizer.average = WeightAverage(network, config.ema_decay, config.ema_warmup)
    return optimizer


# Matrices of a transformer that are added to what it computes, as a bias is.
_TABLES = ("cls_token", "pos_embed", "relative_position_bias_table")


def parameter_groups(
    parameters: Sequence[ms.Parameter], weight_decay: float, decay_all: bool = False
) -> list[dict[str, Any]]:
    """Split parameters: weights decay; beta, gamma, bias, other vectors and tables of tokens do not unless all do."""
    decays = [decay_all or (p.ndim > 1 and p.name.rpartition(".")[2] not in _TABLES) for p in parameters]
    decayed = [p for p, decay in zip(parameters, decays) if decay]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if plain := [p for p, decay in zip(parameters, decays) if not decay]:
        groups.append({"params": plain, "weight_decay": 0.0})
    # The order of the network, not of the groups: it decides in which order gradients are reduced over ranks.
    return [*groups, {"order_params": list(parameters)}]


def build_optimizer(
    parameters: Sequence[ms.Parameter],
    learning_rates: np.ndarray,
    *,
    kind: str = "momentum",
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_all: bool = False,
    loss_scale: float = 1.0,
) -> nn.Optimizer:
    """SGD with momentum: ``v = momentum * v + (g + weight_decay * w); w = w - rate * v``, as PyTorch's ``SGD``.

    Both of MindSpore's optimisers compute this, ``nn.Momentum`` faster than ``nn.SGD``; but its CPU kernel ignores
    Nesterov's form (2.8.0), for which ``nn.SGD`` serves whatever the kind ('momentum' or 'sgd'; their states in a
    checkpoint have other names). Weights decay, with ``decay_all`` beta, gamma and bias, too. Gradients are divided by
    ``loss_scale`` before the update.
    """
    if kind not in ("momentum", "sgd"):
        raise ValueError(f"unknown optimiser {kind!r}; one of momentum, sgd")
    groups, rates = parameter_groups(parameters, weight_decay, decay_all), ms.Tensor(learning_rates)
    if nesterov or kind == "sgd":
        return nn.SGD(groups, rates, momentum=momentum, nesterov=nesterov, loss_scale=loss_scale)
    return nn.Momentum(groups, rates, momentum=momentum, loss_scale=loss_scale)


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
