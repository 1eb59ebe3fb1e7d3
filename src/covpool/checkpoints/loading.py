"""Loading parameters into a network: every one of both sides is accounted for."""

from __future__ import annotations

import logging
import re
from typing import Any, Mapping, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.names import is_counter, listed
from covpool.errors import UserError

# A transformer classifies by its class token or average of tokens with `head`, and by its pooling with `fc`.
CLASSIFIER = ("fc.", "head.", "head_dist.")
HEAD = ("layer_reduce_norm.", "layer_reduce.", "layer_reduce_bn.", "pooling.", "dropout.", *CLASSIFIER)
_CLASSIFIERS = ("fc.weight", "head.weight", "head.fc.weight")
# Where a checkpoint says by which conventions its network computes: a fact beside the parameters.
_CONVENTIONS = "conventions"
_USUAL = "torchvision"
_PLAIN = "none (global average pooling)"

Trait = Union[str, int]
Shapes = Mapping[str, tuple]

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")
_LAST = re.compile(r"layer4\.\d+\.conv\d\.weight")

_DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_STEMS = {7: "imagenet", 3: "small"}
# Networks whose depth is always the same, by the weight of a block: the number of its outputs tells the width.
_LIGHT = {"mobilenet_v2": "features.1.conv.1.weight", "shufflenet_v2": "stage2.0.branch2.0.weight"}
_PATCHES = "patch_embed.proj.weight"
_FIRST = ("conv1.weight", "features.0.0.weight", "conv1.0.weight", _PATCHES)

logger = logging.getLogger(__name__)


def load_into(
    network: nn.Cell,
    parameters: Mapping[str, ms.Parameter],
    skip_classifier: bool = False,
    backbone_only: bool = False,
    about: Optional[Mapping[str, Any]] = None,
) -> list[str]:
    """Load parameters into a network, strictly; nothing is changed when something does not fit.

    A counter of random draws may be on one side alone: the network's then stays.

    Args:
        network: A cell of `create_model`.
        parameters: MindSpore name -> parameter, of this network's shapes.
        skip_classifier: Leave the network's classifier as it is, whatever the checkpoint has in its place.
        backbone_only: Leave reduction, pooling and classifier as they are: a covariance network starts from one with
            global average pooling.
        about: What the checkpoint says of itself: the network then computes by its conventions.

    Returns:
        Names of the network's parameters that were left as they are, in its order.

    Raises:
        UserError: In one line: what the two differ in (depth, width, reduction, pooling, classes), and which
            parameters are missing, left over, or of another shape or type; unknown conventions.
    """
    left_out = HEAD if backbone_only else CLASSIFIER if skip_classifier else ()
    targets = {name: p for name, p in network.parameters_and_names() if not name.startswith(left_out)}
    sources = {name: p for name, p in parameters.items() if not name.startswith(left_out)}
    both = [name for name in targets if name in sources]
    # Of stochastic depth and dropout, which a training may switch on or off; that of a pooling belongs to its kind.
    free = [name for name in targets.keys() ^ sources.keys() if is_counter(name) and not name.startswith("pooling.")]
    shapes = [name for name in both if not _has_shape(network, sources, name, tuple(targets[name].shape))]
    types = [name for name in both if sources[name].is_floating_point() != targets[name].is_floating_point()]
    problems = (
        ("missing in the checkpoint", [n for n in targets if n not in sources and n not in free], 4),
        ("left over in the checkpoint", [n for n in sources if n not in targets and n not in free], 4),
        ("of another shape", [f"{n} {list(sources[n].shape)} instead of {list(targets[n].shape)}" for n in shapes], 3),
        ("of another type", [f"{n} {sources[n].dtype} instead of {targets[n].dtype}" for n in types], 3),
    )
    if found := [f"{what} ({len(names)}): {listed(names, limit)}" for what, names, limit in problems if names]:
        recognised = _contradictions(sources, targets)
        raise UserError("the checkpoint does not fit the network: " + "; ".join([*recognised, *found]))
    if about is not None:
        try:
            network.set_conventions(about.get(_CONVENTIONS, _USUAL))
        except ValueError as error:
            raise UserError(f"the checkpoint is of another network: {error}") from error
    for name in both:
        target = targets[name]
        value = sources[name].asnumpy()
        target.set_data(ms.Tensor(np.array(value), dtype=target.dtype))
    return [name for name, _ in network.parameters_and_names() if name not in targets]


def _has_shape(network: nn.Cell, sources: dict[str, ms.Parameter], name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter has a shape, or has got it because the network knows how (a table of positions)."""
    source = sources[name]
    if tuple(source.shape) != shape and hasattr(network, "adapt"):
        value = network.adapt(name, source.asnumpy())
        if value.shape == shape:
            logger.info("%s: interpolated from %s to %s", name, list(source.shape), list(shape))
            sources[name] = ms.Parameter(ms.Tensor(value), name=name)
    return tuple(sources[name].shape) == shape


def classifier_weight(shapes: Mapping[str, Any]) -> Optional[str]:
    """The name of the weight, (classes, inputs), of a classifier that these parameters have; None without one."""
    return next((name for name in _CLASSIFIERS if name in shapes), None)


def conventions(network: nn.Cell) -> dict[str, str]:
    """What a checkpoint must say of a network besides its parameters; empty for the usual conventions."""
    name = getattr(network, _CONVENTIONS, _USUAL)
    return {} if name == _USUAL else {_CONVENTIONS: name}


def _traits(shapes: Shapes) -> dict[str, Trait]:
    """What can be recognised of a network by its MindSpore parameters.

    Family, or blocks and depth, base_width, in_channels, stem, reduction_dim (or what stands in its place), learnable
    pooling parameters, classifier inputs and class_num.
    """
    found: dict[str, Trait] = {}
    blocks = sorted({(int(m[1]), int(m[2])) for m in map(_BLOCK.match, shapes) if m})
    if blocks:
        kind = "bottleneck" if any(name.endswith(".conv3.weight") for name in shapes) else "basic"
        stages = sorted({stage for stage, _ in blocks})
        depth = tuple(sum(1 for stage, _ in blocks if stage == s) for s in stages)
        name = _DEPTHS.get((kind, depth))
        found["net_name"] = f"{kind} blocks {depth}" + (f" ({name})" if name else "")
    for family, weight in _LIGHT.items():
        if len(shapes.get(weight, ())) == 4:
            found["net_name"], found["channels of the first block"] = family, shapes[weight][0]
    if _PATCHES in shapes:
        width, _, patch, _ = shapes[_PATCHES]
        count = sum(1 for name in shapes if name.endswith(".norm1.gamma"))
        found["net_name"] = f"{count} transformer blocks from width {width}, patches of {patch}"
    first = next((shapes[name] for name in _FIRST if len(shapes.get(name, ())) == 4), None)
    if first is not None:
        found["in_channels"] = first[1]
        if "conv1.weight" in shapes:
            found["base_width"], found["stem"] = first[0], _STEMS.get(first[2], f"{first[2]}x{first[2]}")
    found["reduction_dim"] = _reduction(shapes)
    pooling = sorted(name for name in shapes if name.startswith("pooling."))
    told = f"one with {', '.join(pooling)}" if pooling else "one without parameters"  # which cannot be told apart
    found["pooling"] = "dropcov" if "pooling.conv.weight" in pooling else told
    classifier = classifier_weight(shapes)
    if classifier and len(shapes[classifier]) == 2:
        found["class_num"], found["classifier inputs"] = shapes[classifier]
    return found


def resnet_keys(shapes: Shapes) -> dict[str, Any]:
    """The keys of the backbone of a ResNet that its MindSpore parameters tell; empty for any other network."""
    found = _traits(shapes)
    name = str(found.get("net_name", "")).rpartition("(")[2].rstrip(")")
    if name not in _DEPTHS.values():
        return {}
    return {"net_name": name, **{key: found[key] for key in ("base_width", "stem", "in_channels") if key in found}}


def _contradictions(checkpoint: Mapping[str, ms.Parameter], network: Mapping[str, ms.Parameter]) -> list[str]:
    """What the two differ in, one phrase each; empty when nothing was recognised."""
    here, there = (_traits({name: tuple(p.shape) for name, p in side.items()}) for side in (checkpoint, network))
    keys = [key for key in there if key in here and here[key] != there[key]]
    if "reduction_dim" in keys and "classifier inputs" in keys:
        keys.remove("classifier inputs")  # they follow from the reduction
    return [f"{key}: {here[key]} in the checkpoint, {there[key]} in the network" for key in keys]


def _reduction(shapes: Shapes) -> Trait:
    """Channels after the reduction, or in words what the classifier's inputs tell where there is none."""
    if "layer_reduce.weight" in shapes:
        return shapes["layer_reduce.weight"][0]
    last = [shape[0] for name, shape in shapes.items() if _LAST.match(name) and len(shape) == 4]
    if last and "fc.weight" in shapes and shapes["fc.weight"][-1] == last[-1] * (last[-1] + 1) // 2:
        return f"none (covariance of all {last[-1]} channels)"
    return _PLAIN


def is_plain(shapes: Shapes) -> bool:
    """Whether these are the parameters of a network with global average pooling, as far as they tell."""
    return _reduction(shapes) == _PLAIN
