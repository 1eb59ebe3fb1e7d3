"""Parts of covariance poolings on CPU, each in one or two passes over memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms

from covpool.kernels.library import custom
from covpool.pooling.base import Float32Cell, row_sums
from covpool.pooling.covariance import Centre, SymmetricVector, constant_column
from covpool.pooling.element_wise import Affine, SignedRootL2


class CompiledCentre(Centre):
    """As :class:`Centre`; the gradient passes the subtraction of the mean unchanged there, too."""

    def __init__(self, library: Path) -> None:
        super().__init__()

        def bprop(x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
            return (dout,)

        self.operator = custom(library, "centre", lambda x: x, bprop=bprop)

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Centred map and mean."""
        _, c, h, w = x.shape
        flat = x.reshape(-1, h * w)
        mean = row_sums(flat, 1.0 / (h * w))  # no part of the graph where nothing uses it
        return self.operator(flat).reshape(-1, c, h * w), mean.reshape(-1, c)


class CompiledSymmetricVector(SymmetricVector):
    """As :class:`SymmetricVector`: rows of the triangle are copied where MindSpore gathers single numbers."""

    def __init__(self, channels: int, library: Path) -> None:
        super().__init__(channels)
        d, k = channels, channels * (channels + 1) // 2
        self.triangle = custom(library, "triangle", lambda c, f: (c[0], k))
        self.adjoint = custom(library, "triangle_gradient", lambda v, f: (v[0], d, d))

    def construct(self, c: ms.Tensor) -> ms.Tensor:
        """The vector of a batch of matrices."""
        return self.scaled(c, 1.0)

    def scaled(self, c: ms.Tensor, factor: float) -> ms.Tensor:
        """V times a factor, `(N, d, d) -> (N, d(d+1)/2)`; without a gradient of its own."""
        return self.triangle(c, constant_column(1, factor))

    def spread(self, dout: ms.Tensor, factor: float = 1.0) -> ms.Tensor:
        """The adjoint of V, symmetrised, times a factor: `(N, d(d+1)/2) -> (N, d, d)`."""
        return self.adjoint(dout, constant_column(1, factor))


class CompiledSignedRootL2(SignedRootL2):
    """As :class:`SignedRootL2`."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self.root = custom(library, "signed_root_l2", lambda v: v)
        self.slope = custom(library, "signed_root_l2_gradient", lambda v, z, g: v)

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        """Signed root, then unit length."""
        return self.root(v)

    def bprop(self, v: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
        """Gradient with respect to v."""
        return (self.slope(v, out, dout),)


class CompiledAffine(Float32Cell):
    """As :class:`Affine`, with the parameters of the one that it stands for."""

    def __init__(self, affine: Affine, library: Path) -> None:
        super().__init__()

        def like_gradients(v: Any, g: Any, gamma: Any) -> Any:
            return v, gamma, gamma

        gradient = custom(library, "affine_gradient", like_gradients, like_gradients)

        def bprop(v: Any, gamma: Any, beta: Any, out: Any, dout: Any) -> tuple[Any, Any, Any]:
            return gradient(v, dout, gamma)

        self.affine = custom(library, "affine", lambda v, gamma, beta: v, bprop=bprop)
        self.insert_param_to_cell("gamma", affine.gamma)
        self.insert_param_to_cell("beta", affine.beta)

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        """Scale and shift."""
        return self.affine(v, self.gamma, self.beta)
