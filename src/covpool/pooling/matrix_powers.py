"""Matrix powers of a covariance by products of matrices: Fast-MPN (Newton-Schulz iteration) and MaxExp."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, check_float, check_int, repeat_columns, row_sums
from covpool.pooling.covariance import Centre, Gram, SymmetricVector, vector_length

# A covariance with a smaller trace counts as zero: its entries have no digits left in float32.
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
        d = c.shape[1]
        return c * repeat_columns(self.factor / t, d * d).reshape(-1, d, d)

    def bprop(self, c: ms.Tensor, t: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        d = c.shape[1]
        dc = dout * repeat_columns(self.factor / t, d * d).reshape(-1, d, d)
        return dc, -row_sums((out * dout).reshape(-1, d * d)) / t


def repeat_identity(trace: ms.Tensor, identity: ms.Tensor, channels: int) -> ms.Tensor:
    """One copy of a d x d matrix for each sample, `(N, 1), (1, d*d) -> (N, d, d)`.

    On CPU, sums of equal shapes are several times faster than broadcasts over the batch. The batch size comes from the
    traces, which must not be 0: so it stays open in an exported graph.
    """
    ones = ops.stop_gradient(trace / trace)
    return ops.matmul(ones, identity).reshape(-1, channels, channels)


class NewtonSchulz(Float32Cell):
    r"""`(N, d, d) -> (N, d, d)`, `(N, 1)`: an approximate square root of each covariance C, as a matrix and a factor.

    With A = C / tr(C), Y = A, Z = I, one step is T = (3I - ZY)/2, Y <- YT, Z <- TZ. Y converges to the root of A, so
    the root of C is Y sqrt(tr(C)). A covariance of zero gives zero, with a zero gradient.

    The cell iterates -Y/2. T then is 3/2 I + Z(-Y/2), one addition beside each product. The factor is
    -2 sqrt(tr(C)). docs/measurements/poolings.md says how iterations are counted.

    Source: Li et al., CVPR 2018, equations 3-6.

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


class FastMPN(Pooling):
    """Fast-MPN: V of the covariance's square root by Newton-Schulz, `(N, d, H, W) -> (N, d(d+1)/2)`.

    C is divided by its trace, the root is taken, and multiplied by the root of the trace. Nothing is added to C.

    Source: Li et al., CVPR 2018 (iSQRT-COV).

    Args:
        channels: d.
        iterations: Newton-Schulz steps, 1 to 10, counted as in the released code (see `NewtonSchulz`).
    """

    def __init__(self, channels: int, iterations: int = 5) -> None:
        super().__init__(channels, vector_length(channels))
        self.centre = Centre()
        self.gram = Gram()
        self.root = NewtonSchulz(channels, check_int("iterations", iterations, 1, 10))
        self.vector = SymmetricVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        a, _ = self.centre(x)
        root, factor = self.root(self.gram(a))
        return self.vector(root) * repeat_columns(factor * a.shape[-1] ** -0.5, self.out_features)


class MaxExp(Pooling):
    """MaxExp: V(I - (I - C / (tr(C) + eps))^eta), `(N, d, H, W) -> (N, d(d+1)/2)`.

    The power is taken by repeated squaring. With A = C / (tr(C) + eps) and E_k = I - (I - A)^k, the steps are
    E_2k = E_k (2I - E_k) and E_(k+1) = E_k (I - A) + A. They keep the digits that differences from I would lose.

    Source: Koniusz and Zhang, TPAMI 2021.

    Args:
        channels: d.
        eta: The power, an integer of 1 or more.
        eps: Added to the trace, above 0.
    """

    def __init__(self, channels: int, eta: int = 20, eps: float = 1e-6) -> None:
        super().__init__(channels, vector_length(channels))
        self.bits = [bit == "1" for bit in f"{check_int('eta', eta, 1):b}"[1:]]
        self.eps = check_float("eps", eps, 0.0, low_open=True)
        self.centre = Centre()
        self.gram = Gram()
        self.trace = Trace(channels)
        self.divided = Divided(-1.0)
        self.vector = SymmetricVector(channels)
        self.product = ops.BatchMatMul()
        self.identity = ms.Tensor(np.eye(channels, dtype=np.float32).reshape(1, -1))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        # e is -E_k for growing k.
        d = self.channels
        a, _ = self.centre(x)
        c = self.gram(a)
        trace = self.trace(c) + self.eps * a.shape[-1]
        identity = repeat_identity(trace, self.identity, d)
        base = self.divided(c, trace)
        next_factor = base + identity
        e = base
        for bit in self.bits:
            e = self.product(e, e + 2.0 * identity)
            if bit:
                e = self.product(e, next_factor) + base
        return -self.vector(e)
