"""The square root of a covariance by a Taylor polynomial: MTP."""

from __future__ import annotations

from typing import List, Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, check_choice, check_int, repeat_columns, row_sums
from covpool.pooling.covariance import Centre, Gram, SymmetricVector, vector_length
from covpool.pooling.matrix_powers import SMALLEST_TRACE, Divided, Trace, repeat_identity

# Steps of the published gradient.
LYAPUNOV_STEPS = 8


class TaylorRoot(Float32Cell):
    r"""Square root of each covariance by a Taylor polynomial, `(N, d, d) -> (N, d, d)`.

    With A = C / ||C|| (Frobenius) and Z = I - A,

        C^(1/2) = sqrt(||C||) (I - Z)^(1/2) ~ sqrt(||C||) sum_{k=0}^{terms} c_k Z^k,  c_k = (-1)^k binom(1/2, k).

    The sum is split into blocks of length s = sqrt(terms) in powers of Z^s (Paterson and Stockmeyer), which takes 5
    products for 10 terms in place of 9. A covariance of zero gives zero, with a zero gradient.

    Args:
        channels: d.
        terms: Degree of the polynomial.
    """

    def __init__(self, channels: int, terms: int) -> None:
        super().__init__()
        self.channels = channels
        self.block = max(1, int(terms**0.5))
        coefficients = [1.0]
        for k in range(1, terms + 1):
            coefficients.append(coefficients[-1] * (k - 1.5) / k)
        starts = range(0, terms, self.block)
        self.top = coefficients[starts[-1] :]
        self.below = [coefficients[i : i + self.block] for i in reversed(starts[:-1])]
        self.trace = Trace(channels)
        self.by_trace, self.by_norm = Divided(1.0), Divided(-1.0)
        self.product = ops.BatchMatMul()
        self.identity = ms.Tensor(np.eye(channels, dtype=np.float32).reshape(1, -1))

    def normalised_root(self, c: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
        """A^(1/2), sqrt(||C||) (0 where C counts as zero) and one identity a sample; see the class."""
        d = self.channels
        trace = self.trace(c)
        zero = trace <= SMALLEST_TRACE
        trace = ops.masked_fill(trace, zero, 1.0)
        identity = repeat_identity(trace, self.identity, d)
        c = self.by_trace(c, trace)  # first, since squares of small entries leave float32
        flat = c.reshape(-1, d * d)
        norm = ops.masked_fill(ops.sqrt(ops.maximum(row_sums(flat * flat), SMALLEST_TRACE)), zero, 1.0)
        powers = [identity, identity + self.by_norm(c, norm)]
        for _ in range(self.block - 1):
            powers.append(self.product(powers[-1], powers[1]))
        root = self.combined(powers, self.top)
        for block in self.below:
            root = self.product(root, powers[self.block]) + self.combined(powers, block)
        return root, ops.masked_fill(ops.sqrt(trace * norm), zero, 0.0), identity

    def combined(self, powers: List[ms.Tensor], coefficients: List[float]) -> ms.Tensor:
        """Sum of powers times coefficients."""
        total = powers[0] * coefficients[0]
        for k in range(1, len(coefficients)):
            total = total + powers[k] * coefficients[k]
        return total

    def scaled(self, matrices: ms.Tensor, factors: ms.Tensor) -> ms.Tensor:
        """Matrices times one number a sample, `(N, d, d), (N, 1) -> (N, d, d)`."""
        d = self.channels
        return matrices * repeat_columns(factors, d * d).reshape(-1, d, d)

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        root, factor, _ = self.normalised_root(c)
        return self.scaled(root, factor)


class LyapunovTaylorRoot(TaylorRoot):
    """`TaylorRoot` with the published gradient: the solution D of R D + D R = G, R the computed root.

    It comes from a coupled Newton-Schulz iteration, eight steps of five products, and is the derivative of a root, not
    of the polynomial: where the polynomial is no root (small eigenvalues) the two differ.

    Source: Song et al., ICLR 2022, and the released code for the number of steps.
    """

    def bprop(self, c: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Tuple[ms.Tensor]:
        b, factor, identity = self.normalised_root(c)
        zero = factor == 0
        g = self.scaled(dout, ops.masked_fill(0.5 / ops.masked_fill(factor, zero, 1.0), zero, 0.0))
        for _ in range(LYAPUNOV_STEPS):
            square = self.product(b, b)
            mixed = self.product(g, square)
            both = self.product(self.product(b, g), b)
            g = 1.5 * g + 0.5 * (both - mixed - mixed.swapaxes(1, 2))
            b = self.product(b, 1.5 * identity - 0.5 * square)
        return (g,)


class MTP(Pooling):
    """MTP (matrix Taylor polynomial): V of the covariance's square root, `(N, d, H, W) -> (N, d(d+1)/2)`.

    `TaylorRoot` has the formula. A polynomial of 10 terms maps a zero eigenvalue to 0.18 sqrt(||C||) and is close to
    the root from 0.1 ||C|| on; a covariance of deficient rank gets small eigenvalues in place of its zeros.

    Cost: 5 products of 2 d^3 FLOPs for 10 terms; 10 for the exact gradient, 45 for that of the paper.

    Source: Song et al., ICLR 2022 ("Fast Differentiable Matrix Square Root"), and the released code for 10 terms.

    Args:
        channels: d.
        terms: Degree of the polynomial, 1 to 30.
        gradient: "exact", of the polynomial, or "lyapunov", as published (see `LyapunovTaylorRoot`).
    """

    def __init__(self, channels: int, terms: int = 10, gradient: str = "exact") -> None:
        super().__init__(channels, vector_length(channels))
        exact = check_choice("gradient", gradient, ("exact", "lyapunov")) == "exact"
        self.centre = Centre()
        self.gram = Gram()
        self.root = (TaylorRoot if exact else LyapunovTaylorRoot)(channels, check_int("terms", terms, 1, 30))
        self.vector = SymmetricVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        a, _ = self.centre(x)
        return self.vector(self.root(self.gram(a))) * a.shape[-1] ** -0.5
