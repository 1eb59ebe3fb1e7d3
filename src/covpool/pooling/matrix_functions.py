"""Normalisations by a function of the eigenvalues: DeepO2P, I-LogM, MPN-COV, APN, IB-CNN."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import ops

from covpool.pooling.adaptive_power import AdaptiveExponent
from covpool.pooling.base import Pooling, check_choice, check_float, repeat_columns
from covpool.pooling.covariance import SymmetricVector, centred, vector_length
from covpool.pooling.element_wise import Affine, SignedRootL2
from covpool.pooling.spectral import CovarianceEigen, Power, ScaledLog, ShiftedLog, SpectralFunction


class SpectralPooling(Pooling):
    """Base: V(U f(lambda) U^T), with one parameter of f for all samples.

    Args:
        channels: d.
        function: f.
        parameter: Its parameter.
        solver: See `CovarianceEigen`.
    """

    def __init__(self, channels: int, function: SpectralFunction, parameter: float, solver: Optional[str]) -> None:
        super().__init__(channels, vector_length(channels))
        self.eigen = CovarianceEigen(solver)
        self.function = function
        self.vector = SymmetricVector(channels)
        self.parameter = ms.Tensor([[parameter]], ms.float32)

    def exponent(self, lam: ms.Tensor) -> ms.Tensor:
        """The function's parameter, `(N, d) -> (N, 1)` or `(1, 1)`."""
        return self.parameter

    def normalised(self, x: ms.Tensor) -> ms.Tensor:
        """V(f(C))."""
        lam, u = self.eigen(x)
        a, _ = centred(x)
        return self.vector(self.function(a, lam, u, self.exponent(lam)))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Covariance, matrix function, upper triangle."""
        return self.normalised(x)


class LogM(SpectralPooling):
    """DeepO2P: V(U log(lambda + eps) U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Cost: 2 M d^2 + about 12 d^3 FLOPs forward, 2 M d^2 + 8 d^3 backward. Published top-1 of ResNet-18 on ImageNet: 70.1
    (d=64), diverges (d=256).
    Source: Ionescu et al., "Matrix Backpropagation for Deep Networks with Structured Layers", ICCV 2015.

    Args:
        channels: d.
        eps: Added to the eigenvalues, above 0.
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: eps is not a number.
    """

    def __init__(self, channels: int, eps: float = 1e-3, solver: Optional[str] = None) -> None:
        super().__init__(channels, ShiftedLog(), check_float("eps", eps, 0.0, low_open=True), solver)


class ILogM(SpectralPooling):
    """I-LogM: V(U [eps log((lambda + eps) / eps)] U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Cost: 2 M d^2 + about 12 d^3 FLOPs forward, 2 M d^2 + 8 d^3 backward. Published top-1 of ResNet-18 on ImageNet: 71.2
    (d=64), 72.0 (d=256).
    Source: Wang et al., "Towards a Deeper Understanding of Global Covariance Pooling in Deep Learning: An Optimization
    Perspective", TPAMI 2023.

    Args:
        channels: d.
        eps: Scale of the logarithm, above 0. The features are of its size: with 1e-3, the value of the reference
            numbers, a network hardly learns at usual rates, with 1.0 it does (docs/evidence.md).
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: eps is not a number.
    """

    def __init__(self, channels: int, eps: float = 1e-3, solver: Optional[str] = None) -> None:
        super().__init__(channels, ScaledLog(), check_float("eps", eps, 0.0, low_open=True), solver)


class MPN(SpectralPooling):
    """MPN-COV: V(U lambda^alpha U^T), `(N, d, H, W) -> (N, d(d+1)/2)`.

    Cost: 2 M d^2 + about 12 d^3 FLOPs forward, 2 M d^2 + 8 d^3 backward. Published top-1 of ResNet-18 on ImageNet: 73.1
    (d=64), 74.9 (d=256).
    Source: Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?", ICCV 2017.

    Args:
        channels: d.
        alpha: The power, in (0, 1].
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: alpha is not a number.
    """

    def __init__(self, channels: int, alpha: float = 0.5, solver: Optional[str] = None) -> None:
        super().__init__(channels, Power(), check_float("alpha", alpha, 0.0, 1.0, low_open=True), solver)


class APN(SpectralPooling):
    """APN: V(U lambda^alpha U^T) with alpha chosen per sample, `(N, d, H, W) -> (N, d(d+1)/2)`.

    alpha is the maximiser over [alpha_min, 1] of

        alpha (log lambda_max - log max(floor, lambda_min)) - tau sum_i p_i log p_i,
        p_i = lambda_i^alpha / sum_j lambda_j^alpha.

    The paper prints a minimisation, but the trade-off it describes is a maximum (the entropy term is concave near 0):
    the minimum mostly lies at an end of the interval. `objective="minimum"` gives the printed form. No gradient flows
    through alpha: it is a choice of the normalisation, as the rate of DropCov is.

    Cost: that of MPN-COV plus about 500 d exponentials. Published top-1 of ResNet-18 on ImageNet: 73.3 (d=64), 75.0
    (d=256).
    Source: Wang et al., "Towards a Deeper Understanding of Global Covariance Pooling in Deep Learning: An Optimization
    Perspective", TPAMI 2023.

    Args:
        channels: d.
        tau: Weight of the entropy, above 0.
        floor: The paper's c, above 0.
        alpha_min: Lower end of the interval, in (0, 1).
        objective: "maximum" or "minimum".
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: An argument is not a number.
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

    def exponent(self, lam: ms.Tensor) -> ms.Tensor:
        """The exponent of each sample."""
        return self.alpha(lam)


class IBCNN(SpectralPooling):
    """IB-CNN: l2(ssqrt(V(C^(1/2)))), `(N, d, H, W) -> (N, d(d+1)/2)`.

    The matrix root by eigen-decomposition; ssqrt and l2 as in B-CNN. The result does not depend on the scale of C, so
    the largest eigenvalue is made 1 first: the gradients of tiny covariances would leave float32.

    Cost: that of MPN-COV plus O(d^2). Published top-1 of ResNet-18 on ImageNet: diverges (d=64), 36.1 (d=256).
    Source: Lin and Maji, "Improved Bilinear Pooling with CNNs", BMVC 2017.

    Args:
        channels: d.
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: Another solver.
    """

    def __init__(self, channels: int, solver: Optional[str] = None) -> None:
        super().__init__(channels, Power(), 0.5, solver)
        self.normalise = SignedRootL2()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Vector of the root, signed root, unit length."""
        return self.normalise(self.normalised(x))

    def normalised(self, x: ms.Tensor) -> ms.Tensor:
        """V(f(C / largest eigenvalue))."""
        lam, u = self.eigen(x)
        a, _ = centred(x)
        largest = lam.max(-1, keepdims=True)
        inverse = 1.0 / ops.masked_fill(largest, largest == 0, 1.0)
        scale = repeat_columns(ops.sqrt(inverse), a.shape[1] * a.shape[2]).reshape(a.shape)
        return self.vector(self.function(a * scale, lam * inverse, u, self.parameter))


class IBCNNLT(IBCNN):
    """IB-CNN with a linear transform: gamma * l2(ssqrt(V(C^(1/2)))) + beta, `(N, d, H, W) -> (N, d(d+1)/2)`.

    gamma and beta are learnable per feature (`affine.gamma`, `affine.beta`), 1 and 0 at first.

    Cost: that of MPN-COV plus O(d^2). Published top-1 of ResNet-18 on ImageNet: 70.0 (d=64), 72.8 (d=256).
    Source: Wang et al., "DropCov: A Simple yet Effective Method for Improving Deep Architectures", NeurIPS 2022.

    Args:
        channels: d.
        solver: "eigh", "svd" or None (by device), see `CovarianceEigen`.

    Raises:
        ValueError: Another solver.
    """

    def __init__(self, channels: int, solver: Optional[str] = None) -> None:
        super().__init__(channels, solver)
        self.affine = Affine(self.out_features)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """IB-CNN, scaled and shifted."""
        return self.affine(self.normalise(self.normalised(x)))
