"""The exponent of adaptive power normalisation, one per sample."""

from __future__ import annotations

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell

# Points of each of the two searches: alpha is then off by at most 0.9 / 47^2 = 4e-4.
_POINTS = 48


class AdaptiveExponent(Float32Cell):
    r"""`(N, d) -> (N, 1)`: alpha per sample from the eigenvalues of its covariance, without gradient.

    alpha is the extremum over [alpha_min, 1] of

        J(alpha) = alpha (log lambda_max - log max(floor, lambda_min)) - tau sum_i p_i log p_i,
        p_i = lambda_i^alpha / sum_j lambda_j^alpha.

    Two vectorised steps: J on a grid finds the neighbourhood of the extremum (there may be more than one stationary
    point), then the sign of J' on a finer grid around it finds the place, since differences of J vanish in float32
    there. With s = log lambda, p = softmax(alpha s) and J' = (first factor) - tau alpha Var_p(s).
    Zero eigenvalues take no part in p. Cost: about 500 d exponentials and FLOPs a sample.

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
        """The exponent of each sample."""
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
