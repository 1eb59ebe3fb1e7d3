"""Optimisers: SGD with momentum of MindSpore; AdamW, LAMB and Lion as PyTorch and timm compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

Gradients = tuple[ms.Tensor, ...]

# The updates of one parameter; MindSpore compiles them faster than a loop over all parameters.
_adamw, _lamb, _lion = (ops.MultitypeFuncGraph(name) for name in ("adamw", "lamb", "lion"))

# Matrices of a transformer that are added to what it computes, as a bias is.
_TABLES = ("cls_token", "dist_token", "pos_embed", "relative_position_bias_table")


def parameter_groups(
    parameters: Sequence[ms.Parameter],
    weight_decay: float,
    decay_all: bool = False,
    rates: Optional[np.ndarray] = None,
    factors: Optional[Mapping[str, float]] = None,
) -> list[dict[str, Any]]:
    """Split parameters: weights decay; beta, gamma, bias, other vectors and tables of tokens do not unless all do.

    With ``factors`` of the rate, by name, every group has its own: ``rates`` times a factor, float32 (steps,).
    """
    members: dict[tuple[bool, float], list[ms.Parameter]] = {}
    for p in parameters:
        decays = decay_all or (p.ndim > 1 and p.name.rpartition(".")[2] not in _TABLES)
        members.setdefault((decays, factors[p.name] if factors else 1.0), []).append(p)
    groups: list[dict[str, Any]] = []
    for (decays, factor), group in sorted(members.items(), key=lambda item: item[0], reverse=True):
        groups.append({"params": group, "weight_decay": weight_decay if decays else 0.0})
        if factors and rates is not None:
            groups[-1]["lr"] = ms.Tensor((rates * factor).astype(np.float32))
    # The order of the network, not of the groups: it decides in which order gradients are reduced over ranks.
    return [*groups, {"order_params": list(parameters)}]


class DecoupledOptimizer(nn.Optimizer):
    """Base of optimisers whose weight decay is no part of the gradient: ``w = w - rate * (update + weight_decay * w)``.

    What they remember is in parameters: ``global_step``, and one of the shape of each weight for every name in
    ``moments``. All are float32.

    Args:
        groups: As :func:`parameter_groups` makes them.
        rates: The rate of every step, float32 (steps,).
        betas: Decay of both moments, in [0, 1).
        loss_scale: What gradients are divided by.
    """

    moments: tuple[str, ...] = ()

    def __init__(
        self, groups: list[dict[str, Any]], rates: np.ndarray, betas: Sequence[float], loss_scale: float = 1.0
    ) -> None:
        super().__init__(ms.Tensor(rates), groups, 0.0, loss_scale)
        # MindSpore's are meant for gradients that still have the loss scale.
        self.decays = tuple([float(decay) / self.loss_scale for decay in self.group_weight_decay])
        self.beta1, self.beta2 = map(float, betas)
        for name in self.moments:
            setattr(self, name, self.parameters.clone(f"{type(self).__name__.lower()}.{name}", "zeros"))

    def each_rate(self) -> Gradients:
        """The rate of the present step for every parameter, scalars."""
        rate = self.get_lr()
        return rate if self.is_group_lr else (rate,) * self.param_length


class _BiasCorrected(DecoupledOptimizer):
    """What AdamW and LAMB share: the correction of both moments, which start at 0.

    The corrected update ``(m / c1) / (sqrt(v / c2) + eps)`` is ``s * m / (sqrt(v) + eps * r)`` with ``r = sqrt(c2)``
    and ``s = r / c1``. Both are tabulated for all steps: ``c = 1 - beta^t`` in float32 would lose up to five digits.
    """

    moments = ("m", "v")

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rates: np.ndarray,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(groups, rates, betas, loss_scale)
        self.eps = float(eps)
        steps = np.arange(1, len(rates) + 1)
        # Of the betas in float32, with which the moments are computed.
        c1, c2 = (1 - np.float64(np.float32(beta)) ** steps for beta in betas)
        self.roots = ms.Tensor(np.sqrt(c2).astype(np.float32))
        self.scales = ms.Tensor((np.sqrt(c2) / c1).astype(np.float32))

    def corrections(self) -> tuple[ms.Tensor, ms.Tensor]:
        """s, and eps * r, of the present step: scalars."""
        scale = ops.gather(self.scales, self.global_step, 0).reshape(())
        return scale, ops.gather(self.roots, self.global_step, 0).reshape(()) * self.eps


class AdamW(_BiasCorrected):
    """AdamW (Loshchilov and Hutter, ICLR 2019) as ``torch.optim.AdamW``, by one fused kernel for each parameter.

    MindSpore's ``nn.AdamWeightDecay`` lacks the bias correction. Its kernel computes
    ``w - rate * (m / (sqrt(v) + eps) + decay * w)``; with the corrected rate ``s * rate``, ``eps * r`` for eps and
    ``decay / s`` for the decay, that is AdamW.

    Args:
        groups: As :func:`parameter_groups` makes them.
        rates: The rate of every step, float32 (steps,).
        betas: Decay of the moments of the gradient and of its square.
        eps: Added to the root of the second moment.
        loss_scale: What gradients are divided by.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.fused = ops.AdamWeightDecay()

    def construct(self, gradients: Gradients) -> Any:
        gradients, rates = self.scale_grad(gradients), self.each_rate()
        scale, eps = self.corrections()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        beta1, beta2 = ops.cast(self.beta1, ms.float32), ops.cast(self.beta2, ms.float32)
        step = ops.partial(_adamw, self.fused, beta1, beta2, scale, eps)
        return self.hyper_map(step, self.decays, rates, gradients, self.parameters, self.m, self.v)


@_adamw.register("Function", *["Tensor"] * 4, "Number", *["Tensor"] * 5)
def _step_of_adamw(
    fused: Any, beta1: Any, beta2: Any, scale: Any, eps: Any, decay: float, rate: Any, g: Any, w: Any, m: Any, v: Any
) -> Any:
    return fused(w, m, v, rate * scale, beta1, beta2, eps, decay / scale, g)


class Lamb(_BiasCorrected):
    """LAMB (You et al., ICLR 2020) as ``timm.optim.Lamb``.

    Gradients are scaled first, all together, to a norm of at most 1. The update is AdamW's, decay included; where a
    parameter decays, it is scaled to the norm of the parameter.

    Args:
        groups: As :func:`parameter_groups` makes them.
        rates: The rate of every step, float32 (steps,).
        betas: Decay of the moments of the gradient and of its square.
        eps: Added to the root of the second moment.
        loss_scale: What gradients are divided by.
    """

    def construct(self, gradients: Gradients) -> Any:
        gradients, rates = self.scale_grad(gradients), self.each_rate()
        scale, eps = self.corrections()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        norm = ops.sqrt(ops.addn([ops.square(g).sum() for g in gradients]))
        shrink = 1.0 / ops.maximum(norm, ops.ones_like(norm))
        gradients = tuple([g * shrink for g in gradients])
        step = ops.partial(_lamb, self.beta1, self.beta2, scale, eps)
        return self.hyper_map(step, self.decays, rates, gradients, self.parameters, self.m, self.v)


@_lamb.register("Number", "Number", "Tensor", "Tensor", "Number", *["Tensor"] * 5)
def _step_of_lamb(
    beta1: float, beta2: float, scale: Any, eps: Any, decay: float, rate: Any, g: Any, w: Any, m: Any, v: Any
) -> Any:
    next_m, next_v = m + (g - m) * (1 - beta1), v * beta2 + g * g * (1 - beta2)
    update = scale * next_m / (ops.sqrt(next_v) + eps)
    if decay > 0:
        update = update + decay * w
        of_weight, of_update = ops.square(w).sum(), ops.square(update).sum()
        ratio = ops.sqrt(of_weight / of_update)
        rate = ops.select(ops.logical_and(of_weight > 0, of_update > 0), ratio, ops.ones_like(ratio)) * rate
    return ops.assign(m, next_m), ops.assign(v, next_v), ops.assign(w, w - rate * update)


class Lion(DecoupledOptimizer):
    """Lion (Chen et al., NeurIPS 2023) as ``timm.optim.Lion``: every weight moves by the rate.

    Args:
        groups: As :func:`parameter_groups` makes them.
        rates: The rate of every step, float32 (steps,).
        betas: Decay of the moment in the update, and in what is remembered.
        loss_scale: What gradients are divided by.
    """

    moments = ("m",)

    def construct(self, gradients: Gradients) -> Any:
        gradients, rates = self.scale_grad(gradients), self.each_rate()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        step = ops.partial(_lion, self.beta1, self.beta2)
        return self.hyper_map(step, self.decays, rates, gradients, self.parameters, self.m)


@_lion.register(*["Number"] * 3, *["Tensor"] * 4)
def _step_of_lion(beta1: float, beta2: float, decay: float, rate: Any, g: Any, w: Any, m: Any) -> Any:
    update = ops.sign(m + (g - m) * (1 - beta1))
    next_m, next_w = m + (g - m) * (1 - beta2), w * (1 - rate * decay) - rate * update
    return ops.assign(m, next_m), ops.assign(w, next_w)


# Optimiser: its class, betas and eps.
_DECOUPLED: dict[str, tuple[type[DecoupledOptimizer], dict[str, Any]]] = {
    "adamw": (AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "lamb": (Lamb, {"betas": (0.9, 0.999), "eps": 1e-6}),
    "lion": (Lion, {"betas": (0.9, 0.99)}),
}


def build_optimizer(
    parameters: Sequence[ms.Parameter],
    learning_rates: np.ndarray,
    *,
    kind: str = "momentum",
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: Optional[Sequence[float]] = None,
    eps: Optional[float] = None,
    weight_decay: float = 1e-4,
    decay_all: bool = False,
    factors: Optional[Mapping[str, float]] = None,
    loss_scale: float = 1.0,
) -> nn.Optimizer:
    """An optimiser of parameters, which has a rate for every step.

    'momentum' and 'sgd' are SGD with momentum: ``v = momentum * v + (g + weight_decay * w); w = w - rate * v``, as
    PyTorch's ``SGD``. Both of MindSpore's optimisers compute this, ``nn.Momentum`` faster than ``nn.SGD``; but its CPU
    kernel ignores Nesterov's form (2.8.0), for which ``nn.SGD`` serves whatever the kind (their states in a checkpoint
    have other names).

    Args:
        parameters: In the order of the network.
        learning_rates: The rate of every step, float32 (steps,).
        kind: 'momentum', 'sgd', 'adamw', 'lamb' or 'lion'.
        momentum: Of 'momentum' and 'sgd'.
        nesterov: Nesterov's form of the momentum.
        betas: Of :class:`AdamW` and :class:`Lamb`, by default (0.9, 0.999), and :class:`Lion`, (0.9, 0.99).
        eps: Of AdamW, by default 1e-8, and LAMB, 1e-6.
        weight_decay: Applied to weights, not to vectors and tables of tokens, see :func:`parameter_groups`.
        decay_all: Apply it to all.
        factors: What the rate of each parameter is multiplied by, by name.
        loss_scale: What gradients are divided by before the update.

    Raises:
        ValueError: Unknown kind, or betas or eps for one that has none.
    """
    kinds = ("momentum", "sgd", *_DECOUPLED)
    if kind not in kinds:
        raise ValueError(f"unknown optimiser {kind!r}; one of {', '.join(kinds)}")
    made, keywords = _DECOUPLED.get(kind, (None, {}))
    given = {name: value for name, value in (("betas", betas), ("eps", eps)) if value is not None}
    if unknown := given.keys() - keywords.keys():
        raise ValueError(f"{kind} has no {' and no '.join(sorted(unknown))}")
    groups = parameter_groups(parameters, weight_decay, decay_all, learning_rates, factors)
    if made is not None:
        return made(groups, learning_rates, loss_scale=loss_scale, **{**keywords, **given})
    rates = ms.Tensor(learning_rates)
    if nesterov or kind == "sgd":
        return nn.SGD(groups, rates, momentum=momentum, nesterov=nesterov, loss_scale=loss_scale)
    return nn.Momentum(groups, rates, momentum=momentum, loss_scale=loss_scale)
