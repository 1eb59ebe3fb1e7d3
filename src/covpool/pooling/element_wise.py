"""Normalisations of the covariance vector that work on its entries: B-CNN, SigmE, layer normalisation."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, check_float, repeat_columns, row_sums
from covpool.pooling.covariance import CovarianceVector, vector_length

# Vectors up to this size count as zero: the derivative of their root times that of the norm leaves float32.
_SMALLEST = 1e-30
_SMALLEST_SQUARE = 1e-37


class SignedRootL2(Float32Cell):
    r"""l2(ssqrt(v)) along the last axis, `(N, K) -> (N, K)`: sign(v) sqrt(|v|), divided by its Euclidean norm.

    No epsilon. The derivative of the root is infinite at 0: there the gradient is 0. A vector of zeros gives zeros,
    with a zero gradient.
    """

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        size = ops.abs(v)  # its sum is the squared norm of the root
        root = v / ops.sqrt(ops.maximum(size, _SMALLEST_SQUARE))  # `sign` is slow on CPU
        return root * repeat_columns(1.0 / ops.sqrt(self.safe_row_sum(size)), v.shape[-1])

    def bprop(self, v: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        """With y = ssqrt(v), n = ||y||, z = y / n: dy = (dz - z <z, dz>) / n and dv = dy / (2 |y|)."""
        k = v.shape[-1]
        dy = dout - out * repeat_columns(row_sums(out * dout), k)
        # 1 / |z| as |z| / z^2, which is 0 at 0.
        slope = ops.abs(out) / ops.maximum(out * out, _SMALLEST_SQUARE)
        return (dy * slope * repeat_columns(0.5 / self.safe_row_sum(ops.abs(v)), k),)

    def safe_row_sum(self, size: ms.Tensor) -> ms.Tensor:
        """Sum of each row, `(N, K) -> (N, 1)`; infinite for a vector that counts as zero, so that it gives zeros."""
        total = row_sums(size)
        return ops.masked_fill(total, total <= _SMALLEST, float("inf"))


class Affine(Float32Cell):
    """gamma * v + beta per feature, `(N, K) -> (N, K)`, learnable; starts as the identity.

    The names are MindSpore's: gamma scales and beta shifts (the papers write them the other way round).

    Args:
        features: K.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma = ms.Parameter(ops.ones(features, ms.float32), name="gamma")
        self.beta = ms.Parameter(ops.zeros(features, ms.float32), name="beta")

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        return self.gamma * v + self.beta


class BCNN(Pooling):
    """B-CNN: l2(ssqrt(V(C))), `(N, d, H, W) -> (N, d(d+1)/2)`.

    ssqrt(v) = sign(v) sqrt(|v|), l2(v) = v / ||v|| per sample.

    Source: Lin et al., ICCV 2015.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, vector_length(channels))
        self.vector = CovarianceVector(channels)
        self.normalise = SignedRootL2()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.normalise(self.vector(x))


class BCNNLT(BCNN):
    """B-CNN with a linear transform: gamma * l2(ssqrt(V(C))) + beta, `(N, d, H, W) -> (N, d(d+1)/2)`.

    gamma and beta are learnable, one of each per feature, and start as 1 and 0.

    Source: Wang et al., NeurIPS 2022.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.affine = Affine(self.out_features)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.affine(self.normalise(self.vector(x)))


class HalfTanh(Float32Cell):
    """tanh(slope v / 2), `(N, K) -> (N, K)`; the form 2 / (1 + exp(-slope v)) - 1 has no digits near 0.

    Computed as 2 t / (1 + t^2) with t = tanh(slope v / 4): on CPU, MindSpore's `tanh` errs by 1e-4 where it is nearly
    1, and this squares the error.

    Args:
        slope: Above 0.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        t = ops.tanh((0.25 * self.slope) * v)
        return 2.0 * t / (1.0 + t * t)

    def bprop(self, v: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        return (dout * ((0.5 * self.slope) * (1.0 - out * out)),)


class SigmE(Pooling):
    """SigmE: 2 / (1 + exp(-slope V(C))) - 1, `(N, d, H, W) -> (N, d(d+1)/2)`.

    Source: Koniusz and Zhang, TPAMI 2021.

    Args:
        channels: d.
        slope: The paper's beta, above 0.
    """

    def __init__(self, channels: int, slope: float = 1.0) -> None:
        super().__init__(channels, vector_length(channels))
        self.squash = HalfTanh(check_float("slope", slope, 0.0, low_open=True))
        self.vector = CovarianceVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.squash(self.vector(x))


class LayerNormPooling(Pooling):
    """Layer normalisation: gamma (V(C) - mu) / sigma + beta, `(N, d, H, W) -> (N, d(d+1)/2)`.

    mu is the mean and sigma = sqrt(variance + eps) over the features of a sample. gamma and beta are learnable, one of
    each per feature, and start as 1 and 0.

    Source: Ba et al., 2016.

    Args:
        channels: d.
        eps: Added to the variance, above 0.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, vector_length(channels))
        self.vector = CovarianceVector(channels)
        self.affine = Affine(self.out_features)
        self.eps = check_float("eps", eps, 0.0, low_open=True)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        k = self.out_features  # in parts: MindSpore's fused operator is several times slower on CPU
        v = self.vector(x)
        v = v - repeat_columns(row_sums(v, 1.0 / k), k)
        deviation = ops.sqrt(row_sums(v * v, 1.0 / k) + self.eps)
        return v * ops.matmul(1.0 / deviation, self.affine.gamma.reshape(1, k)) + self.affine.beta
