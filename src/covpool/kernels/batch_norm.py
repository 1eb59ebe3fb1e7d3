"""Batch normalisation in training with fewer passes over memory than MindSpore's CPU kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops


def batch_norm_operator(library: Path) -> ops.Custom:
    """The operator (x (N, C, H, W), gamma, beta, moving_mean, moving_variance, constants) -> five tensors.

    They are y like x and, each (C,), mean and 1 / sqrt(variance + eps) of the batch and the new running mean and
    variance (unbiased, as MindSpore keeps it). ``constants`` holds eps and the weight of the batch in the running
    statistics. The gradient is that of y with respect to x, gamma and beta.
    """
    gradient = ops.Custom(
        f"{library}:batch_norm_gradient",
        lambda dy, x, gamma, mean, rstd: (dy, gamma, gamma),
        lambda dy, x, gamma, mean, rstd: (dy, gamma, gamma),
        "aot",
    )

    def bprop(
        x: Any, gamma: Any, beta: Any, moving_mean: Any, moving_variance: Any, constants: Any, out: Any, dout: Any
    ) -> Any:
        dx, dgamma, dbeta = gradient(dout[0], x, gamma, out[1], out[2])
        zeros = ops.zeros_like
        return dx, dgamma, dbeta, zeros(moving_mean), zeros(moving_variance), zeros(constants)

    return ops.Custom(
        f"{library}:batch_norm",
        lambda x, gamma, *_: (x, gamma, gamma, gamma, gamma),
        lambda x, gamma, *_: (x, gamma, gamma, gamma, gamma),
        "aot",
        bprop=bprop,
    )


class CompiledBatchNorm2d(nn.Cell):
    """In training :func:`batch_norm_operator`; in evaluation, or with frozen statistics, MindSpore's own."""

    def __init__(self, norm: nn.BatchNorm2d, operator: ops.Custom) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep their names
        self.norm = norm
        self.operator = operator
        self.constants = ms.Tensor(np.array([norm.eps, norm.momentum], np.float32))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        norm = self.norm
        if norm.use_batch_statistics or (norm.use_batch_statistics is None and self.training):
            y, _, _, mean, variance = self.operator(
                x, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance, self.constants
            )
            y = ops.depend(y, ops.assign(norm.moving_mean, mean))
            return ops.depend(y, ops.assign(norm.moving_variance, variance))
        return norm(x)
