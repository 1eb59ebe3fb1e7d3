"""MobileNetV2 (Sandler et al., CVPR 2018) in torchvision's arrangement, with any pooling (Wang et al., CVPR 2020)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Sequence

import mindspore as ms
from mindspore import nn
from mindspore.common.initializer import Normal, initializer

from covpool.models.blocks import NetworkBlock
from covpool.models.classifier import ImageClassifier, batch_norm, convolution, is_small_stem
from covpool.models.features import FeatureInfo, Stage
from covpool.models.registry import register_model

# Of each group of blocks: expansion, channels, number of blocks, stride of the first.
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

_ENDS = (1, 3, 6, 13, 17)  # the last block at each size of the maps


def scaled(channels: int, width_mult: float) -> int:
    """Channels of a network of another width: a multiple of 8, and not less than nine tenths of the exact number."""
    exact = channels * width_mult
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _unit(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.SequentialCell:
    return nn.SequentialCell(
        convolution(in_channels, out_channels, kernel_size, stride, groups), batch_norm(out_channels), nn.ReLU6()
    )


class InvertedResidual(NetworkBlock):
    """1x1 convolution to more channels, depthwise 3x3, 1x1 without activation, and a shortcut where shapes are equal.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        cells = [_unit(in_channels, hidden, 1)] if expansion != 1 else []
        cells += [_unit(hidden, hidden, 3, stride, hidden), convolution(hidden, out_channels, 1)]
        self.conv = nn.SequentialCell(*cells, batch_norm(out_channels))
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.conv(x)
        return x + self.path(y) if self.has_shortcut else y


class MobileNetV2(ImageClassifier):
    """Inverted residuals with any pooling of the registry; strides are the same with every pooling.

    The reduction ends with ReLU6. In training a fifth of the pooled vector is dropped before the classifier.

    Args:
        base_mult: Factor of all channels, that of the network's name.
        pooling: A name of ``list_poolings()``.
        reduction_dim: Channels that enter a covariance head.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.
        stem: 'imagenet', or 'small' for 28-64 pixel images: stride 1 in the first convolution and in ``features.2``.
        width_mult: Another factor of all channels, which are then rounded to multiples of 8.
        dropout: Probability that an entry of the pooled vector is dropped.
    """

    stages = tuple(f"features.{index}" for index in _ENDS)
    reduction_activation = nn.ReLU6

    def __init__(
        self,
        base_mult: float,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        stem: str = "imagenet",
        width_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        small = is_small_stem(stem, in_channels)
        if not 0 < width_mult <= 16:
            raise ValueError(f"width_mult must be above 0 and at most 16, not {width_mult}")
        width = width_mult * base_mult
        channels = scaled(32, width)
        cells: list[nn.Cell] = [_unit(in_channels, channels, 3, 1 if small else 2)]
        self.widths, self.strides = [channels], [1 if small else 2]
        for expansion, group_channels, blocks, first_stride in _BLOCKS:
            for index in range(blocks):
                stride = first_stride if index == 0 and not (small and len(cells) == 2) else 1
                cells.append(InvertedResidual(channels, scaled(group_channels, width), stride, expansion))
                channels = scaled(group_channels, width)
                self.widths.append(channels)
                self.strides.append(stride)
        last = scaled(1280, max(1.0, width))
        self.features = nn.SequentialCell(*cells, _unit(channels, last, 1))
        self.build_head(last, pooling, reduction_dim, num_classes, pooling_args)
        self.set_drop_rate(dropout)

    def reset_classifier(self, num_classes: int) -> None:
        """As in the base; weights are normal with standard deviation 0.01, biases 0."""
        super().reset_classifier(num_classes)
        if num_classes:
            self.fc.weight.set_data(initializer(Normal(0.01), self.fc.weight.shape))
            self.fc.bias.set_data(initializer("zeros", self.fc.bias.shape))

    def stage_info(self) -> FeatureInfo:
        """Name, channels and reduction of the last block at each size."""
        return FeatureInfo(
            Stage(name, self.widths[end], math.prod(self.strides[: end + 1])) for name, end in zip(self.stages, _ENDS)
        )

    def keep_features(self, out_indices: Sequence[int] | None = None) -> None:
        """As in the base; the blocks after the last of these stages are removed."""
        super().keep_features(out_indices)
        del self.features[_ENDS[self.stages.index(self.feature_info[-1].name)] + 1 :]

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to (N, 1280 or more, H', W')."""
        return self.features(x)

    def forward_stages(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Images (N, in_channels, H, W) to the maps of the stages that are there."""
        maps: tuple[ms.Tensor, ...] = ()
        for index in range(len(self.features)):
            x = self.features[index](x)
            if index in _ENDS:
                maps += (x,)
        return maps


# MindCV's names: hundredths of the width.
for _percent in (35, 50, 75, 100, 130, 140):
    register_model(f"mobilenet_v2_{_percent:03d}", partial(MobileNetV2, _percent / 100))
