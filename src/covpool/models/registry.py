"""The one way to make a network: by its name."""

from __future__ import annotations

import inspect
from typing import Any, Callable

from mindspore import nn

from covpool.registry import Registry

_MODELS: Registry[Callable[..., nn.Cell]] = Registry("model")


def register_model(name: str, builder: Callable[..., nn.Cell]) -> None:
    """Make ``builder(pooling=, reduction_dim=, num_classes=, pooling_args=, ...)`` known under ``name``."""
    _MODELS.add(name, builder)


def list_models() -> list[str]:
    """Names that :func:`create_model` knows, sorted."""
    return _MODELS.names()


def create_model(
    name: str,
    pooling: str = "dropcov",
    reduction_dim: int = 128,
    num_classes: int = 1000,
    pooling_args: dict[str, Any] | None = None,
    **model_args: Any,
) -> nn.Cell:
    """Make a network with freshly initialised weights (drawn from MindSpore's global seed).

    Args:
        name: One of :func:`list_models`.
        pooling: One of ``covpool.pooling.list_poolings()``.
        reduction_dim: Channels after the reduction that precedes a covariance head; unused with 'gap'.
        num_classes: Outputs of the classifier.
        pooling_args: Arguments of the pooling, as ``create_pooling`` takes them.
        **model_args: What the network takes besides: ``in_channels``, ``stem``, ``base_width`` for ResNets.

    Returns:
        A cell (N, in_channels, H, W) -> logits (N, num_classes), with ``forward_features`` and ``forward_head``.

    Raises:
        UnknownNameError: No such model or pooling; the message lists the nearest names.
        TypeError: An argument that the network does not take.
        ValueError: An argument out of range.
    """
    builder = _MODELS.get(name)
    known = inspect.signature(builder).parameters
    unknown = sorted(set(model_args) - set(known))
    if unknown:
        raise TypeError(f"model {name!r} does not take {', '.join(unknown)}; it takes {', '.join(known)}")
    return builder(
        pooling=pooling,
        reduction_dim=reduction_dim,
        num_classes=num_classes,
        pooling_args=pooling_args,
        **model_args,
    )
