"""MaxExp: a matrix power by repeated squaring."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Pooling, check_float, check_int
from covpool.pooling.covariance import Centre, Gram, SymmetricVector, vector_length
from covpool.pooling.newton_schulz import Divided, Trace, repeat_identity


class MaxExp(Pooling):
    """MaxExp: V(I - (I - C / (tr(C) + eps))^eta), `(N, d, H, W) -> (N, d(d+1)/2)`.

    eta is an integer; the power is taken by repeated squaring, in terms of E_k = I - (I - A)^k, A = C / (tr(C) + eps):
    E_2k = E_k (2I - E_k) and E_(k+1) = E_k (I - A) + A lose no digits, as differences from I would.

    Cost: 2 M d^2 + 2 d^3 (log2(eta) + ones in eta's binary form - 1) FLOPs forward (5 products for eta = 20), twice
    that backward. Published top-1 of ResNet-18 on ImageNet: not reported.
    Source: Koniusz and Zhang, "Power Normalizations in Fine-grained Image, Few-shot Image and Graph Classification",
    TPAMI 2021.

    Args:
        channels: d.
        eta: The power, 1 or more.
        eps: Added to the trace, above 0.

    Raises:
        ValueError: An argument is outside its range.
        TypeError: eta is not an integer or eps not a number.
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
        """Trace-normalised covariance A, then -E_k = (I - A)^k - I for growing k."""
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
