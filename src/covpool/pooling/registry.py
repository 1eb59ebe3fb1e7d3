"""Poolings by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, List, Type

from covpool.pooling.base import Pooling, check_int
from covpool.registry import Registry


@dataclasses.dataclass(frozen=True)
class PoolingInfo:
    """What is known of a pooling without building it.

    Attributes:
        name: Registered name.
        cell: The class; its constructor takes `channels` and the pooling's own arguments.
        is_covariance: Whether it is a second-order pooling: networks then keep stage 4 at stride 1 and reduce the
            channels before it.
        rate_factor: By how much its best learning rate differs from that of global average pooling.
        summary: First line of the class's docstring.
        arguments: Names of the arguments besides `channels`.
    """

    name: str
    cell: Type[Pooling]
    is_covariance: bool
    rate_factor: float
    summary: str
    arguments: List[str]


_REGISTRY: Registry[PoolingInfo] = Registry("pooling")


def register_pooling(name: str, cell: Type[Pooling], is_covariance: bool = True, rate_factor: float = 1.0) -> None:
    """Make a pooling available under a name.

    ``rate_factor`` multiplies the learning rate where a configuration says ``lr_factor: auto``.

    Raises:
        ValueError: The name is taken.
    """
    arguments = [p for p in inspect.signature(cell.__init__).parameters if p not in ("self", "channels")]
    summary = (cell.__doc__ or "").strip().split("\n")[0]
    _REGISTRY.add(name, PoolingInfo(name, cell, is_covariance, rate_factor, summary, arguments))


def list_poolings() -> List[str]:
    """Names of all poolings."""
    return _REGISTRY.names()


def pooling_info(name: str) -> PoolingInfo:
    """What is known of a pooling.

    Raises:
        UnknownNameError: No pooling has this name.
    """
    return _REGISTRY.get(name)


def create_pooling(name: str, channels: int, **args: Any) -> Pooling:
    """Build a pooling, `(N, channels, H, W) -> (N, cell.out_features)` in float32.

    Args:
        name: One of :func:`list_poolings`.
        channels: Number of channels of the feature maps.
        **args: Arguments of the pooling, see its class.

    Raises:
        UnknownNameError: No pooling has this name.
        ValueError: An argument is unknown to this pooling or outside its range.
        TypeError: An argument has the wrong type.
    """
    info = pooling_info(name)
    unknown = [key for key in args if key not in info.arguments]
    if unknown:
        allowed = ", ".join(info.arguments) or "none"
        raise ValueError(f"Pooling {name!r} has no argument {', '.join(map(repr, unknown))}; its arguments: {allowed}.")
    return info.cell(check_int("channels", channels, 1), **args)
