"""What all pooling cells share: output width, float32 at every mixed-precision level, checks of arguments."""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import mindspore as ms
from mindspore import nn, ops
from mindspore.rewrite.common import namespace


class Float32Cell(nn.Cell):
    """A cell that computes in float32 whatever the mixed-precision level of the network around it.

    A sum of products over many positions easily leaves the range of float16. MindSpore's levels O2 and O3 set flags on
    all children of a network, and `auto` obeys them: here the flags stay at float32, and only the input is cast. Level
    O1 inserts casts into the source of cells: these cells are exempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_flags(fp16=False, bf16=False, fp32=True)
        # The list has no public access; without the attribute this MindSpore has no such rewriting.
        exempt = getattr(namespace, "_subtree_black_list", None)
        if exempt is not None and Float32Cell not in exempt:
            exempt.append(Float32Cell)

    def add_flags_recursive(self, **flags: Any) -> nn.Cell:
        """Pass flags on to the children, those of the precision excepted."""
        if any(key in flags for key in ("fp16", "bf16", "fp32")):
            flags.update(fp16=False, bf16=False, fp32=True)
        return super().add_flags_recursive(**flags)


class Pooling(Float32Cell):
    """Base of all poolings: `(N, channels, H, W) -> (N, out_features)`, float32.

    Args:
        channels: Number of channels of the feature maps.
        out_features: Length of the pooled vector.

    Raises:
        ValueError: An argument of a pooling is outside its range.
        TypeError: An argument of a pooling has the wrong type.
    """

    def __init__(self, channels: int, out_features: int) -> None:
        super().__init__()
        self.channels = channels
        self.out_features = out_features

    def extend_repr(self) -> str:
        """What `print(cell)` shows."""
        return f"channels={self.channels}, out_features={self.out_features}"


def check_int(name: str, value: object, low: int, high: Optional[int] = None) -> int:
    """The value, if it is an integer in [low, high].

    Raises:
        TypeError: Not an integer.
        ValueError: Outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {_range_text(low, high)}, not {value}.")
    return value


def check_float(
    name: str, value: object, low: float, high: float = math.inf, low_open: bool = False, high_open: bool = False
) -> float:
    """The value as float, if it is a number between low and high (open ends exclude the bound).

    Raises:
        TypeError: Not a number.
        ValueError: Outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    below = value <= low if low_open else value < low
    above = value >= high if high_open else value > high
    if below or above or not math.isfinite(value):
        upper = "" if math.isinf(high) else f" and {'<' if high_open else '<='} {high:g}"
        raise ValueError(f"{name} must be {'>' if low_open else '>='} {low:g}{upper}, not {value}.")
    return float(value)


def check_bool(name: str, value: object) -> bool:
    """The value, if it is a bool.

    Raises:
        TypeError: Not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> str:
    """The value, if it is one of the choices.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def row_sums(x: ms.Tensor, factor: float = 1.0) -> ms.Tensor:
    """Sums over the last axis times a factor, `(R, K) -> (R, 1)`.

    On CPU this product is up to 30 times faster than a reduction over an inner axis.
    """
    return ops.matmul(x, ops.full((x.shape[-1], 1), factor, dtype=x.dtype))


def repeat_columns(x: ms.Tensor, columns: int) -> ms.Tensor:
    """`(R, 1) -> (R, columns)`, as a product, which is faster than a broadcast on CPU."""
    return ops.matmul(x, ops.ones((1, columns), x.dtype))


def _range_text(low: int, high: Optional[int]) -> str:
    return f">= {low}" if high is None else f"between {low} and {high}"
