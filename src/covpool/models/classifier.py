"""What every network here shares: features -> reduction -> pooling -> one dense layer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Sequence

import mindspore as ms
from mindspore import nn
from mindspore.common.initializer import HeNormal, HeUniform, Uniform

from covpool.models.features import FeatureInfo
from covpool.pooling import create_pooling, pooling_info
from covpool.pooling.counter_random import Dropout

_HEAD = ("layer_reduce", "layer_reduce_bn", "layer_reduce_relu", "pooling", "dropout", "fc")


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


def dense_classifier(width: int, num_classes: int) -> nn.Cell:
    """The last layer, (N, width) -> (N, num_classes), with PyTorch's initialisation; the identity for 0 classes.

    Raises:
        ValueError: A negative number of classes.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 1, or 0 for no classifier, not {num_classes}")
    if not num_classes:
        return nn.Identity()
    # Both uniform within 1 / sqrt(fan_in).
    start = {"weight_init": HeUniform(negative_slope=math.sqrt(5)), "bias_init": Uniform(1 / math.sqrt(width))}
    return nn.Dense(width, num_classes, **start)


class MaxPool(nn.Cell):
    """3x3 max-pooling with stride 2, as a 3D pool of depth 1: (N, C, H, W) -> (N, C, H / 2, W / 2).

    MindSpore's padded MaxPool2d computes indices that nobody reads and takes four times as long on CPU.

    Args:
        same: Pad as MindSpore's 'same', at the end alone where a side is even; otherwise on both sides.
    """

    def __init__(self, same: bool = False) -> None:
        super().__init__()
        padding: dict[str, Any] = {"pad_mode": "same"} if same else {"pad_mode": "pad", "padding": (0, 1, 1)}
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), **padding)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.pool(x.expand_dims(2)).squeeze(2)


def is_small_stem(stem: str, in_channels: int) -> bool:
    """Whether the first layers are those for images of 28 to 64 pixels.

    Raises:
        ValueError: Neither 'imagenet' nor 'small', or no channels.
    """
    if stem not in ("imagenet", "small"):
        raise ValueError(f"stem must be 'imagenet' or 'small', not {stem!r}")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, not {in_channels}")
    return stem == "small"


class ImageClassifier(nn.Cell, ABC):
    """Base of the networks. A subclass builds its backbone, then calls :meth:`build_head`.

    Parameter names are those of the released checkpoints: ``layer_reduce``, ``layer_reduce_bn``, ``pooling``, ``fc``.

    Attributes:
        num_features: Channels of ``forward_features``, which are what enters the pooling.
        num_classes: Outputs of the classifier; 0 without one.
        stages: Names of the stages of the backbone, in the order of computation; empty where it has none.
        after_stages: What the backbone computes after them.
        reduction_activation: Kind of cell at the end of the reduction.
        backbone_prefix: What the parameters of the backbone begin with, where their own code has no prefix.
        out_indices: Stages that are the output, see :meth:`keep_features`; None gives logits.
        feature_info: What these stages are.
        drops: Whether entries of the pooled vector are dropped before the classifier, see :meth:`set_drop_rate`.
        fixed_dropout: Whether the head has a dropout of its own that nothing else is added to.
        conventions: What the network's parameters do not tell, see :meth:`set_conventions`.
    """

    num_features: int
    num_classes: int
    stages: tuple[str, ...] = ()
    after_stages: tuple[str, ...] = ()
    reduction_activation: type[nn.Cell] = nn.ReLU
    backbone_prefix: str = ""
    out_indices: tuple[int, ...] | None = None
    feature_info: FeatureInfo
    drops: bool = False
    fixed_dropout: bool = False
    conventions: str = "torchvision"

    def set_conventions(self, name: str) -> None:
        """Compute by the conventions of other code, whose weights the network holds.

        Raises:
            ValueError: Conventions that this network does not know.
        """
        if name != self.conventions:
            raise ValueError(f"conventions must be {self.conventions!r}, not {name!r}")

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError unless the network takes images of this size; most take every size."""

    def build_head(
        self, channels: int, pooling: str, reduction_dim: int, num_classes: int, pooling_args: dict[str, Any] | None
    ) -> None:
        """Add reduction (for covariance heads), pooling and classifier after ``channels`` feature maps."""
        self.has_reduction = pooling_info(pooling).is_covariance
        if self.has_reduction:
            if reduction_dim < 1:
                raise ValueError(f"reduction_dim must be at least 1, not {reduction_dim}")
            self.layer_reduce = convolution(channels, reduction_dim, 1)
            self.layer_reduce_bn = batch_norm(reduction_dim)
            self.layer_reduce_relu = self.reduction_activation()
            channels = reduction_dim
        self.num_features = channels
        self.pooling = create_pooling(pooling, channels=channels, **(pooling_args or {}))
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier, drawn from MindSpore's global seed, in the place of the present one.

        Make the optimiser afterwards: one that was made before trains the old classifier.

        Args:
            num_classes: Outputs; 0 for none: the network then gives the pooled vector.

        Raises:
            ValueError: A negative number.
        """
        self.fc = dense_classifier(self.pooling.out_features, num_classes)
        self.num_classes = num_classes
        self.compile_cache.clear()

    def set_drop_rate(self, rate: float) -> None:
        """Drop entries of what the classifier gets, each with probability ``rate`` in [0, 1), in training.

        Raises:
            ValueError: Another rate, or a head with a dropout of its own.
        """
        if self.fixed_dropout:
            raise ValueError("drop_rate: the released head of this network has its own dropout")
        self.dropout = Dropout(rate)
        self.drops = True
        self.compile_cache.clear()

    def drop(self, x: ms.Tensor) -> ms.Tensor:
        """What a classifier gets, (N, d), with entries dropped where that is on."""
        if self.drops:
            x = self.dropout(x)
        return x

    def keep_features(self, out_indices: Sequence[int] | None = None) -> None:
        """Make the maps of stages the output; what comes after the last of them is removed.

        Args:
            out_indices: Indices into ``stages``, rising; all by default.

        Raises:
            ValueError: Other indices, or a network without stages.
        """
        if not self.stages:
            raise ValueError("this network has no stages that features_only could give, as the ResNets have")
        indices = tuple(range(len(self.stages)) if out_indices is None else out_indices)
        if not indices or list(indices) != sorted(set(indices) & set(range(len(self.stages)))):
            raise ValueError(f"out_indices must rise within 0 to {len(self.stages) - 1}, not {list(indices)}")
        info = self.stage_info()
        self.out_indices = indices
        self.feature_info = FeatureInfo(info[index] for index in indices)
        for name in (*self.stages[indices[-1] + 1 :], *self.after_stages, *_HEAD):
            if name in self.name_cells():
                delattr(self, name)
        self.compile_cache.clear()

    def stage_info(self) -> FeatureInfo:
        """Name, channels and reduction of every stage; empty where ``stages`` is."""
        return FeatureInfo()

    def forward_stages(self, x: ms.Tensor) -> tuple[ms.Tensor, ...]:
        """Images (N, in_channels, H, W) to the maps of the stages that are there."""
        maps: tuple[ms.Tensor, ...] = ()
        last = len(self.stages) if self.out_indices is None else self.out_indices[-1] + 1
        for name in self.stages[:last]:
            x = getattr(self, name)(x)
            maps += (x,)
        return maps

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

        With ``pre_logits``, or without a classifier, to the pooled vector, (N, pooling.out_features).
        """
        x = self.pooling(x)
        return x if pre_logits or self.num_classes == 0 else self.fc(self.drop(x))

    def construct(self, x: ms.Tensor) -> ms.Tensor | tuple[ms.Tensor, ...]:
        """Images (N, in_channels, H, W) to logits (N, num_classes), or to a tuple of the stages' maps."""
        if self.out_indices is not None:
            maps = self.forward_stages(x)
            return tuple([maps[index] for index in self.out_indices])
        return self.forward_head(self.forward_features(x))
