"""DropCov: adaptive channel dropout before covariance pooling."""

from __future__ import annotations

import math
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.common.initializer import Uniform, initializer

from covpool.pooling.base import Float32Cell, Pooling, check_bool, check_choice, check_float, check_int, repeat_columns
from covpool.pooling.counter_random import CounterUniform
from covpool.pooling.covariance import Centre, GramVector, triu_indices, vector_length

# Below this squared norm a vector counts as zero and its cosine with another one as 0.
_SMALLEST_SQUARE = 1e-30


class ChannelConv(Float32Cell):
    """`(N, d) -> (N, d)`: a convolution along the channel axis with one kernel of three taps, zero padding, no bias.

    The kernel starts as PyTorch's Conv1d does: uniform within 1 / sqrt(3).
    """

    def __init__(self) -> None:
        super().__init__()
        start = initializer(Uniform(1.0 / math.sqrt(3.0)), (1, 1, 3), ms.float32)
        self.weight = ms.Parameter(start, name="weight")
        self.conv = ops.Conv2D(1, (1, 3), pad_mode="pad", pad=(0, 0, 1, 1))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        d = x.shape[1]
        return self.conv(x.reshape(-1, 1, 1, d), self.weight.expand_dims(2)).reshape(-1, d)


class AdaptiveRate(Float32Cell):
    """The dropout probability from channel importances, `(N, d), (N, d) -> (1, 1)`, without gradient.

    rho = clip(1 - decay / log2(d) * mean over the batch of cos(omega, pi), 0, max_rate).

    Args:
        channels: d.
        decay: The paper's D.
        max_rate: Upper bound, below 1.
    """

    def __init__(self, channels: int, decay: float, max_rate: float) -> None:
        super().__init__()
        self.factor = decay / math.log2(channels)
        self.max_rate = max_rate
        self.unit = ops.L2Normalize(-1, _SMALLEST_SQUARE)

    def construct(self, omega: ms.Tensor, pi: ms.Tensor) -> ms.Tensor:
        n, d = omega.shape
        cosines = ops.matmul(self.unit(omega).reshape(1, n * d), self.unit(pi).reshape(n * d, 1))  # their sum
        rho = 1.0 - (self.factor / n) * cosines
        return ops.stop_gradient(ops.minimum(ops.maximum(rho, 0.0), self.max_rate))


class DropCov(Pooling):
    """DropCov: channel dropout with an adaptive rate, then V(C), `(N, d, H, W) -> (N, d(d+1)/2)`.

    In training

        omega = gate(conv1d_k3(GAP(X)))                        channel importance
        X     = X * omega + X                                  the released code only (`rescale`)
        pi    = row sums of C(X)                               channel correlation
        rho   = clip(1 - D / log2(d) * mean cos(omega, pi), 0, max_rate)
        X     = channels dropped with probability rho, the kept ones times 1 / (1 - rho)
        out   = V(C(X))

    In evaluation it is plain covariance pooling of X.

    rho is one number for the batch and has no gradient, so the kernel learns through the rescale only. The masks come
    from a counter-based generator: `dropout.counter` is saved with the network, `dropout.seed` may be set before the
    first call.

    Source: Wang et al., NeurIPS 2022, equations 7-10, and its released code.

    Args:
        channels: d, at least 2.
        decay: D, above 0; a larger D drops less.
        gate: "softmax" (over channels, released code) or "sigmoid" (paper).
        rescale: Whether X is multiplied by 1 + omega first (released code) or not (paper).
        max_rate: Upper bound of rho, in [0, 1).
        rate: A fixed rho in [0, 1) in place of the adaptive one (None).
        seed: Seed of the dropout masks, 0 or more.
        correction: What training does about the expectation of C(X) over the masks. With "none", as published, it is
            right off the diagonal, and variances come out 1 / (1 - rho) times too large. "diagonal" multiplies these by
            1 - rho: then all of it is right. "sqrt" multiplies the kept channels by 1 / sqrt(1 - rho) instead: then
            variances are right, and covariances 1 - rho times too small.
    """

    def __init__(
        self,
        channels: int,
        decay: float = 10.0,
        gate: str = "softmax",
        rescale: bool = True,
        max_rate: float = 0.95,
        rate: Optional[float] = None,
        seed: int = 0,
        correction: str = "none",
    ) -> None:
        super().__init__(channels, vector_length(channels))
        if channels < 2:
            raise ValueError(f"dropcov needs at least 2 channels, not {channels}.")
        max_rate = check_float("max_rate", max_rate, 0.0, 1.0, high_open=True)
        self.rate = None if rate is None else check_float("rate", rate, 0.0, 1.0, high_open=True)
        self.rescale = check_bool("rescale", rescale)
        self.conv = ChannelConv()
        self.correction = check_choice("correction", correction, ("none", "diagonal", "sqrt"))
        rows, columns = triu_indices(channels)
        self.on_diagonal = ms.Tensor((rows == columns)[None].astype(np.float32)) if correction == "diagonal" else None
        self.gate = check_choice("gate", gate, ("softmax", "sigmoid"))
        self.adaptive_rate = AdaptiveRate(channels, check_float("decay", decay, 0.0, low_open=True), max_rate)
        self.dropout = CounterUniform(check_int("seed", seed, 0))
        self.centre = Centre()
        self.vector = GramVector(channels)
        self.product = ops.BatchMatMul()
        self.product_t = ops.BatchMatMul(transpose_a=True)

    def importance(self, mean: ms.Tensor) -> ms.Tensor:
        """Importance omega of the channels from their means, `(N, d) -> (N, d)`."""
        v = self.conv(mean)
        return ops.softmax(v, -1) if self.gate == "softmax" else ops.sigmoid(v)

    def drop_rate(self, omega: ms.Tensor, a: ms.Tensor, scale: ms.Tensor) -> ms.Tensor:
        """Rate rho, from omega `(N, d)`, the centred map `(N, d, M)` and the rescale of its channels `(N, d)`.

        The row sums of S A A^T S are S A (A^T s), two products with vectors.
        """
        if self.rate is not None:
            return self.rate
        a = ops.stop_gradient(a)
        pi = scale * self.product(a, self.product_t(a, scale.expand_dims(-1))).squeeze(-1)
        return self.adaptive_rate(omega, pi)

    def channel_scale(self, mean: ms.Tensor, a: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """What training multiplies the channels with, `(N, d)`: the rescale, then 0 or 1 / (1 - rho); and rho."""
        omega = self.importance(mean)
        scale = 1.0 + omega if self.rescale else ops.ones_like(omega)
        rho = self.drop_rate(ops.stop_gradient(omega), a, ops.stop_gradient(scale))
        keep = (self.dropout(mean.shape[0], mean.shape[1]) >= rho).astype(ms.float32)
        if self.correction == "sqrt":
            return scale * (keep / (1.0 - rho) ** 0.5), rho
        return scale * (keep / (1.0 - rho)), rho

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        a, mean = self.centre(x)
        if not self.training:
            return self.vector(a)
        scale, rho = self.channel_scale(mean, a)
        a = a * repeat_columns(scale.reshape(-1, 1), a.shape[-1]).reshape(a.shape)
        v = self.vector(a)
        return v * (1.0 - rho * self.on_diagonal) if self.correction == "diagonal" else v
