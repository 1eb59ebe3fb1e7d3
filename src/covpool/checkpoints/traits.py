"""What the parameters of a network tell about it, in words of the configuration."""

from __future__ import annotations

import re
from typing import Mapping, Union

Trait = Union[str, int, None]
Shapes = Mapping[str, tuple]

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")

_DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_STEMS = {7: "imagenet", 3: "small"}


def traits(shapes: Shapes) -> dict[str, Trait]:
    """Recognise a network by its MindSpore parameters.

    Args:
        shapes: Parameter name -> shape.

    Returns:
        What could be recognised: blocks and depth, base_width, in_channels, stem, reduction_dim (None without a
        reduction, as before global average pooling), learnable pooling parameters, classifier inputs and class_num.
    """
    found: dict[str, Trait] = {}
    blocks = sorted({(int(m[1]), int(m[2])) for m in map(_BLOCK.match, shapes) if m})
    if blocks:
        kind = "bottleneck" if any(name.endswith(".conv3.weight") for name in shapes) else "basic"
        stages = sorted({stage for stage, _ in blocks})
        depth = tuple(sum(1 for stage, _ in blocks if stage == s) for s in stages)
        name = _DEPTHS.get((kind, depth))
        found["net_name"] = f"{kind} blocks {depth}" + (f" ({name})" if name else "")
    if "conv1.weight" in shapes and len(shapes["conv1.weight"]) == 4:
        width, channels, kernel, _ = shapes["conv1.weight"]
        found["base_width"] = width
        found["in_channels"] = channels
        found["stem"] = _STEMS.get(kernel, f"{kernel}x{kernel}")
    found["reduction_dim"] = shapes["layer_reduce.weight"][0] if "layer_reduce.weight" in shapes else None
    found["pooling"] = _pooling([name for name in shapes if name.startswith("pooling.")])
    if "fc.weight" in shapes and len(shapes["fc.weight"]) == 2:
        found["class_num"], found["classifier inputs"] = shapes["fc.weight"]
    return found


def contradictions(checkpoint: Shapes, network: Shapes) -> list[str]:
    """What the two differ in, one phrase each; empty when nothing was recognised."""
    here, there = traits(checkpoint), traits(network)
    keys = [key for key in there if key in here and here[key] != there[key]]
    if "reduction_dim" in keys and "classifier inputs" in keys:
        keys.remove("classifier inputs")  # they follow from the reduction
    return [f"{key}: {_say(key, here[key])} in the checkpoint, {_say(key, there[key])} in the network" for key in keys]


def _pooling(names: list[str]) -> str:
    """The pooling as far as its parameters tell: those without any cannot be told apart."""
    if "pooling.conv.weight" in names:
        return "dropcov"
    return f"one with {', '.join(sorted(names))}" if names else "one without parameters"


def _say(key: str, value: Trait) -> str:
    return "none (global average pooling)" if key == "reduction_dim" and value is None else str(value)
