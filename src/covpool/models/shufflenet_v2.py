"""ShuffleNetV2 (Ma et al., ECCV 2018) in torchvision's arrangement, with any pooling (Wang et al., CVPR 2020)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import nn, ops
from mindspore.common.initializer import HeUniform, initializer

from covpool.models.blocks import NetworkBlock
from covpool.models.classifier import ImageClassifier, MaxPool, batch_norm, convolution, is_small_stem
from covpool.models.features import FeatureInfo, Stage
from covpool.models.registry import register_model

_REPEATS = (4, 8, 4)


class ShuffleBlock(NetworkBlock):
    """Two branches whose channels are interleaved: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride).

    With stride 2 both branches see all channels; with stride 1 the first half of the channels passes unchanged.
    """

    has_shortcut = False

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.half = half
        self.strided = stride > 1
        if self.strided:
            self.branch1 = nn.SequentialCell(
                *(convolution(in_channels, in_channels, 3, stride, in_channels), batch_norm(in_channels)),
                *(convolution(in_channels, half, 1), batch_norm(half), nn.ReLU()),
            )
        self.branch2 = nn.SequentialCell(
            *(convolution(in_channels if self.strided else half, half, 1), batch_norm(half), nn.ReLU()),
            *(convolution(half, half, 3, stride, half), batch_norm(half)),
            *(convolution(half, half, 1), batch_norm(half), nn.ReLU()),
        )

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        if self.strided:
            a, b = self.branch1(x), self.branch2(x)
        else:
            a, b = ops.split(x, self.half, 1)  # the gradient of slices would be padded with zeros and added
            b = self.branch2(b)
        # Channels a0, b0, a1, b1, ...: what torchvision's shuffle of their concatenation gives, without a transpose.
        pairs = ops.cat((a.expand_dims(2), b.expand_dims(2)), 2)
        return pairs.reshape(-1, 2 * self.half, a.shape[2], a.shape[3])


class ShuffleNetV2(ImageClassifier):
    """Blocks of two shuffled branches with any pooling of the registry; strides are the same with every pooling.

    The reduction ends with ReLU6. Convolutions start as PyTorch's default: uniform within 1 / sqrt(fan_in).

    Args:
        widths: Channels of stages 2, 3 and 4 and of the last convolution.
        pooling: A name of ``list_poolings()``.
        reduction_dim: Channels that enter a covariance head.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.
        stem: 'imagenet', or 'small' for 28-64 pixel images: stride 1 in the first convolution, and no max-pool.
    """

    stages = ("conv1", "maxpool", "stage2", "stage3", "stage4")
    after_stages = ("conv5",)
    reduction_activation = nn.ReLU6

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        self.widths = (24, 24, *widths[:3])
        self.small_stem = is_small_stem(stem, in_channels)
        self.conv1 = _unit(in_channels, 24, 3, 1 if self.small_stem else 2)
        self.maxpool = nn.Identity() if self.small_stem else MaxPool()
        for stage, blocks in enumerate(_REPEATS, start=2):
            cells = [ShuffleBlock(self.widths[stage - 1], self.widths[stage], 2)]
            cells += [ShuffleBlock(self.widths[stage], self.widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"stage{stage}", nn.SequentialCell(cells))
        self.conv5 = _unit(widths[2], widths[3], 1)
        self.build_head(widths[3], pooling, reduction_dim, num_classes, pooling_args)
        for _, cell in self.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                cell.weight.set_data(initializer(HeUniform(math.sqrt(5)), cell.weight.shape, cell.weight.dtype))

    def stage_info(self) -> FeatureInfo:
        """Name, channels and reduction of the first convolution, the max-pool and the stages."""
        strides = (1, 1, 2, 2, 2) if self.small_stem else (2, 2, 2, 2, 2)
        return FeatureInfo(
            Stage(name, width, math.prod(strides[: index + 1]))
            for index, (name, width) in enumerate(zip(self.stages, self.widths))
        )

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to (N, 1024 or 2048, H', W')."""
        x = self.maxpool(self.conv1(x))
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))


def _unit(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.SequentialCell:
    return nn.SequentialCell(
        convolution(in_channels, out_channels, kernel_size, stride), batch_norm(out_channels), nn.ReLU()
    )


_VARIANTS = {
    "shufflenet_v2_x0_5": (48, 96, 192, 1024),
    "shufflenet_v2_x1_0": (116, 232, 464, 1024),
    "shufflenet_v2_x1_5": (176, 352, 704, 1024),
    "shufflenet_v2_x2_0": (244, 488, 976, 2048),
}
for _name, _widths in _VARIANTS.items():
    register_model(_name, partial(ShuffleNetV2, _widths))
