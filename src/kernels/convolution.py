"""3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3) (Lavin and Gray, CVPR 2016), on CPU."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import nn, ops

_WIDTH = 32  # channels come in pairs of vectors of 16


def winograd_operator(library: Path) -> ops.Custom:
    """The operator (x (N, C, H, W), weight (O, C, 3, 3)) -> (N, O, H, W), stride 1 and padding 1, with its gradient.

    A 4x4 tile of the input gives 2x2 outputs by 16 products instead of 36. Both gradients are the exact adjoint, by
    the same number of products. Rounding is that of a direct convolution in float32 (tests/kernels).
    """
    data_gradient = ops.Custom(
        f"{library}:winograd_data_gradient",
        lambda dy, weight: (dy[0], weight[1], dy[2], dy[3]),
        lambda dy, weight: dy,
        "aot",
    )
    weight_gradient = ops.Custom(
        f"{library}:winograd_weight_gradient", lambda x, dy: (dy[1], x[1], 3, 3), lambda x, dy: x, "aot"
    )

    def bprop(x: ms.Tensor, weight: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return data_gradient(dout, weight), weight_gradient(x, dout)

    return ops.Custom(
        f"{library}:winograd_forward",
        lambda x, weight: (x[0], weight[0], x[2], x[3]),
        lambda x, weight: x,
        "aot",
        bprop=bprop,
    )


def takes_winograd(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that the operator computes: 3x3, stride 1, padding 1, float32, no bias."""
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.group == 1
        and convolution.pad_mode == "pad"
        and convolution.padding in (1, (1, 1, 1, 1))
        and not convolution.has_bias
        and convolution.in_channels % _WIDTH == 0
        and convolution.out_channels % _WIDTH == 0
        and convolution.weight.dtype == ms.float32
    )


class WinogradConv2d(nn.Cell):
    """A convolution computed by :func:`winograd_operator`, with the weights of the one that it stands for."""

    def __init__(self, convolution: nn.Conv2d, operator: ops.Custom) -> None:
        super().__init__(auto_prefix=False)  # the weight keeps its name
        self.weight = convolution.weight
        self.operator = operator

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.operator(x, self.weight)
