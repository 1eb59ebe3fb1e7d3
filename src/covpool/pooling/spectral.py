"""Functions of covariances, f(C) = U f(lambda) U^T, with their exact derivative."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Optional, Tuple

import mindspore as ms
from mindspore import ops
from mindspore.ops.operations.math_ops import SelfAdjointEig

from covpool.pooling.base import Float32Cell, check_choice, row_sums
from covpool.pooling.covariance import centred

# Solver and precision by device. Not every device has a batched symmetric solver; the singular value decomposition of
# a covariance is its eigen-decomposition. Float64 where the device has it: float32 solvers err by 1e-5 of the largest
# eigenvalue, and a zero eigenvalue would get a root of 3e-3.
DEVICE_CHOICE = {"CPU": ("eigh", ms.float64), "GPU": ("svd", ms.float64), "Ascend": ("eigh", ms.float32)}

# Eigenvalues below this part of the largest one are rounding errors and count as zero.
NULL = {ms.float64: 1e-10, ms.float32: 1e-6}

# Eigenvalues below this count as zero, too: differences between them would leave float32.
SMALLEST = 1e-35

# Eigenvalues closer than this, relative to their size, use the derivative in place of the difference quotient. At the
# switch both err by about 1e-5: the quotient by cancellation in float32, the mean of two derivatives by curvature.
NEAR = 1e-2


class CovarianceEigen(Float32Cell):
    """Eigenvalues (>= 0) and eigenvectors (columns) of the covariance, `(N, d, H, W) -> (N, d), (N, d, d)`.

    Passes no gradient; `SpectralFunction` carries it. "eigh" is a symmetric solver (host code, one matrix after the
    other), "svd" the singular value decomposition. Precision and solver: see `DEVICE_CHOICE`.

    Args:
        solver: "eigh", "svd" or None, which chooses by the device.

    Raises:
        ValueError: Another solver.
    """

    def __init__(self, solver: Optional[str] = None) -> None:
        super().__init__()
        chosen, self.precision = DEVICE_CHOICE[ms.get_context("device_target")]
        self.solver = chosen if solver is None else check_choice("solver", solver, ("eigh", "svd"))
        self.null = NULL[self.precision]
        self.eigh = SelfAdjointEig()
        self.product_t = ops.BatchMatMul(transpose_b=True)

    @ms.jit  # in PyNative mode a mixed precision level would cast the inputs of every operator
    def construct(self, x: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        a, _ = centred(x.astype(self.precision))
        c = self.product_t(a, a) * (1.0 / a.shape[-1])
        if self.solver == "eigh":
            lam, u = self.eigh(c)
        else:
            lam, u, _ = ops.svd(c)
            # Of its results not even the rank is known where the batch is not, and files with such graphs do not load.
            d = x.shape[1]
            lam, u = lam.reshape(-1, d), u.reshape(-1, d, d)
        lam = lam * (lam > ops.maximum(self.null * lam.max(-1, keepdims=True), SMALLEST)).astype(self.precision)
        return lam.astype(ms.float32), u.astype(ms.float32)

    def bprop(self, x: ms.Tensor, out: Tuple[ms.Tensor, ms.Tensor], dout: Tuple[ms.Tensor, ms.Tensor]) -> Tuple:
        return (ops.zeros_like(x),)


class SpectralFunction(Float32Cell, ABC):
    r"""f(C) = U f(lambda) U^T, C = A A^T / M of known decomposition, `(N, d, M) -> (N, d, d)`.

    The derivative is that of the matrix function, not of the eigenvectors, so repeated eigenvalues are harmless
    (Daleckii and Krein): with a symmetric cotangent G

        dC = U (K * (U^T G U)) U^T,  dA = (2 / M) dC A,
        K_ij = (f(lambda_i) - f(lambda_j)) / (lambda_i - lambda_j), f'(lambda) where eigenvalues meet.

    Every function has one parameter p, `(N, 1)` or `(1, 1)`, which takes no gradient. Subclasses give f and f'.

    Source: Ionescu et al., ICCV 2015, rewritten with divided differences (Higham, "Functions of Matrices", theorem
    3.11).
    """

    def __init__(self) -> None:
        super().__init__()
        self.product = ops.BatchMatMul()
        self.product_t = ops.BatchMatMul(transpose_b=True)
        self.t_product = ops.BatchMatMul(transpose_a=True)

    # Type checkers find a subclass without these; Python does not, since C++ allocates a Cell.
    @abstractmethod
    def function(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        """Function of eigenvalues `(N, d)`."""

    @abstractmethod
    def derivative(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        """Its derivative at eigenvalues `(N, d)`."""

    def shift(self, p: ms.Tensor) -> ms.Tensor:
        """Distance from zero of the point where f is singular: closeness is relative to the distance from it."""
        return ops.zeros_like(p)

    def divided_differences(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        """K, `(N, d) -> (N, d, d)`."""
        value, slope = self.function(lam, p), self.derivative(lam, p)
        a, b = lam.expand_dims(-1), lam.expand_dims(-2)
        difference = a - b
        near = ops.abs(difference) <= NEAR * (ops.maximum(a, b) + self.shift(p).expand_dims(-1))
        quotient = (value.expand_dims(-1) - value.expand_dims(-2)) / ops.masked_fill(difference, near, 1.0)
        return ops.select(near, 0.5 * (slope.expand_dims(-1) + slope.expand_dims(-2)), quotient)

    def construct(self, a: ms.Tensor, lam: ms.Tensor, u: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        # A serves the gradient only.
        return self.product_t(u * self.function(lam, p).expand_dims(-2), u)

    def bprop(
        self, a: ms.Tensor, lam: ms.Tensor, u: ms.Tensor, p: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> Tuple[ms.Tensor, ms.Tensor, ms.Tensor, ms.Tensor]:
        inner = self.t_product(u, self.product(dout, u)) * self.divided_differences(lam, p)
        da = self.product(self.product_t(self.product(u * (2.0 / a.shape[-1]), inner), u), a)
        return da, ops.zeros_like(lam), ops.zeros_like(u), ops.zeros_like(p)


class Power(SpectralFunction):
    """f(lambda) = lambda^p, p in (0, 1].

    At zero the derivative is infinite (p < 1). K is 0 between two zero eigenvalues: the smallest subgradient where the
    result has no derivative with respect to A, and elsewhere without effect, since A has no part in that block.
    """

    def function(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        zero = lam == 0
        return ops.masked_fill(ops.pow(ops.masked_fill(lam, zero, 1.0), p), zero, 0.0)

    def derivative(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        zero = lam == 0
        return ops.masked_fill(p * ops.pow(ops.masked_fill(lam, zero, 1.0), p - 1.0), zero, 0.0)


class ScaledRoot(Power):
    """C^p (1 + s), s = ||C^p e^(-C)|| (Frobenius), p = 1/2, as a whole: s depends on all eigenvalues.

    With R = C^(1/2) and ds/dlambda_i = (1/2 - lambda_i) e^(-2 lambda_i) / s, the gradient is (1 + s) times that of R
    plus <G, R> U diag(ds/dlambda) U^T. ds/dlambda of a zero eigenvalue counts as 0: A has no part in its eigenvector.
    """

    def scale(self, lam: ms.Tensor) -> ms.Tensor:
        """s, `(N, d) -> (N, 1)`."""
        part = ops.sqrt(lam) * ops.exp(-lam)
        return ops.sqrt(row_sums(part * part))

    def function(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        return super().function(lam, p) * (1.0 + self.scale(lam))

    def derivative(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        """At fixed s."""
        return super().derivative(lam, p) * (1.0 + self.scale(lam))

    def bprop(
        self, a: ms.Tensor, lam: ms.Tensor, u: ms.Tensor, p: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
    ) -> Tuple[ms.Tensor, ms.Tensor, ms.Tensor, ms.Tensor]:
        d = u.shape[-1]
        s = self.scale(lam)
        decay = ops.exp(-lam)
        slope = (0.5 - lam) * decay * (decay / ops.masked_fill(s, s == 0, 1.0))
        slope = ops.masked_fill(slope, ops.logical_or(lam == 0, s == 0), 0.0)
        slope = slope * (row_sums((dout * out).reshape(-1, d * d)) / (1.0 + s))
        inner = self.t_product(u, self.product(dout, u)) * self.divided_differences(lam, p)
        dc = self.product_t(self.product(u, inner) + u * slope.expand_dims(-2), u)
        da = self.product(dc, a) * (2.0 / a.shape[-1])
        return da, ops.zeros_like(lam), ops.zeros_like(u), ops.zeros_like(p)


class ShiftedLog(SpectralFunction):
    """f(lambda) = log(lambda + p), p > 0."""

    def function(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        return ops.log(lam + p)

    def derivative(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        return 1.0 / (lam + p)

    def shift(self, p: ms.Tensor) -> ms.Tensor:
        return p


class ScaledLog(ShiftedLog):
    """f(lambda) = p log((lambda + p) / p), p > 0: zero at zero, with slope 1."""

    def function(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        # p log(1 + r), r = lambda / p. MindSpore's `log1p` is 0 for small r on CPU. Here r log(1 + r) / ((1 + r) - 1)
        # keeps the digits, since both parts of the quotient see the same rounding of 1 + r.
        ratio = lam / p
        step = (1.0 + ratio) - 1.0
        small = step == 0
        return p * ratio * ops.masked_fill(ops.log(1.0 + ratio) / ops.masked_fill(step, small, 1.0), small, 1.0)

    def derivative(self, lam: ms.Tensor, p: ms.Tensor) -> ms.Tensor:
        return p / (lam + p)
