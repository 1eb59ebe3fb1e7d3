"""So-ViT's dense stem (Xie et al., 2021), which the transformers of the DropCov release begin with."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from covpool.models.classifier import MaxPool, batch_norm, convolution
from covpool.models.transformer import layer_norm, patch_convolution

_STEM, _GROWTH, _BOTTLENECK, _LAYERS, _BETWEEN = 64, 16, 2, 6, 128


class DenseLayer(nn.Cell):
    """ReLU, 1x1, ReLU, 3x3 convolution, without normalisation: (N, in_channels, H, W) -> (N, 16, H, W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, _BOTTLENECK * _GROWTH, 1)
        self.conv2 = convolution(_BOTTLENECK * _GROWTH, _GROWTH, 3)
        self.relu = nn.ReLU()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.conv2(self.relu(self.conv1(self.relu(x))))


class DenseBlock(nn.Cell):
    """Six dense layers, each of which sees what all before it gave: (N, C, H, W) -> (N, C + 96, H, W)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = tuple(f"denselayer{index + 1}" for index in range(_LAYERS))
        for index, name in enumerate(self.layers):
            setattr(self, name, DenseLayer(in_channels + index * _GROWTH))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        for name in self.layers:
            x = ops.concat((x, getattr(self, name)(x)), 1)
        return x


class Transition(nn.Cell):
    """Batch normalisation, 1x1 convolution, 2x2 average: (N, C, H, W) -> (N, 128, H / 2, W / 2), or H, W."""

    def __init__(self, in_channels: int, halves: bool) -> None:
        super().__init__()
        self.norm = batch_norm(in_channels)
        self.conv = convolution(in_channels, _BETWEEN, 1)
        self.halves = halves
        # Not nn.AvgPool2d, which asks for the rank: MindSpore does not know it where that of a batch is open.
        self.average = ops.AvgPool(2, 2, "valid")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.conv(self.norm(x))
        return self.average(x) if self.halves else x


class DenseStem(nn.Cell):
    """Images (N, in_channels, H, W) to maps of tokens (N, channels, H / patch_size, W / patch_size).

    Args:
        in_channels: Channels of the images.
        channels: Numbers per token.
        patch_size: 16, or 4 for Swin: the averages after the second and third block are left out.
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, _STEM, 3, pad_mode="pad", padding=1, has_bias=True)
        self.stem = nn.SequentialCell(first, MaxPool())
        cells: list[nn.Cell] = []
        for index, width in enumerate((_STEM, _BETWEEN, _BETWEEN)):
            halves = index == 0 or patch_size == 16
            cells += [DenseBlock(width), Transition(width + _LAYERS * _GROWTH, halves)]
        self.stage = nn.SequentialCell(cells)
        self.transition = patch_convolution(_BETWEEN, channels, 1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.transition(self.stage(self.stem(x)))


class VisualTokens(nn.Cell):
    """Images (N, in_channels, H, W) to tokens (N, L, channels), row by row; ``norm_eps`` as in :class:`PatchEmbed`."""

    def __init__(self, in_channels: int, channels: int, patch_size: int, norm_eps: float | None = None) -> None:
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        self.tokens = DenseStem(in_channels, channels, patch_size)
        self.norm = nn.Identity() if norm_eps is None else layer_norm(channels, norm_eps)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        # Of the images: after the stem MindSpore knows no size where that of the batch is open.
        length = (x.shape[2] // self.patch_size) * (x.shape[3] // self.patch_size)
        return self.norm(self.tokens(x).reshape(-1, self.channels, length).swapaxes(1, 2))
