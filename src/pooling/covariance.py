"""The covariance of a feature map and its upper triangle as a vector."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from src.pooling.base import Float32Cell, positions


def vector_length(channels: int) -> int:
    """Number of entries of the upper triangle with the diagonal: d (d + 1) / 2."""
    return channels * (channels + 1) // 2


def triu_indices(channels: int) -> Tuple[np.ndarray, np.ndarray]:
    """Row and column of every entry of the vector V: the upper triangle with the diagonal, row by row.

    This order is a contract: classifiers and converted checkpoints depend on it.
    """
    return np.triu_indices(channels)


def centred(x: ms.Tensor) -> ms.Tensor:
    """`(N, C, H, W) -> (N, C, M)`, M = H*W: the map minus its mean over positions, times 1 / sqrt(M).

    The scale is applied here, not to the product: sums over positions stay small. The mean takes no gradient: what
    follows is a product of the result with itself, whose gradient sums to zero over positions already.
    """
    x = positions(x)
    scale = float(x.shape[-1]) ** -0.5
    return (x - ops.stop_gradient(x.mean(-1, keep_dims=True))) * scale


class Gram(Float32Cell):
    """`(N, d, M) -> (N, d, d)`: A A^T, with the gradient (G + G^T) A as one product."""

    def __init__(self) -> None:
        super().__init__()
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.product = ops.BatchMatMul()

    def construct(self, a: ms.Tensor) -> ms.Tensor:
        """The product of a with itself."""
        return self.product_t(a, a)

    def bprop(self, a: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        """Gradient with respect to a."""
        return (self.product(dout + dout.swapaxes(-1, -2), a),)


class TriuVector(Float32Cell):
    """V: `(N, d, d) -> (N, d(d+1)/2)`, the upper triangle row by row; its gradient goes to the upper triangle only.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rows, cols = triu_indices(channels)
        back = np.zeros((channels, channels), np.int32)
        back[rows, cols] = np.arange(rows.size)
        self.channels = channels
        self.index = ms.Tensor((rows * channels + cols).astype(np.int32))
        self.back_index = ms.Tensor(back.reshape(-1))
        self.upper = ms.Tensor(np.triu(np.ones((channels, channels), np.float32)))

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        """The vector of a batch of matrices."""
        return ops.gather(c.reshape(-1, self.channels * self.channels), self.index, 1)

    def bprop(self, c: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        """The adjoint of V."""
        full = ops.gather(dout, self.back_index, 1).reshape(-1, self.channels, self.channels)
        return (full * self.upper,)


class Covariance(Float32Cell):
    """`(N, C, H, W) -> (N, C, C)`: (1/M) (X - mean)(X - mean)^T, mean over the M = H*W positions, per sample.

    Cost: 2 M C^2 FLOPs forward, as many backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gram = Gram()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """The covariance of each map."""
        return self.gram(centred(x))
