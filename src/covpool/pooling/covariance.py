"""The covariance of a feature map and its upper triangle as a vector; plain pooling, first and second order.

The cells form a chain: `centred` -> `Gram` -> functions of symmetric matrices -> `SymmetricVector`. Along it the
gradient of a symmetric matrix is taken symmetric, (G + G^T) / 2 for G, which is the same as long as the matrix stays
symmetric: the adjoint of V, its symmetrisation, the gradient of A A^T and the adjoint of the centring then are one
gather and one product. `GramVector` is the whole chain where nothing stands between the product and V.

Formulation, measured on CPU: sums and broadcasts over positions as matrix products, products with `transpose_b` in
place of transposed copies, gathers in both directions of V in place of a scatter.
"""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, repeat_columns, row_sums


def vector_length(channels: int) -> int:
    """Number of entries of the upper triangle with the diagonal: d (d + 1) / 2."""
    return channels * (channels + 1) // 2


def triu_indices(channels: int) -> Tuple[np.ndarray, np.ndarray]:
    """Row and column of every entry of the vector V: the upper triangle with the diagonal, row by row.

    This order is a contract: classifiers and converted checkpoints depend on it.
    """
    return np.triu_indices(channels)


@ops.constexpr
def constant_column(length: int, value: float) -> ms.Tensor:
    """A constant of the compiled graph, `(length, 1)`; `ops.full` cannot be relied on in gradients."""
    return ms.Tensor(np.full((length, 1), value, np.float32))


def centred(x: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
    """The map minus its mean over the M = H*W positions, and the mean, `(N, C, H, W) -> (N, C, M), (N, C)`.

    The subtracted mean takes no gradient: what follows is a product of the result with itself, whose gradient sums to
    zero over positions already. The returned one does.
    """
    _, c, h, w = x.shape
    flat = x.reshape(-1, h * w)
    mean = row_sums(flat, 1.0 / (h * w))
    shift = repeat_columns(ops.stop_gradient(mean), h * w)
    return (flat - shift).reshape(-1, c, h * w), mean.reshape(-1, c)


class Centre(Float32Cell):
    """:func:`centred` as a cell, so that a device can have a kernel of its own for it."""

    def construct(self, x: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        return centred(x)


class Gram(Float32Cell):
    """A A^T, `(N, d, M) -> (N, d, d)`; for a symmetric G its gradient is 2 G A.

    Cost: 2 M d^2 FLOPs forward, as many backward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.product = ops.BatchMatMul()

    def construct(self, a: ms.Tensor) -> ms.Tensor:
        return self.product_t(a, a)

    def bprop(self, a: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        return (self.product(2.0 * dout, a),)


class SymmetricVector(Float32Cell):
    """V of symmetric matrices, `(N, d, d) -> (N, d(d+1)/2)`: the upper triangle row by row.

    The gradient G of V goes to the upper triangle only; it is returned as (G + G^T) / 2, see the module.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rows, cols = triu_indices(channels)
        places = np.zeros((channels, channels), np.int32)
        places[rows, cols] = places[cols, rows] = np.arange(rows.size)
        self.channels = channels
        self.places = ms.Tensor(places.reshape(-1))
        self.index = ms.Tensor((rows * channels + cols).astype(np.int32))
        self.weight = ms.Tensor(np.where(rows == cols, 1.0, 0.5).astype(np.float32)[None])

    def scaled(self, c: ms.Tensor, factor: float) -> ms.Tensor:
        """V times a factor, `(N, d, d) -> (N, d(d+1)/2)`; without a gradient of its own."""
        return ops.gather(c.reshape(-1, self.channels * self.channels), self.index, 1) * factor

    def spread(self, dout: ms.Tensor, factor: float = 1.0) -> ms.Tensor:
        """The adjoint of V, symmetrised, times a factor: `(N, d(d+1)/2) -> (N, d, d)`."""
        weight = ops.matmul(constant_column(dout.shape[0], factor), self.weight)
        return ops.gather(dout * weight, self.places, 1).reshape(-1, self.channels, self.channels)

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        return ops.gather(c.reshape(-1, self.channels * self.channels), self.index, 1)

    def bprop(self, c: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        return (self.spread(dout),)


class GramVector(Float32Cell):
    """V(A A^T / M), `(N, d, M) -> (N, d(d+1)/2)`: the covariance vector of a centred map; its gradient is one product.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.vector = SymmetricVector(channels)
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.product = ops.BatchMatMul()

    def construct(self, a: ms.Tensor) -> ms.Tensor:
        return self.vector.scaled(self.product_t(a, a), 1.0 / a.shape[-1])

    def bprop(self, a: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        return (self.product(self.vector.spread(dout, 2.0 / a.shape[-1]), a),)


class CovarianceVector(Float32Cell):
    """V(C) of the covariance C = (1/M) (X - mean)(X - mean)^T over positions, `(N, d, H, W) -> (N, d(d+1)/2)`.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.centre = Centre()
        self.vector = GramVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.vector(self.centre(x)[0])


class GlobalAveragePooling(Pooling):
    """Global average pooling: the mean over positions, `(N, C, H, W) -> (N, C)`.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        _, c, h, w = x.shape
        return row_sums(x.reshape(-1, h * w), 1.0 / (h * w)).reshape(-1, c)


class CovariancePooling(Pooling):
    """Plain global covariance pooling: V(C), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Source: Lin et al., ICCV 2015, without normalisation.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, vector_length(channels))
        self.vector = CovarianceVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.vector(x)
