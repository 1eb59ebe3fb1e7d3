"""The matrix square root of a trace-normalised covariance by Newton-Schulz iteration."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, repeat_columns, row_sums

# Traces below this count as a zero covariance: the root is zero and so is its gradient. Its square root times its
# inverse stays far inside float32.
SMALLEST_TRACE = 1e-30


class Trace(Float32Cell):
    """Traces, `(N, d, d) -> (N, 1)`.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.diagonal = ms.Tensor(np.eye(channels, dtype=np.float32).reshape(-1, 1))

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        # A product is faster than a sum of diagonal entries, and so is its gradient.
        return ops.matmul(c.reshape(-1, self.diagonal.shape[0]), self.diagonal)


class Divided(Float32Cell):
    """factor * C / t for one number t a sample, `(N, d, d), (N, 1) -> (N, d, d)`.

    The gradient of t is -<out, G> / t. The 1 / t^2 of automatic differentiation leaves float32 below t = 5e-20.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def construct(self, c: ms.Tensor, t: ms.Tensor) -> ms.Tensor:
        return c * repeat_columns(self.factor / t, c.shape[1] * c.shape[2]).reshape(c.shape)

    def bprop(self, c: ms.Tensor, t: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        entries = c.shape[1] * c.shape[2]
        dc = dout * repeat_columns(self.factor / t, entries).reshape(c.shape)
        return dc, -row_sums((out * dout).reshape(-1, entries)) / t


def repeat_identity(trace: ms.Tensor, identity: ms.Tensor, channels: int) -> ms.Tensor:
    """One multiple of the identity a sample, `(N, 1), (1, d*d) -> (N, d, d)`.

    Sums of equal shapes are several times faster on CPU than broadcasts over the batch. The batch size comes from the
    traces (not 0), so that it stays open in an exported graph.
    """
    ones = ops.stop_gradient(trace / trace)
    return ops.matmul(ones, identity).reshape(-1, channels, channels)


class NewtonSchulz(Float32Cell):
    r"""`(N, d, d) -> (N, d, d)`, `(N, 1)`: an approximate square root of each covariance C, as a matrix and a factor.

    With A = C / tr(C), Y = A, Z = I, one step is T = (3I - ZY)/2, Y <- YT, Z <- TZ; the root is Y sqrt(tr(C)). Y
    converges to the root of A quadratically while |I - A| < 1; every step is products of matrices, so it suits
    accelerators. `iterations` counts as the released code does: the first step needs no product for ZY (Z = I), the
    last one computes Y only, and there are iterations - 2 full steps between. One iteration is Y = A(3I - A)/2.
    A covariance of zero gives zero, with a zero gradient. Cost: 3 iterations - 3 products of d x d matrices forward,
    twice as many backward.

    The iteration runs on -Y/2, which turns T into 3/2 I + Z(-Y/2): one addition beside each product. The factor holds
    what is left out, -2 sqrt(tr(C)).

    Source: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
    Normalization", CVPR 2018, equations 3-6.

    Args:
        channels: d.
        iterations: Number of steps.
    """

    def __init__(self, channels: int, iterations: int) -> None:
        super().__init__()
        self.channels = channels
        self.iterations = iterations
        self.trace = Trace(channels)
        self.divided = Divided(-0.5)
        self.product = ops.BatchMatMul()
        self.identity = ms.Tensor(1.5 * np.eye(channels, dtype=np.float32).reshape(1, -1))

    def construct(self, c: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        """Matrix and factor, whose product is the root of each matrix of a batch."""
        d = self.channels
        trace = self.trace(c)
        zero = trace <= SMALLEST_TRACE
        trace = ops.masked_fill(trace, zero, 1.0)
        identity = repeat_identity(trace, self.identity, d)
        y = self.divided(c, trace)
        t = identity + y
        y = self.product(y, t)
        if self.iterations > 1:
            z = t
            for _ in range(self.iterations - 2):
                t = identity + self.product(z, y)
                y = self.product(y, t)
                z = self.product(t, z)
            y = self.product(y, identity + self.product(z, y))
        return y, ops.masked_fill(-2.0 * ops.sqrt(trace), zero, 0.0)
