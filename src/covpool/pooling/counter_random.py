"""Uniform random numbers as a pure function of a seed, a step counter and the place of the element.

MindSpore's random kernels keep their state inside the kernel, where no checkpoint reaches it. Here the only state is a
counter, a parameter that is saved and restored with the network, so a resumed run draws what the unbroken one would.
"""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
from mindspore import ops

from covpool.pooling.base import Float32Cell, check_float

# Odd multipliers of the "lowbias32" integer hash (C. Wellons, "Prospecting for Hash Functions", 2018), and the odd
# integer nearest to 2^32 / golden ratio for the counter; all as signed 32-bit values, products wrap around.
_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)


class CounterUniform(Float32Cell):
    """Uniform float32 in [0, 1) of shape `(n, d)`, other numbers at every call.

    Every place has a random integer of its own, drawn once from the seed. Two rounds of xor-shift and multiplication
    mix it with the counter, on 32-bit integers; the upper 24 bits are the result. Shifts are arithmetic, which saves an
    operator: a round then maps two inputs to one value, and the distribution stays the same. All operators exist on
    CPU, GPU and Ascend, in graph and PyNative mode.

    Attributes:
        seed: Python integer; set it before the first call (before compilation).
        counter: int32 parameter, the number of calls so far.

    Args:
        seed: First value of the attribute.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.counter = ms.Parameter(ms.Tensor(0, ms.int32), name="counter", requires_grad=False)

    def construct(self, n: int, d: int) -> ms.Tensor:
        return self.draw(n, d)

    def draw(self, n: int, d: int) -> ms.Tensor:
        """The next numbers."""
        h = ops.bitwise_xor(_table(self.seed, n, d), self.counter * _GOLDEN)
        ops.assign_add(self.counter, 1)
        h = ops.bitwise_xor(h, ops.bitwise_right_shift(h, 16)) * _MULTIPLIER_1
        h = ops.bitwise_xor(h, ops.bitwise_right_shift(h, 15)) * _MULTIPLIER_2
        return ops.bitwise_right_shift(h, 8).astype(ms.float32) * (2.0**-24) + 0.5


class Dropout(CounterUniform):
    """Dropout of vectors in training: `(N, d) -> (N, d)`, float32; kept entries are divided by 1 - rate.

    Args:
        rate: Probability that an entry becomes 0, in [0, 1).
        seed: First value of the attribute.
    """

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.rate = check_float("rate", rate, 0.0, 1.0, high_open=True)
        self.at_least = ops.GreaterEqual()

    def construct(self, x: ms.Tensor) -> ms.Tensor:  # type: ignore[override]
        if not self.training or self.rate == 0.0:
            return x
        return x * self.mask(x.shape[0], x.shape[1])

    def mask(self, n: int, d: int) -> ms.Tensor:
        """The next factors, `(n, d)`: 0 or 1 / (1 - rate)."""
        return self.at_least(self.draw(n, d), self.rate).astype(ms.float32) / (1.0 - self.rate)


class DropPath(Dropout):
    """Stochastic depth in training (Huang et al., ECCV 2016): what a path adds is left out for some of the images.

    `(N * length, ...) -> (N * length, ...)`, float32: `length` rows of an image share its fate. Kept ones are divided
    by 1 - rate, as in timm.
    """

    def construct(self, x: ms.Tensor, length: int = 1) -> ms.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        images = x.shape[0] // length
        return (x.reshape(images, -1) * self.mask(images, 1)).reshape(x.shape)


@functools.lru_cache(maxsize=16)
def _hashed_places(seed: int, n: int, d: int) -> np.ndarray:
    """int32 `(n, d)`: well mixed bits for every place, other ones for every seed."""
    return np.random.Generator(np.random.Philox(seed)).integers(-(2**31), 2**31, (n, d), dtype=np.int32)


@ms.ops.constexpr
def _table(seed: int, n: int, d: int) -> ms.Tensor:
    """The table of places as a constant of the compiled graph."""
    return ms.Tensor(_hashed_places(seed, n, d))
