"""Cells that compute on CPU with fewer products or passes over memory than MindSpore's kernels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from covpool.kernels.library import custom, hand_over_solver
from covpool.pooling.base import Float32Cell, row_sums
from covpool.pooling.covariance import Centre, SymmetricVector, constant_column
from covpool.pooling.element_wise import Affine, SignedRootL2
from covpool.pooling.spectral import CovarianceEigen

_WIDTH = 32  # channels come in pairs of vectors of 16
# Of a convolution, for code that reads them.
_ATTRIBUTES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "group", "has_bias")
_STEM_WIDTH = 8  # output channels that the 7x7 convolution computes together


@cache  # MindSpore compiles each operator apart, even if they are the same
def winograd_operator(library: Path, biased: bool = False) -> ops.Custom:
    """The operator (x (N, C, H, W), weight (O, C, 3, 3)) -> (N, O, H, W), stride 1 and padding 1, with its gradient.

    Minimal filtering (Lavin and Gray, CVPR 2016): a 4x4 tile gives 2x2 outputs by 16 products instead of 36. Both
    gradients are the exact adjoint, by as many. Rounding is that of a direct convolution in float32 (tests/kernels).
    A third input, with ``biased``, is added to the channels, here and in the operators below.
    """
    data_gradient = custom(library, "winograd_data_gradient", lambda dy, weight: (dy[0], weight[1], dy[2], dy[3]))
    weight_gradient = custom(library, "winograd_weight_gradient", lambda x, dy: (dy[1], x[1], 3, 3))

    def gradients(x: ms.Tensor, weight: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return data_gradient(dout, weight), weight_gradient(x, dout)

    def shape(x: tuple[int, ...], weight: tuple[int, ...], *_: Any) -> tuple[int, ...]:
        return x[0], weight[0], x[2], x[3]

    return _convolution(library, "winograd_forward", shape, gradients, biased)


@cache
def stem_operator(library: Path, out_channels: int, biased: bool = False) -> ops.Custom:
    """The operator (x (N, C, H, W), weight (O, C, 7, 7)) -> (N, O, H', W'), stride 2 and padding 3, with its gradient.

    The gradient with respect to x, which no training needs, is MindSpore's; in graph mode it costs nothing if unused.
    """
    data_gradient = ops.Conv2DTranspose(out_channels, 7, pad_mode="pad", pad=3, stride=2)
    weight_gradient = custom(library, "stem_weight_gradient", lambda x, dy: (dy[1], x[1], 7, 7))

    def gradients(x: ms.Tensor, weight: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        return data_gradient(dout, weight, ops.shape(x)), weight_gradient(x, dout)

    def shape(x: tuple[int, ...], weight: tuple[int, ...], *_: Any) -> tuple[int, ...]:
        return x[0], weight[0], (x[2] + 1) // 2, (x[3] + 1) // 2

    return _convolution(library, "stem_forward", shape, gradients, biased)


@cache
def depthwise_operator(library: Path, stride: int, biased: bool = False) -> ops.Custom:
    """The operator (x (N, C, H, W), weight (C, 1, 3, 3)) -> (N, C, H', W'), a kernel for each channel, padding 1.

    The stride is 1 or 2. One more operator is its gradient with respect to both.
    """

    def like_inputs(x: Any, weight: Any, dy: Any) -> Any:
        return x, weight

    gradients = custom(library, "depthwise_gradient", like_inputs, like_inputs)

    def shape(x: tuple[int, ...], weight: tuple[int, ...], *_: Any) -> tuple[int, ...]:
        return x[0], x[1], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1

    # MindSpore keeps shapes of results by names of operators and shapes of inputs.
    name = "depthwise_forward" if stride == 1 else "depthwise_strided_forward"
    return _convolution(library, name, shape, gradients, biased)


def _convolution(library: Path, name: str, shape: Any, gradients: Any, biased: bool) -> ops.Custom:
    """The operator of a convolution; ``gradients`` are those of x and the weight, from both and that of the output."""

    def plain(x: ms.Tensor, weight: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Any:
        return gradients(x, weight, dout)

    def with_bias(x: ms.Tensor, weight: ms.Tensor, bias: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> Any:
        dx, dweight = gradients(x, weight, dout)
        return dx, dweight, dout.sum((0, 2, 3))

    return custom(library, name, shape, bprop=with_bias if biased else plain)


def takes_winograd(convolution: nn.Conv2d) -> bool:
    """Whether :func:`winograd_operator` computes a convolution: 3x3, stride 1, many channels."""
    channels = convolution.in_channels, convolution.out_channels
    return _is_plain(convolution, kernel_size=3, stride=1) and not any(count % _WIDTH for count in channels)


def takes_stem(convolution: nn.Conv2d) -> bool:
    """Whether :func:`stem_operator` computes a convolution: 7x7, stride 2, of images."""
    return (
        _is_plain(convolution, kernel_size=7, stride=2)
        and convolution.in_channels <= 4
        and convolution.out_channels % _STEM_WIDTH == 0
    )


def takes_depthwise(convolution: nn.Conv2d) -> bool:
    """Whether :func:`depthwise_operator` computes a convolution: 3x3, stride 1 or 2, each channel by itself."""
    channels = convolution.in_channels
    return (
        channels == convolution.out_channels > 1
        and convolution.stride[0] in (1, 2)
        and _is_plain(convolution, kernel_size=3, stride=convolution.stride[0], groups=channels)
    )


def _is_plain(convolution: nn.Conv2d, kernel_size: int, stride: int, groups: int = 1) -> bool:
    """Whether all but the channels is as expected: float32, padded by half the kernel."""
    return (
        convolution.kernel_size == (kernel_size, kernel_size)
        and convolution.stride == (stride, stride)
        and convolution.dilation == (1, 1)
        and convolution.group == groups
        and convolution.pad_mode == "pad"
        and convolution.padding in (kernel_size // 2, (kernel_size // 2,) * 4)
        and convolution.weight.dtype == ms.float32
    )


class CompiledConv2d(nn.Cell):
    """A convolution computed by one of the operators, with the weights of the one that it stands for."""

    def __init__(self, convolution: nn.Conv2d, operator: ops.Custom) -> None:
        super().__init__(auto_prefix=False)  # the weight keeps its name
        self.weight = convolution.weight
        self.bias = convolution.bias if convolution.has_bias else None
        for name in (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "group",
            "has_bias",
        ):
            setattr(self, name, getattr(convolution, name))  # for code that reads them
        self.operator = operator

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.operator(x, self.weight) if self.bias is None else self.operator(x, self.weight, self.bias)


@cache
def batch_norm_operator(library: Path) -> ops.Custom:
    """The operator (x (N, C, H, W), gamma, beta, moving_mean, moving_variance, constants) -> five tensors.

    They are y like x and, each (C,), mean and 1 / sqrt(variance + eps) of the batch and the new running mean and
    variance (unbiased, as MindSpore keeps it). ``constants`` holds eps and the weight of the batch in the running
    statistics. The gradient is that of y with respect to x, gamma and beta.
    """

    def like_gradients(dy: Any, x: Any, gamma: Any, *_: Any) -> Any:
        return dy, gamma, gamma

    gradient = custom(library, "batch_norm_gradient", like_gradients, like_gradients)

    def bprop(
        x: Any, gamma: Any, beta: Any, moving_mean: Any, moving_variance: Any, constants: Any, out: Any, dout: Any
    ) -> Any:
        dx, dgamma, dbeta = gradient(dout[0], x, gamma, out[1], out[2])
        zeros = ops.zeros_like
        return dx, dgamma, dbeta, zeros(moving_mean), zeros(moving_variance), zeros(constants)

    def like_results(x: Any, gamma: Any, *_: Any) -> Any:
        return x, gamma, gamma, gamma, gamma

    return custom(library, "batch_norm", like_results, like_results, bprop)


class CompiledBatchNorm2d(nn.Cell):
    """In training :func:`batch_norm_operator`; in evaluation, or with frozen statistics, MindSpore's own."""

    def __init__(self, norm: nn.BatchNorm2d, operator: ops.Custom) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep their names
        self.norm = norm
        self.operator = operator
        self.constants = ms.Tensor(np.array([norm.eps, norm.momentum], np.float32))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        norm = self.norm
        if norm.use_batch_statistics or (norm.use_batch_statistics is None and self.training):
            y, _, _, mean, variance = self.operator(
                x, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance, self.constants
            )
            y = ops.depend(y, ops.assign(norm.moving_mean, mean))
            return ops.depend(y, ops.assign(norm.moving_variance, variance))
        return norm(x)


class CompiledCentre(Centre):
    """As :class:`Centre`; the gradient passes the subtraction of the mean unchanged there, too."""

    def __init__(self, library: Path) -> None:
        super().__init__()

        def bprop(x: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
            return (dout,)

        self.operator = custom(library, "centre", lambda x: x, bprop=bprop)

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        _, c, h, w = x.shape
        flat = x.reshape(-1, h * w)
        mean = row_sums(flat, 1.0 / (h * w))  # no part of the graph where nothing uses it
        return self.operator(flat).reshape(-1, c, h * w), mean.reshape(-1, c)


@cache
def eigen_operator(library: Path) -> ops.Custom:
    """The operator c (N, d, d), symmetric, float64 -> eigenvalues (N, d), rising, and eigenvectors (N, d, d), columns.

    LAPACK's divide and conquer, several matrices at once. NaN where c has a number that is not finite. No gradient.
    """
    hand_over_solver(library)
    return custom(library, "symmetric_eigen", lambda c: (c[:2], c), lambda c: (c, c))


class CompiledCovarianceEigen(CovarianceEigen):
    """As :class:`CovarianceEigen` with its symmetric solver."""

    def __init__(self, library: Path) -> None:
        super().__init__("eigh")
        self.eigh = eigen_operator(library)


class CompiledSymmetricVector(SymmetricVector):
    """As :class:`SymmetricVector`: rows of the triangle are copied where MindSpore gathers single numbers."""

    def __init__(self, channels: int, library: Path) -> None:
        super().__init__(channels)
        d, k = channels, channels * (channels + 1) // 2
        self.triangle = custom(library, "triangle", lambda c, f: (c[0], k))
        self.adjoint = custom(library, "triangle_gradient", lambda v, f: (v[0], d, d))

    def construct(self, c: ms.Tensor) -> ms.Tensor:
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
        return self.root(v)

    def bprop(self, v: ms.Tensor, out: ms.Tensor, dout: ms.Tensor) -> tuple[ms.Tensor]:
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
        return self.affine(v, self.gamma, self.beta)
