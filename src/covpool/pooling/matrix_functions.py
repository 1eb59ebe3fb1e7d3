"""Normalisations by a function of the eigenvalues: DeepO2P, I-LogM, MPN-COV, SEB, APN, IB-CNN."""

from __future__ import annotations

from typing import Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, Pooling, check_choice, check_float, repeat_columns
from covpool.pooling.covariance import SymmetricVector, centred, vector_length
from covpool.pooling.element_wise import Affine, SignedRootL2
from covpool.pooling.spectral import CovarianceEigen, Power, ScaledLog, ScaledRoot, ShiftedLog, SpectralFunction

# Points of each of the two searches for APN's exponent, which is then off by at most 0.9 / 47^2 = 4e-4.
_POINTS = 48


class SpectralPooling(Pooling):
    """V(U f(lambda) U^T), with one parameter of f for all samples, `(N, d, H, W) -> (N, d(d+1)/2)`.

    Args:
        channels: d.
        function: f.
        parameter: Its parameter, for example an exponent.
        solver: "eigh", "svd" or None, which chooses by the device; see `CovarianceEigen`.
    """

    def __init__(self, channels: int, function: SpectralFunction, parameter: float, solver: Optional[str]) -> None:
        super().__init__(channels, vector_length(channels))
        self.eigen = CovarianceEigen(solver)
        self.function = function
        self.vector = SymmetricVector(channels)
        self.parameter = ms.Tensor([[parameter]], ms.float32)

    def function_parameter(self, lam: ms.Tensor) -> ms.Tensor:
        """The parameter of f for these eigenvalues, `(N, d) -> (1, 1)`, or `(N, 1)` where every sample has its own."""
        return self.parameter

    def matrix_function(self, x: ms.Tensor) -> ms.Tensor:
        """V(f(C))."""
        lam, u = self.eigen(x)
        a, _ = centred(x)
        return self.vector(self.function(a, lam, u, self.function_parameter(lam)))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.matrix_function(x)


class LogM(SpectralPooling):
    """DeepO2P: V(U log(lambda + eps) U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Source: Ionescu et al., ICCV 2015.

    Args:
        channels: d.
        eps: Added to the eigenvalues, above 0.
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, eps: float = 1e-3, solver: Optional[str] = None) -> None:
        super().__init__(channels, ShiftedLog(), check_float("eps", eps, 0.0, low_open=True), solver)


class ILogM(SpectralPooling):
    """I-LogM: V(U [eps log((lambda + eps) / eps)] U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Source: Wang et al., TPAMI 2023.

    Args:
        channels: d.
        eps: Scale of the logarithm and size of the features, above 0; 1.0 trains well (docs/measurements/evidence.md).
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, eps: float = 1e-3, solver: Optional[str] = None) -> None:
        super().__init__(channels, ScaledLog(), check_float("eps", eps, 0.0, low_open=True), solver)


class MPN(SpectralPooling):
    """MPN-COV: V(U lambda^alpha U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Source: Li et al., ICCV 2017.

    Args:
        channels: d.
        alpha: The power, in (0, 1].
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, alpha: float = 0.5, solver: Optional[str] = None) -> None:
        super().__init__(channels, Power(), check_float("alpha", alpha, 0.0, 1.0, low_open=True), solver)


class SEB(SpectralPooling):
    """SEB (scaling eigen branch): V(C^(1/2) (1 + ||C^(1/2) e^(-C)||)), `(N, d, H, W) -> (N, d(d+1)/2)`.

    The Frobenius norm is one number a sample. Small eigenvalues raise it, large ones hardly count. The released code
    divides entries by themselves to get it, which gives NaN where one is 0; here the norm is taken as such.

    Cost: that of `mpn`, 12 d^3 FLOPs; 10 d^3 + 2 M d^2 for the gradient.

    Source: Song et al., TPAMI 2022 ("On the Eigenvalues of Global Covariance Pooling for Fine-grained Visual
    Recognition"), and the released code.

    Args:
        channels: d.
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, solver: Optional[str] = None) -> None:
        super().__init__(channels, ScaledRoot(), 0.5, solver)


class AdaptiveExponent(Float32Cell):
    r"""APN's alpha of each sample from the eigenvalues of its covariance, `(N, d) -> (N, 1)`, without gradient.

    alpha is the extremum over [alpha_min, 1] of

        J(alpha) = alpha (log lambda_max - log max(floor, lambda_min)) - tau sum_i p_i log p_i,
        p_i = lambda_i^alpha / sum_j lambda_j^alpha.

    J on a grid finds the neighbourhood of the extremum, and the sign of J' on a finer grid finds the place in it
    (differences of J vanish in float32 there). With s = log lambda: p = softmax(alpha s) and
    J' = (first factor) - tau alpha Var_p(s). Zero eigenvalues have no part in p.

    Args:
        tau: Weight of the entropy.
        floor: Smallest value that the least eigenvalue counts as (the paper's c).
        alpha_min: Lower end of the interval.
        sign: 1.0 for the maximum, -1.0 for the minimum.
    """

    def __init__(self, tau: float, floor: float, alpha_min: float, sign: float) -> None:
        super().__init__()
        self.tau, self.floor, self.sign, self.alpha_min = tau, floor, sign, alpha_min
        self.reach = (1.0 - alpha_min) / (_POINTS - 1)
        self.step = 2.0 * self.reach / (_POINTS - 1)
        self.grid = ms.Tensor(np.linspace(alpha_min, 1.0, _POINTS, dtype=np.float32).reshape(1, _POINTS))
        self.around = ms.Tensor(np.linspace(-self.reach, self.reach, _POINTS, dtype=np.float32).reshape(1, _POINTS))

    def spread(self, s: ms.Tensor, absent: ms.Tensor, alpha: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        """Entropy of p and variance of s under p, `(N, d), (N, d), (1 or N, K) -> (N, K), (N, K)`."""
        s = s.expand_dims(1)
        logits = ops.masked_fill(s, absent.expand_dims(1), -1e30) * alpha.expand_dims(-1)
        weights = ops.exp(logits - logits.max(-1, keepdims=True))
        p = weights / weights.sum(-1, keepdims=True)
        entropy = -(p * ops.log(ops.maximum(p, 1e-30))).sum(-1)
        deviation = s - (p * s).sum(-1, keepdims=True)
        return entropy, (p * deviation * deviation).sum(-1)

    def construct(self, lam: ms.Tensor) -> ms.Tensor:
        largest = ops.maximum(lam.max(-1, keepdims=True), 1e-30)
        absent = lam == 0
        s = ops.log(ops.masked_fill(lam, absent, 1.0))
        slope = ops.log(largest) - ops.log(ops.maximum(lam.min(-1, keepdims=True), self.floor))
        entropy, _ = self.spread(s, absent, self.grid)
        best = (self.sign * (self.grid * slope + self.tau * entropy)).argmax(-1, keepdims=True)
        points = best.astype(ms.float32) * self.reach + self.around + self.alpha_min
        points = ops.clamp(points, self.alpha_min, 1.0)
        _, variance = self.spread(s, absent, points)
        rising = (self.sign * (slope - self.tau * points * variance) > 0).astype(ms.float32)
        alpha = (best.astype(ms.float32) - 1.0) * self.reach + (rising.sum(-1, keepdims=True) - 0.5) * self.step
        return ops.stop_gradient(ops.clamp(alpha + self.alpha_min, self.alpha_min, 1.0))


class APN(SpectralPooling):
    """APN: V(U lambda^alpha U^T) with alpha chosen per sample, `(N, d, H, W) -> (N, d(d+1)/2)`.

    `AdaptiveExponent` says how; alpha has no gradient.

    Source: Wang et al., TPAMI 2023.

    Args:
        channels: d.
        tau: Weight of the entropy, above 0.
        floor: The paper's c, above 0.
        alpha_min: Lower end of the interval, in (0, 1).
        objective: "maximum", or "minimum" as the paper prints it (see docs/poolings.md).
        solver: See `SpectralPooling`.
    """

    def __init__(
        self,
        channels: int,
        tau: float = 4.0,
        floor: float = 0.1,
        alpha_min: float = 0.1,
        objective: str = "maximum",
        solver: Optional[str] = None,
    ) -> None:
        super().__init__(channels, Power(), 1.0, solver)
        self.alpha = AdaptiveExponent(
            check_float("tau", tau, 0.0, low_open=True),
            check_float("floor", floor, 0.0, low_open=True),
            check_float("alpha_min", alpha_min, 0.0, 1.0, low_open=True, high_open=True),
            1.0 if check_choice("objective", objective, ("maximum", "minimum")) == "maximum" else -1.0,
        )

    def function_parameter(self, lam: ms.Tensor) -> ms.Tensor:
        return self.alpha(lam)


class IBCNN(SpectralPooling):
    """IB-CNN: l2(ssqrt(V(C^(1/2)))), `(N, d, H, W) -> (N, d(d+1)/2)`.

    The matrix root by eigen-decomposition; ssqrt and l2 as in B-CNN.

    Source: Lin and Maji, BMVC 2017.

    Args:
        channels: d.
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, solver: Optional[str] = None) -> None:
        super().__init__(channels, Power(), 0.5, solver)
        self.normalise = SignedRootL2()

    def matrix_function(self, x: ms.Tensor) -> ms.Tensor:
        """V(C^(1/2)) of C over its largest eigenvalue.

        The l2 norm removes this factor again. Without it, the gradients of a tiny C leave float32 on their way.
        """
        lam, u = self.eigen(x)
        a, _ = centred(x)
        largest = lam.max(-1, keepdims=True)
        inverse = 1.0 / ops.masked_fill(largest, largest == 0, 1.0)
        _, d, positions = a.shape
        scale = repeat_columns(ops.sqrt(inverse), d * positions).reshape(-1, d, positions)
        return self.vector(self.function(a * scale, lam * inverse, u, self.parameter))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.normalise(self.matrix_function(x))


class IBCNNLT(IBCNN):
    """IB-CNN with a linear transform: gamma * l2(ssqrt(V(C^(1/2)))) + beta, `(N, d, H, W) -> (N, d(d+1)/2)`.

    gamma and beta are learnable, one of each per feature, and start as 1 and 0.

    Source: Wang et al., NeurIPS 2022.

    Args:
        channels: d.
        solver: See `SpectralPooling`.
    """

    def __init__(self, channels: int, solver: Optional[str] = None) -> None:
        super().__init__(channels, solver)
        self.affine = Affine(self.out_features)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.affine(self.normalise(self.matrix_function(x)))
