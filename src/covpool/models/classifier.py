"""What every network here shares: features -> reduction -> pooling -> one dense layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import mindspore as ms
from mindspore import nn
from mindspore.common.initializer import HeNormal, HeUniform, Uniform

from covpool.pooling import create_pooling, pooling_info


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded symmetrically by ``kernel_size // 2``, Kaiming normal over fan-out.

    Explicit padding, not MindSpore's 'same': that pads a stride-2 convolution on one side only, which no released
    weight fits.
    """
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode="pad",
        padding=kernel_size // 2,
        group=groups,
        has_bias=False,
        weight_init=HeNormal(mode="fan_out", nonlinearity="relu"),
    )


def batch_norm(channels: int, zero_init: bool = False) -> nn.BatchNorm2d:
    """Batch normalisation with eps 1e-5; MindSpore's momentum 0.9 is PyTorch's 0.1 (the part that is kept)."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.9, gamma_init=0.0 if zero_init else 1.0)


class ImageClassifier(nn.Cell, ABC):
    """Base of the networks. A subclass builds its backbone, then calls :meth:`build_head`.

    Parameter names are those of the released checkpoints: ``layer_reduce``, ``layer_reduce_bn``, ``pooling``, ``fc``.

    Attributes:
        num_features: Channels of ``forward_features``, which are what enters the pooling.
        num_classes: Outputs of the classifier.
        conventions: What the network's parameters do not tell, see :meth:`set_conventions`.
    """

    num_features: int
    num_classes: int
    conventions: str = "torchvision"

    def set_conventions(self, name: str) -> None:
        """Compute by the conventions of other code, whose weights the network holds.

        Raises:
            ValueError: Conventions that this network does not know.
        """
        if name != self.conventions:
            raise ValueError(f"conventions must be {self.conventions!r}, not {name!r}")

    def build_head(
        self, channels: int, pooling: str, reduction_dim: int, num_classes: int, pooling_args: dict[str, Any] | None
    ) -> None:
        """Add reduction (for covariance heads), pooling and classifier after ``channels`` feature maps."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.has_reduction = pooling_info(pooling).is_covariance
        if self.has_reduction:
            if reduction_dim < 1:
                raise ValueError(f"reduction_dim must be at least 1, not {reduction_dim}")
            self.layer_reduce = convolution(channels, reduction_dim, 1)
            self.layer_reduce_bn = batch_norm(reduction_dim)
            self.layer_reduce_relu = nn.ReLU()
            channels = reduction_dim
        self.num_features = channels
        self.num_classes = num_classes
        self.pooling = create_pooling(pooling, channels=channels, **(pooling_args or {}))
        width = self.pooling.out_features
        # PyTorch's default for dense layers: both uniform within 1 / sqrt(fan_in).
        self.fc = nn.Dense(
            width,
            num_classes,
            weight_init=HeUniform(negative_slope=math.sqrt(5)),
            bias_init=Uniform(1 / math.sqrt(width)),
        )

    # Type checkers find a subclass without it; Python does not, since C++ allocates a Cell.
    @abstractmethod
    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to the last stage's feature maps."""

    def forward_features(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to what enters the pooling, (N, num_features, H', W')."""
        x = self.forward_backbone(x)
        if self.has_reduction:
            x = self.layer_reduce_relu(self.layer_reduce_bn(self.layer_reduce(x)))
        return x

    def forward_head(self, x: ms.Tensor, pre_logits: bool = False) -> ms.Tensor:
        """Feature maps (N, num_features, H', W') to logits (N, num_classes).

        With ``pre_logits`` to the pooled vector, (N, pooling.out_features), which enters the classifier.
        """
        x = self.pooling(x)
        return x if pre_logits else self.fc(x)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))
