"""The Cholesky factor of a covariance with the logarithm of its diagonal (Log-Cholesky)."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.ops.operations.math_ops import MatrixTriangularSolve

from covpool.pooling.base import Float32Cell, Pooling, check_float, row_sums
from covpool.pooling.covariance import SymmetricVector, centred, vector_length
from covpool.pooling.spectral import DEVICE_CHOICE

# What is added to the diagonal is at least this part of the trace: less would be lost to rounding, and the
# factorisation would fail. In float64 it exceeds an eps of 1e-6 from a trace of 1e8 on.
LEAST = {ms.float64: 1e-14, ms.float32: 1e-6}


class LogCholesky(Float32Cell):
    r"""L^T with log L_ii on the diagonal, L L^T = C + eps I, of the covariance C, `(N, d, H, W) -> (N, d, d)`.

    The gradient is that of the symmetric matrix L + L^T (logarithms on the diagonal): it takes a symmetric cotangent,
    as `SymmetricVector` gives. With the cotangent G of L, P = lower triangle of L^T G with half its diagonal and
    A = X - mean,

        dX = (1/M) L^(-T) (P + P^T) L^(-1) A

    (Murray, "Differentiation of the Cholesky decomposition", 2016). All in float64 where the device has it: L^(-1)
    magnifies rounding by up to 1 / sqrt(eps). MindSpore has no gradient of its own operator on CPU. The operator fails
    for a whole batch if one sample is not finite; here such a sample gives NaN, and the others their values.

    Args:
        channels: d.
        eps: Added to the diagonal.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        _, self.precision = DEVICE_CHOICE[ms.get_context("device_target")]
        self.least = LEAST[self.precision]
        identity = np.eye(channels)[None]
        self.identity = ms.Tensor(identity, self.precision)
        self.off_diagonal = ms.Tensor(1 - identity, self.precision)
        # The cotangent of L from the symmetric one, and P from L^T G.
        self.twice_lower = ms.Tensor(np.tril(np.full((channels, channels), 2.0), -1)[None], self.precision)
        self.half_lower = ms.Tensor((np.tril(np.ones((channels, channels))) - 0.5 * identity[0])[None], self.precision)
        self.product, self.product_t = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
        self.t_product = ops.BatchMatMul(transpose_a=True)
        self.solve = MatrixTriangularSolve(lower=True, adjoint=False)
        self.solve_t = MatrixTriangularSolve(lower=True, adjoint=True)

    @ms.jit  # in PyNative mode a mixed precision level would cast the inputs of every operator
    def construct(self, x: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """The matrix, and L as the sum of two for the gradient: what passes there becomes float32."""
        _, d, h, w = x.shape
        flat = x.reshape(-1, d * h * w)
        nan = row_sums(flat * 0.0)  # of samples that are not finite, 0 of the others
        flat = ops.masked_fill(flat, nan != 0, 0.0)  # not in float64, which it would leave
        a, _ = centred(flat.astype(self.precision).reshape(-1, d, h, w))
        trace = row_sums((a * a).reshape(-1, d * h * w), 1.0 / (h * w))
        shift = ops.maximum(trace * self.least, self.eps).expand_dims(-1) * self.identity
        # Of its result not even the rank is known where the batch is not.
        factor = ops.cholesky(self.product_t(a, a) * (1.0 / (h * w)) + shift).reshape(-1, d, d)
        upper = factor.swapaxes(1, 2)
        out = upper * self.off_diagonal + ops.log(upper * self.identity + self.off_diagonal)
        large = factor.astype(ms.float32)
        out = out.astype(ms.float32) + nan.expand_dims(-1)
        return out, large, (factor - large.astype(self.precision)).astype(ms.float32)

    def bprop(self, x: ms.Tensor, out: Tuple[ms.Tensor, ...], dout: Tuple[ms.Tensor, ...]) -> Tuple[ms.Tensor]:
        factor = out[1].astype(self.precision) + out[2].astype(self.precision)
        g = dout[0].astype(self.precision)
        _, d, h, w = x.shape
        a = x.astype(self.precision).reshape(-1, d, h * w)
        a = a - a.mean(-1, keep_dims=True)  # by hand: in a gradient the arguments of functions become float32
        g = g * self.twice_lower + g * self.identity / (factor * self.identity + self.off_diagonal)
        p = self.t_product(factor, g) * self.half_lower
        da = self.solve_t(factor, self.product(p + p.swapaxes(1, 2), self.solve(factor, a)))
        return ((da * (1.0 / (h * w))).astype(ms.float32).reshape(x.shape),)


class Cholesky(Pooling):
    """Log-Cholesky: V(L + L^T off the diagonal, log L_ii on it), L L^T = C + eps I, `(N, d, H, W) -> (N, d(d+1)/2)`.

    In float64. Beyond a trace of 1e14 eps the diagonal gets 1e-14 of the trace in place of eps (see `LEAST`).

    Cost: d^3 / 3 FLOPs beside the covariance, and 2 d^3 + 4 M d^2 for the gradient.

    Source: Chen et al., ICLR 2025 (logarithm of the Log-Cholesky metric at I), and the released code for eps.

    Args:
        channels: d.
        eps: Added to the diagonal of C, above 0.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, vector_length(channels))
        self.matrix = LogCholesky(channels, check_float("eps", eps, 0.0, low_open=True))
        self.vector = SymmetricVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.vector(self.matrix(x)[0])
