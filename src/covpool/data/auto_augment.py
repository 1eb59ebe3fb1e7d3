"""Random operations on single images, by Pillow: colour jitter, RandAugment, TrivialAugment.

Each is a function of an image, of random numbers in [0, 1) drawn beforehand, and of the colour that fills what a
rotated, sheared or shifted image leaves empty.

Sources:
    E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search
    Space", CVPR Workshops 2020, with the operations, magnitudes and strings of timm.
    S. G. Mueller, F. Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021, as
    torchvision's ``TrivialAugmentWide`` with bilinear interpolation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from covpool.errors import UserError

Fill = tuple[int, ...]  # a colour: one value for gray images, three for others
# Changes an image, which is RGB or gray, as its random numbers say.
Change = Callable[[Image.Image, Sequence[float], Fill], Image.Image]

_BINS = 31  # magnitudes of TrivialAugment
_JITTERED = ("Brightness", "Contrast", "Color")
_ORDERS = tuple(itertools.permutations(_JITTERED))
_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY")
# Those of RandAugment in timm's order, those of TrivialAugment in torchvision's.
OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", *_MOVES),
)
TRIVIAL = (
    *("Identity", *_MOVES, "Rotate", "Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"),
    *("AutoContrast", "Equalize"),
)
_ENHANCERS: dict[str, Any] = {name: getattr(ImageEnhance, name) for name in (*_JITTERED, "Sharpness")}
_WHOLE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
}
# What becomes of each value of a pixel. Pillow 13 refuses to keep 0 bits, which timm asks for at magnitude 10.
_TABLES: dict[str, Callable[[int, float], int]] = {
    "Invert": lambda pixel, _: 255 - pixel,
    "Posterize": lambda pixel, bits: pixel & ~((1 << (8 - int(bits))) - 1),
    "Solarize": lambda pixel, threshold: pixel if pixel < threshold else 255 - pixel,
    "SolarizeAdd": lambda pixel, added: min(255, pixel + int(added)) if pixel < 128 else pixel,
}
# Where a pixel comes from, a to f of (a x + b y + c, d x + e y + f); the value stands in place of None.
_AFFINE = {
    "ShearX": (1, None, 0, 0, 1, 0),
    "ShearY": (1, 0, 0, None, 1, 0),
    "TranslateX": (1, 0, None, 0, 1, 0),
    "TranslateY": (1, 0, 0, 0, 1, None),
}
# What timm's RandAugment makes of a magnitude, as a share of 10, and a sign; a translation is a part of the side.
_VALUES: dict[str, Callable[[float, int], float]] = {
    "Rotate": lambda share, sign: sign * (share * 30),
    "Posterize": lambda share, sign: int(share * 4),
    "Solarize": lambda share, sign: min(256, int(share * 256)),
    "SolarizeAdd": lambda share, sign: min(128, int(share * 110)),
    **dict.fromkeys(_ENHANCERS, lambda share, sign: share * 1.8 + 0.1),
    **dict.fromkeys(("ShearX", "ShearY"), lambda share, sign: sign * (share * 0.3)),
    **dict.fromkeys(("TranslateX", "TranslateY"), lambda share, sign: sign * (share * 0.45)),
}
_INCREASING: dict[str, Callable[[float, int], float]] = {
    **_VALUES,
    "Posterize": lambda share, sign: 4 - int(share * 4),
    "Solarize": lambda share, sign: 256 - min(256, int(share * 256)),
    **dict.fromkeys(_ENHANCERS, lambda share, sign: max(0.1, 1 + sign * (share * 0.9))),
}
# The greatest magnitudes of TrivialAugment that have a sign.
_GREATEST = {"TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0}
_TEXT = re.compile(
    r"rand(?!.*-([a-z]+)\d.*-\1\d)"  # no part twice
    r"(-(m\d\d?|n[1-9]|p(0(\.\d+)?|1(\.0)?)|mstd\d{1,3}(\.\d+)?|mmax[1-9]\d?|inc[01]))*"
)


def color_jitter(image: Image.Image, draws: Sequence[float], fill: Fill, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation in random order, by factors uniform in 1 - strength to 1 + strength.

    ``draws``: the order, then the three factors; ``fill`` is not needed.
    """
    factors = {name: 1 + strength * (2 * draw - 1) for name, draw in zip(_JITTERED, draws[1:])}
    for name in _ORDERS[int(draws[0] * len(_ORDERS))]:
        image = apply_operation(image, name, factors[name], fill)
    return image


def trivial_augment(image: Image.Image, draws: Sequence[float], fill: Fill) -> Image.Image:
    """Apply one random operation at one of 31 magnitudes, as torchvision's ``TrivialAugmentWide``.

    ``draws``: operation, magnitude, sign. Black fills what is left empty, whatever ``fill``.
    """
    name = TRIVIAL[int(draws[0] * len(TRIVIAL))]
    value = trivial_value(name, int(draws[1] * _BINS), 1 if draws[2] < 0.5 else -1)
    return apply_operation(image, name, value, (0,) * len(fill))


def trivial_value(name: str, step: int, sign: int) -> float:
    """What an operation of TrivialAugment takes at a magnitude, 0 to 30, and a sign, 1 or -1."""
    if name == "Posterize":
        return 8 - round(step / 5)
    if name == "Solarize":
        return 255 - 8.5 * step
    # In float32 and from both ends, as torch.linspace: Pillow cuts off fractions, so the last bit shows.
    greatest = np.float32(_GREATEST.get(name, 0.99))
    width = float(greatest / np.float32(_BINS - 1))
    magnitude = np.float32(width * step if step < _BINS // 2 else float(greatest) - width * (_BINS - 1 - step))
    value = sign * float(magnitude)
    if name.startswith("Translate"):
        return -int(value)
    return 1 + value if name in _ENHANCERS else value


def rand_augment(
    image: Image.Image,
    draws: Sequence[float],
    fill: Fill,
    m: float = 10,
    p: float = 0.5,
    mstd: float = 0,
    mmax: float = 10,
    inc: bool = False,
) -> Image.Image:
    """Apply random operations one after the other, as timm's RandAugment with bilinear interpolation.

    ``draws``: for each operation which one, whether, magnitude, sign.

    Args:
        image: RGB or gray.
        draws: In [0, 1), four for each operation.
        fill: Colour of what is left empty.
        m: Magnitude, 10 for the greatest.
        p: Probability of each operation.
        mstd: Standard deviation of the magnitude; more than 100 for uniform in 0 to m.
        mmax: Greatest magnitude.
        inc: Whether all operations grow stronger with the magnitude.
    """
    for which, whether, spread, sign in zip(*[iter(draws)] * 4):
        if whether >= p:
            continue
        magnitude = m
        if mstd > 100:
            magnitude = spread * m
        elif mstd > 0:
            magnitude = NormalDist(m, mstd).inv_cdf(spread + 2**-25)  # the draws are multiples of 2^-24, from 0 on
        name = OPERATIONS[int(which * len(OPERATIONS))]
        values = _INCREASING if inc else _VALUES
        value = values[name](max(0.0, min(magnitude, mmax)) / 10, 1 if sign < 0.5 else -1) if name in values else 0
        if name.startswith("Translate"):
            value *= image.size["XY".index(name[-1])]
        image = apply_operation(image, name, value, fill)
    return image


def auto_augment(text: str) -> tuple[Change, int]:
    """What a text such as ``rand-m9-mstd0.5-inc1`` or ``trivial`` means, and how many random numbers it takes.

    UserError: it means nothing.
    """
    if text == "trivial":
        return trivial_augment, 3
    if not _TEXT.fullmatch(text):
        raise UserError(
            f"auto_augment = {text!r}: must be trivial, or rand and any of -m9 (0 to 99), -n2 (1 to 9), "
            "-p0.5 (0 to 1), -mstd0.5 (0 to 999), -mmax10 (1 to 99), -inc1 (0 or 1)"
        )
    parts: dict[str, Any] = {name: float(number) for name, number in re.findall(r"-([a-z]+)([\d.]+)", text)}
    layers = int(parts.pop("n", 2))
    return partial(rand_augment, **parts), 4 * layers


def apply_operation(image: Image.Image, name: str, value: float, fill: Fill) -> Image.Image:
    """Apply one of ``OPERATIONS``, or ``Identity``, to an RGB or gray image.

    ``value``: degrees, pixels, shift per pixel (shear), factor, threshold, bits to keep, or what is added.
    """
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(value)
    if name in _AFFINE:
        matrix = [value if entry is None else entry for entry in _AFFINE[name]]
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
    if name == "Rotate":
        return image.rotate(value, Image.Resampling.BILINEAR, fillcolor=fill)
    if name in _TABLES:
        return image.point([_TABLES[name](pixel, value) for pixel in range(256)] * len(image.getbands()))
    return _WHOLE[name](image) if name in _WHOLE else image
