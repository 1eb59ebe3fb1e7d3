"""Optimisers: which parameters decay, and momentum in PyTorch's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn


def parameter_groups(parameters: Sequence[ms.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters: weights decay; beta, gamma, bias and every other vector do not (papers' recipe)."""
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if plain:
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
    loss_scale: float = 1.0,
) -> nn.Optimizer:
    """SGD with momentum: ``v = momentum * v + (g + weight_decay * w); w = w - rate * v``, as PyTorch's ``SGD``.

    Both of MindSpore's optimisers compute this, ``nn.Momentum`` faster than ``nn.SGD``; but its CPU kernel ignores
    Nesterov's form (2.8.0), for which ``nn.SGD`` serves whatever the kind.

    Args:
        parameters: Trainable parameters.
        learning_rates: The rate of every step, from ``schedules.learning_rates``.
        kind: 'momentum' for ``nn.Momentum`` or 'sgd' for ``nn.SGD``; their states in a checkpoint have other names.
        momentum: Part of the velocity that is kept.
        nesterov: Nesterov's form.
        weight_decay: Applied to weights alone, see :func:`parameter_groups`.
        loss_scale: What the gradients are divided by before the update.

    Raises:
        ValueError: Unknown kind.
    """
    if kind not in ("momentum", "sgd"):
        raise ValueError(f"unknown optimiser {kind!r}; one of momentum, sgd")
    groups, rates = parameter_groups(parameters, weight_decay), ms.Tensor(learning_rates)
    if nesterov or kind == "sgd":
        return nn.SGD(groups, rates, momentum=momentum, nesterov=nesterov, loss_scale=loss_scale)
    return nn.Momentum(groups, rates, momentum=momentum, loss_scale=loss_scale)
