"""ResNet v1 (He et al., CVPR 2016) in the torchvision arrangement: the stride is on a bottleneck's 3x3 convolution."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from covpool.models.blocks import NetworkBlock
from covpool.models.classifier import ImageClassifier, MaxPool, batch_norm, convolution, is_small_stem
from covpool.models.features import FeatureInfo, Stage
from covpool.models.registry import register_model
from covpool.pooling import pooling_info

CONVENTIONS = ("torchvision", "model_zoo")
_IN_BACKBONE = re.compile(r"conv1$|bn1$|layer\d\.")
_IN_BASIC_BLOCK = re.compile(r"layer\d\.\d+\.bn\d$")


class BasicBlock(NetworkBlock):
    """Two 3x3 convolutions and a shortcut: (N, in_channels, H, W) -> (N, channels, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = batch_norm(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = batch_norm(channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, channels, stride)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.path(self.bn2(self.conv2(y)))
        return self.relu(y + self.downsample(x))


class Bottleneck(NetworkBlock):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (N, in_channels, H, W) -> (N, 4 channels, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = batch_norm(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.bn2 = batch_norm(channels)
        self.conv3 = convolution(channels, out_channels, 1)
        self.bn3 = batch_norm(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.path(self.bn3(self.conv3(y)))
        return self.relu(y + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Cell:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.SequentialCell(convolution(in_channels, out_channels, 1, stride), batch_norm(out_channels))


def _set_eps(norm: nn.BatchNorm2d, eps: float) -> None:
    norm.eps = eps
    norm.bn_train = ops.BatchNorm(is_training=True, epsilon=eps, momentum=norm.momentum, data_format=norm.format)
    norm.bn_infer = ops.BatchNorm(is_training=False, epsilon=eps, data_format=norm.format)


def _set_padding(convolution: nn.Conv2d, same: bool) -> None:
    convolution.pad_mode = "same" if same else "pad"
    convolution.padding = 0 if same else convolution.kernel_size[0] // 2
    convolution.conv2d = ops.Conv2D(
        convolution.out_channels,
        convolution.kernel_size,
        pad_mode=convolution.pad_mode,
        pad=convolution.padding,
        stride=convolution.stride,
        dilation=convolution.dilation,
        group=convolution.group,
        data_format=convolution.data_format,
    )


class ResNet(ImageClassifier):
    """A residual network with any pooling of the registry.

    Stage 4 keeps stride 1 before a covariance head (14x14 positions at 224 input: a covariance needs them) and has
    stride 2 otherwise.

    Args:
        block: BasicBlock or Bottleneck.
        layers: Number of blocks of each stage.
        pooling: A name of ``list_poolings()``.
        reduction_dim: Channels that enter a covariance head.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.
        stem: 'imagenet' (7x7 stride 2, then 3x3 max-pool stride 2) or 'small' (3x3 stride 1) for 28-64 pixel images.
        base_width: Channels of stage 1; the later stages have 2, 4 and 8 times as many.
        conventions: See :meth:`set_conventions`.
    """

    stages = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        stem: str = "imagenet",
        base_width: int = 64,
        conventions: str = "torchvision",
    ) -> None:
        super().__init__()
        self.small_stem = is_small_stem(stem, in_channels)
        if base_width < 1:
            raise ValueError(f"base_width must be at least 1, not {base_width}")
        self.conv1 = convolution(in_channels, base_width, *((3, 1) if self.small_stem else (7, 2)))
        self.bn1 = batch_norm(base_width)
        self.relu = nn.ReLU()
        self.maxpool = MaxPool()

        last_stride = 1 if pooling_info(pooling).is_covariance else 2
        channels = base_width
        for stage, (blocks, stride) in enumerate(zip(layers, (1, 2, 2, last_stride))):
            width = base_width * 2**stage
            cells = []
            for index in range(blocks):
                cells.append(block(channels, width, stride if index == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.SequentialCell(cells))
        self.build_head(channels, pooling, reduction_dim, num_classes, pooling_args)
        self.bottlenecks = block is Bottleneck
        self.expansion, self.last_stride = block.expansion, last_stride
        self.set_conventions(conventions)

    def set_conventions(self, name: str) -> None:
        """Compute as the code whose weights the network holds; parameters stay as they are.

        'torchvision': eps 1e-5, padding on both sides. 'model_zoo': as MindSpore's model zoo, and the public ports
        that took it over. There eps is 1e-4 in the two normalisations of a basic block; in networks of bottlenecks it
        is 1e-4 in stem, blocks and shortcuts, and padding is 'same', which at stride 2 pads an even image on the right
        and at the bottom alone. The reduction is the same in both.

        Raises:
            ValueError: Other conventions.
        """
        if name not in CONVENTIONS:
            raise ValueError(f"conventions must be {' or '.join(map(repr, CONVENTIONS))}, not {name!r}")
        if name == self.conventions:
            return
        self.conventions = name
        other = name == "model_zoo"
        for path, cell in self.cells_and_names():
            if not (_IN_BACKBONE if self.bottlenecks else _IN_BASIC_BLOCK).match(path):
                continue
            if isinstance(cell, nn.BatchNorm2d):
                _set_eps(cell, 1e-4 if other else 1e-5)
            elif isinstance(cell, nn.Conv2d) and self.bottlenecks and cell.stride != (1, 1):
                _set_padding(cell, same=other)
        if self.bottlenecks:
            self.maxpool = MaxPool(same=other)
        for _, cell in self.cells_and_names():
            cell.compile_cache.clear()

    def stage_info(self) -> FeatureInfo:
        """Name, channels and reduction of stem and stages."""
        widths = (self.conv1.out_channels, *(self.conv1.out_channels * self.expansion * 2**i for i in range(4)))
        strides = (1, 1, 2, 2, self.last_stride) if self.small_stem else (2, 2, 2, 2, self.last_stride)
        return FeatureInfo(
            Stage(name, width, math.prod(strides[: index + 1]))
            for index, (name, width) in enumerate(zip(self.stages, widths))
        )

    def forward_stem(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to the input of stage 1, (N, base_width, H', W')."""
        x = self.bn1(self.conv1(x))
        if not self.small_stem:
            x = self.maxpool(x)  # before the ReLU: the same values, on a quarter of the positions
        return self.relu(x)

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to (N, 8 * base_width * expansion, H', W')."""
        x = self.forward_stem(x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward_stages(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Images (N, in_channels, H, W) to the maps of the stages that are there; that of the stem is not pooled."""
        x = self.relu(self.bn1(self.conv1(x)))
        maps: tuple[ms.Tensor, ...] = (x,)
        if not self.small_stem:
            x = self.maxpool(x)
        last = len(self.stages) if self.out_indices is None else self.out_indices[-1] + 1
        for name in self.stages[1:last]:
            x = getattr(self, name)(x)
            maps += (x,)
        return maps


_VARIANTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
for _name, (_block, _layers) in _VARIANTS.items():
    register_model(_name, partial(ResNet, _block, _layers))
