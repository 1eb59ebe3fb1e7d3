"""The matrix square root of a trace-normalised covariance by Newton-Schulz iteration."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, repeat_columns

# Traces below this count as a zero covariance: the root is zero and so is its gradient. Its square root times its
# inverse stays far inside float32.
SMALLEST_TRACE = 1e-30


class Trace(Float32Cell):
    """Traces, and whether they are too small to divide by, `(N, d, d) -> (N, 1), (N, 1)`; those come back as 1.

    Args:
        channels: d.
        smallest: Traces up to this are too small.
    """

    def __init__(self, channels: int, smallest: float = SMALLEST_TRACE) -> None:
        super().__init__()
        self.smallest = smallest
        self.diagonal = ms.Tensor(np.eye(channels, dtype=np.float32).reshape(-1, 1))

    def construct(self, c: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        """As a product: faster than a sum of diagonal entries, and so is its gradient."""
        trace = ops.matmul(c.reshape(-1, self.diagonal.shape[0]), self.diagonal)
        zero = trace <= self.smallest
        return ops.masked_fill(trace, zero, 1.0), zero


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
        self.product = ops.BatchMatMul()
        self.identity = ms.Tensor(1.5 * np.eye(channels, dtype=np.float32).reshape(1, -1))

    def construct(self, c: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        """Matrix and factor, whose product is the root of each matrix of a batch."""
        d = self.channels
        trace, zero = self.trace(c)
        identity = repeat_identity(trace, self.identity, d)
        y = c * repeat_columns(-0.5 / trace, d * d).reshape(-1, d, d)
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
