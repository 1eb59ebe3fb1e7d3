"""The one way to make a network: by its name."""

from __future__ import annotations

import fnmatch
import inspect
from pathlib import Path
from typing import Any, Callable, Sequence

from mindspore import nn

from covpool.checkpoints.conversion import read_weights, start_from
from covpool.models.blocks import add_drop_path
from covpool.models.mindcv_network import MINDCV, mindcv_builder
from covpool.registry import Registry

_MODELS: Registry[Callable[..., nn.Cell]] = Registry("model")
_COMMON = frozenset(("pooling", "reduction_dim", "num_classes", "pooling_args"))


def register_model(name: str, builder: Callable[..., nn.Cell]) -> None:
    """Make ``builder(pooling=, reduction_dim=, num_classes=, pooling_args=, ...)`` known under ``name``."""
    _MODELS.add(name, builder)


def list_models(pattern: str = "*") -> list[str]:
    """Names that :func:`create_model` knows, sorted; `pattern` as in file names: ``list_models("resnet1*")``.

    Those of MindCV are not among them: ``mindcv.list_models()`` has them, and "mindcv/" goes before the name.
    """
    return fnmatch.filter(_MODELS.names(), pattern)


def model_arguments(name: str) -> frozenset[str]:
    """What :func:`create_model` takes for a network besides what all take, such as ``in_channels``.

    Raises:
        UnknownNameError: No such model; the message lists the nearest names.
        UserError: MindCV is missing.
    """
    return frozenset(inspect.signature(_builder(name)).parameters) - _COMMON


def _builder(name: str) -> Callable[..., nn.Cell]:
    return mindcv_builder(name) if str(name).startswith(MINDCV) else _MODELS.get(name)


def create_model(
    name: str,
    pooling: str = "dropcov",
    reduction_dim: int = 128,
    num_classes: int = 1000,
    pooling_args: dict[str, Any] | None = None,
    pretrained: str | Path | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float = 0.0,
    **model_args: Any,
) -> nn.Cell:
    """Make a network, with freshly initialised weights (drawn from MindSpore's global seed) or with those of a file.

    Args:
        name: One of :func:`list_models`, or "mindcv/" and a name of MindCV (an optional package).
        pooling: One of ``covpool.pooling.list_poolings()``.
        reduction_dim: Channels after the reduction that precedes a covariance head; unused with 'gap'.
        num_classes: Outputs of the classifier; 0 for none: the network then gives the pooled vector.
        pooling_args: Arguments of the pooling, as ``create_pooling`` takes them.
        pretrained: A file of weights that ``covpool.checkpoints`` reads: a checkpoint of this project or of the
            released code of PyTorch, Paddle or MindSpore, a network of torchvision. A classifier of other classes is
            left out, and a covariance network takes the backbone alone from a plain one. One line of the log says what
            was taken, see ``covpool.checkpoints.start_from``.
        features_only: Give a tuple of the maps of stages, without reduction, pooling and classifier. The attribute
            ``feature_info`` tells their names, channels and reductions.
        out_indices: With ``features_only``, which stages: 0 for the first, 1 to 4; all by default.
        drop_rate: Probability, below 1, that an entry of what the classifier gets is dropped in training; None for the
            network's own: 0.2 of MobileNetV2, 0 of the others.
        drop_path_rate: Stochastic depth, below 1: how often the path of the last block is left out for an image in
            training; it rises linearly from 0 at the first block. Each image has its own draw.
        **model_args: What the network takes besides: ``in_channels``, ``stem``, ``base_width`` for ResNets,
            ``in_channels``, ``stem``, ``width_mult``, ``dropout`` for MobileNetV2,
            ``in_channels``, ``image_size``, ``embed_dim`` and others for transformers.

    Returns:
        A cell (N, in_channels, H, W) -> logits (N, num_classes), with ``forward_features`` and ``forward_head``.

    Raises:
        UnknownNameError: No such model or pooling; the message lists the nearest names.
        TypeError: An argument that the network does not take.
        ValueError: An argument out of range.
        UserError: The file cannot be read, or does not fit the network; MindCV is missing.
    """
    if isinstance(pretrained, bool):
        raise TypeError("pretrained must be a file of weights: none are shipped with this package")
    if out_indices is not None and not features_only:
        raise ValueError("out_indices needs features_only=True")
    if drop_rate is not None and "dropout" in model_args:
        raise ValueError("drop_rate and dropout are one thing here: give one of them")
    builder = _builder(name)
    known = inspect.signature(builder).parameters
    unknown = sorted(set(model_args) - set(known))
    if unknown:
        raise TypeError(f"model {name!r} does not take {', '.join(unknown)}; it takes {', '.join(known)}")
    network = builder(
        pooling=pooling,
        reduction_dim=reduction_dim,
        num_classes=num_classes,
        pooling_args=pooling_args,
        **model_args,
    )
    if drop_rate is not None and (drop_rate or network.drops):
        network.set_drop_rate(drop_rate)
    if drop_path_rate:
        add_drop_path(network, drop_path_rate)
    if pretrained is not None:
        start_from(network, read_weights(Path(pretrained)))
    if features_only:
        network.keep_features(out_indices)
    return network
