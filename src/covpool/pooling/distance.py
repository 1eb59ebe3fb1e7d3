"""Brownian distance covariance of the channels: DeepBDC."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, check_float, repeat_columns, row_sums
from covpool.pooling.covariance import SymmetricVector, vector_length


def outer_sum(v: ms.Tensor, channels: int) -> ms.Tensor:
    """v_i + v_j for each sample, `(N*d, 1) -> (N, d, d)`."""
    rows = repeat_columns(v, channels).reshape(-1, channels, channels)
    return rows + rows.swapaxes(1, 2)


class SquaredDistances(Float32Cell):
    """Squared distances between the channels as points, `(N, d, M) -> (N, d, d)`.

    A_ij = G_ii + G_jj - 2 G_ij with G = X X^T, at least 0; the diagonal is exactly 0. For a symmetric cotangent S the
    gradient is 4 (diag(S 1) - S) X. The diagonal of S has no part in it and is left out: it is large, and would leave
    a difference of two large numbers.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        d = channels
        self.channels = d
        self.diagonal = ms.Tensor(np.arange(0, d * d, d + 1, dtype=np.int32))
        self.off_diagonal = ms.Tensor((1 - np.eye(d, dtype=np.float32))[None])
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.product = ops.BatchMatMul()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        d = self.channels
        gram = self.product_t(x, x)
        norms = ops.gather(gram.reshape(-1, d * d), self.diagonal, 1).reshape(-1, 1)
        a = outer_sum(norms, d) - 2.0 * gram
        return 0.5 * (a + ops.abs(a))  # `maximum` would turn NaN into 0

    def bprop(self, x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        _, d, m = x.shape
        s = dout * self.off_diagonal
        sums = repeat_columns(row_sums(s.reshape(-1, d), 4.0), m).reshape(-1, d, m)
        return (sums * x - 4.0 * self.product(s, x),)


class DoubleCentred(Float32Cell):
    """B minus the means of its rows and columns plus its mean, of symmetric matrices, `(N, d, d) -> (N, d, d)`.

    The map is its own adjoint.
    """

    def centre(self, b: ms.Tensor) -> ms.Tensor:
        """Without a gradient of its own."""
        d = b.shape[1]
        means = row_sums(b.reshape(-1, d), 1.0 / d)
        half = repeat_columns(row_sums(means.reshape(-1, d), 0.5 / d), d).reshape(-1, 1)
        return b - outer_sum(means - half, d)

    def construct(self, b: ms.Tensor) -> ms.Tensor:
        return self.centre(b)

    def bprop(self, b: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        return (self.centre(dout),)


class BDC(Pooling):
    r"""DeepBDC: V of the doubly centred distances between channels, `(N, d, H, W) -> (N, d(d+1)/2)`.

    With squared distances A_ij = ||x_i - x_j||^2 between the channels x_i as vectors of M = H W numbers (the mean is
    not subtracted):

        B = sqrt(e^t A / (2M) + eps),  V(B - row means - column means + mean of all)

    t is the learnable `temperature` (1, 1) and starts as 0. The released code has e^t' A with t' = t - log(2M): it
    starts at the same place, but knows M beforehand. sqrt(a + eps) is computed as a / (sqrt(a + eps) + sqrt(eps)); the
    centring removes the difference, a constant, and small features keep their digits.

    Cost: that of a covariance, and O(d^2).

    Source: Xie et al., CVPR 2022, and the released code for eps, temperature and V.

    Args:
        channels: d.
        eps: Added below the root, above 0.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, vector_length(channels))
        self.eps = check_float("eps", eps, 0.0, low_open=True)
        self.temperature = ms.Parameter(ops.zeros((1, 1), ms.float32), name="temperature")
        self.distances = SquaredDistances(channels)
        self.centred = DoubleCentred()
        self.vector = SymmetricVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        _, d, h, w = x.shape
        a = self.distances(x.reshape(-1, d, h * w)) * (ops.exp(self.temperature) * (0.5 / (h * w)))
        return self.vector(self.centred(a / (ops.sqrt(a + self.eps) + self.eps**0.5)))
