"""The matrix square root of a trace-normalised covariance by Newton-Schulz iteration."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops

from src.pooling.base import Float32Cell

# Traces below this count as a zero covariance: the root is zero and so is its gradient. Its square root times its
# inverse stays far inside float32.
SMALLEST_TRACE = 1e-30


class NewtonSchulz(Float32Cell):
    r"""`(N, d, d) -> (N, d, d)`: an approximate square root of each covariance C.

    With A = C / tr(C), Y = A, Z = I, one step is T = (3I - ZY)/2, Y <- YT, Z <- TZ; the result is Y sqrt(tr(C)).
    Y converges to the root of A quadratically while |I - A| < 1; every step is products of matrices, so it suits
    accelerators. `iterations` counts as the released code does: the first step needs no product for ZY (Z = I), the
    last one computes Y only, and there are iterations - 2 full steps between. One iteration is Y = A(3I - A)/2.
    A covariance of zero gives zero, with a zero gradient. Cost: 3 iterations - 3 products of d x d matrices forward,
    twice as many backward.

    Source: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
    Normalization", CVPR 2018, equations 3-6.

    Args:
        channels: d.
        iterations: Number of steps.
    """

    def __init__(self, channels: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.product = ops.BatchMatMul()
        self.identity = ms.Tensor(np.eye(channels, dtype=np.float32))
        self.three = ms.Tensor(3.0 * np.eye(channels, dtype=np.float32))

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        """The root of each matrix of a batch."""
        trace = (c * self.identity).sum((-2, -1), keepdims=True)
        zero = trace <= SMALLEST_TRACE
        trace = ops.masked_fill(trace, zero, 1.0)
        a = c / trace
        t = 0.5 * (self.three - a)
        y = self.product(a, t)
        if self.iterations > 1:
            z = t
            for _ in range(self.iterations - 2):
                t = 0.5 * (self.three - self.product(z, y))
                y = self.product(y, t)
                z = self.product(t, z)
            y = 0.5 * self.product(y, self.three - self.product(z, y))
        return y * ops.masked_fill(ops.sqrt(trace), zero, 0.0)
