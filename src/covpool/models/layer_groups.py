"""Where in a network a parameter is, by its name: in which layer, and whether in the head; the rates that follow."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What follows the backbone: reduction, pooling, classifiers.
_HEAD = re.compile(r"(layer_reduce(_\w+)?|pooling|fc|head(_dist)?)\.")
# One block: of ResNets, ShuffleNetV2, MobileNetV2, Swin and the other transformers.
_BLOCK = re.compile(r"(layer\d+\.\d+|stage\d+\.\d+|features\.\d+\.conv|layers\.\d+\.blocks\.\d+|blocks\.\d+)\.")


def in_head(name: str) -> bool:
    """Whether a parameter comes after the backbone: it belongs to the reduction, the pooling or a classifier."""
    return _HEAD.match(name) is not None


def layer_ids(names: Sequence[str]) -> dict[str, int]:
    """The layer of each parameter, counted from 0 as timm's ``param_groups_layer_decay`` does.

    Layer 0 is what comes before the blocks, each block is a layer, the last one is the head. What stands between two
    blocks belongs to the one after it, what follows the last block to that.

    Args:
        names: All parameters of a network, in its order.

    Raises:
        ValueError: No parameter has the name of one in a block.
    """
    body = [name for name in names if not in_head(name)]
    found = [match.group() if (match := _BLOCK.match(name)) else "" for name in body]
    blocks = list(dict.fromkeys(filter(None, found)))
    if not blocks:
        raise ValueError("layer_decay needs blocks that are known by the names of their parameters, and there are none")
    ids = dict.fromkeys(names, len(blocks) + 1)
    layer = len(blocks)
    for name, block in reversed(list(zip(body, found))):
        layer = blocks.index(block) + 1 if block else layer
        ids[name] = layer
    ids.update(dict.fromkeys(body[: found.index(blocks[0])], 0))
    return ids


def rate_factors(names: Sequence[str], layer_decay: float = 1.0, head_lr_factor: float = 1.0) -> dict[str, float]:
    """What the rate of each parameter is multiplied by.

    Args:
        names: All parameters of a network, in its order.
        layer_decay: Factor from each layer to the one before it, see :func:`layer_ids`; the head's is 1.
        head_lr_factor: Factor of the head.

    Raises:
        ValueError: Layers, or the head, are not known by their names.
    """
    if head_lr_factor != 1 and not any(map(in_head, names)):
        raise ValueError("head_lr_factor needs parameters of a head, named layer_reduce, pooling, fc or head")
    ids = layer_ids(names) if layer_decay != 1 else dict.fromkeys(names, 0)
    last = max(ids.values())
    return {n: layer_decay ** (last - ids[n]) * (head_lr_factor if in_head(n) else 1.0) for n in names}
