"""Signed square root and scale and shift of covariance vectors, each in one or two passes over memory, on CPU."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import ops

from covpool.pooling.base import Float32Cell
from covpool.pooling.element_wise import Affine, SignedRootL2


class CompiledSignedRootL2(SignedRootL2):
    """As :class:`SignedRootL2`."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self.root = ops.Custom(f"{library}:signed_root_l2", lambda v: v, lambda v: v, "aot")
        self.slope = ops.Custom(f"{library}:signed_root_l2_gradient", lambda v, z, g: v, lambda v, z, g: v, "aot")

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
        gradient = ops.Custom(
            f"{library}:affine_gradient",
            lambda v, g, gamma: (v, gamma, gamma),
            lambda v, g, gamma: (v, gamma, gamma),
            "aot",
        )

        def bprop(
            v: ms.Tensor, gamma: ms.Tensor, beta: ms.Tensor, out: ms.Tensor, dout: ms.Tensor
        ) -> tuple[ms.Tensor, ms.Tensor, ms.Tensor]:
            return gradient(v, dout, gamma)

        self.affine = ops.Custom(
            f"{library}:affine", lambda v, gamma, beta: v, lambda v, gamma, beta: v, "aot", bprop=bprop
        )
        self.insert_param_to_cell("gamma", affine.gamma)
        self.insert_param_to_cell("beta", affine.beta)

    def construct(self, v: ms.Tensor) -> ms.Tensor:
        """Scale and shift."""
        return self.affine(v, self.gamma, self.beta)
