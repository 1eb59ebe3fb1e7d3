"""Loading parameters into a network: every one of both sides is accounted for."""

from __future__ import annotations

from typing import Mapping

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.names import listed
from covpool.checkpoints.traits import contradictions
from covpool.errors import UserError

CLASSIFIER = ("fc.",)
HEAD = ("layer_reduce.", "layer_reduce_bn.", "pooling.", "fc.")


def load_into(
    network: nn.Cell,
    parameters: Mapping[str, ms.Parameter],
    skip_classifier: bool = False,
    backbone_only: bool = False,
) -> list[str]:
    """Load parameters into a network, strictly; nothing is changed when something does not fit.

    Args:
        network: A cell of `create_model`.
        parameters: MindSpore name -> parameter, of this network's shapes.
        skip_classifier: Leave the network's classifier as it is, whatever the checkpoint has in its place.
        backbone_only: Leave reduction, pooling and classifier as they are: a covariance network starts from one with
            global average pooling.

    Returns:
        Names of the network's parameters that were left as they are, in its order.

    Raises:
        UserError: In one line: what the two differ in (depth, width, reduction, pooling, classes), and which
            parameters are missing, left over, or of another shape or type.
    """
    left_out = HEAD if backbone_only else CLASSIFIER if skip_classifier else ()
    targets = {name: p for name, p in network.parameters_and_names() if not name.startswith(left_out)}
    sources = {name: p for name, p in parameters.items() if not name.startswith(left_out)}
    missing = [name for name in targets if name not in sources]
    extra = [name for name in sources if name not in targets]
    both = [name for name in targets if name in sources]
    shapes = [name for name in both if tuple(sources[name].shape) != tuple(targets[name].shape)]
    types = [name for name in both if sources[name].is_floating_point() != targets[name].is_floating_point()]
    if missing or extra or shapes or types:
        raise UserError(_difference(sources, targets, missing, extra, shapes, types))
    for name in both:
        target = targets[name]
        value = sources[name].asnumpy()
        target.set_data(ms.Tensor(np.array(value), dtype=target.dtype))
    return [name for name, _ in network.parameters_and_names() if name not in targets]


def _difference(
    sources: Mapping[str, ms.Parameter],
    targets: Mapping[str, ms.Parameter],
    missing: list[str],
    extra: list[str],
    shapes: list[str],
    types: list[str],
) -> str:
    """One line: first what was recognised, then the names."""
    words = contradictions(
        {name: tuple(p.shape) for name, p in sources.items()}, {name: tuple(p.shape) for name, p in targets.items()}
    )
    parts = list(words)
    if missing:
        parts.append(f"missing in the checkpoint ({len(missing)}): {listed(missing, 4)}")
    if extra:
        parts.append(f"left over in the checkpoint ({len(extra)}): {listed(extra, 4)}")
    if shapes:
        named = [f"{n} {list(sources[n].shape)} instead of {list(targets[n].shape)}" for n in shapes]
        parts.append(f"of another shape ({len(shapes)}): {listed(named, 3)}")
    if types:
        named = [f"{n} {sources[n].dtype} instead of {targets[n].dtype}" for n in types]
        parts.append(f"of another type ({len(types)}): {listed(named, 3)}")
    return "the checkpoint does not fit the network: " + "; ".join(parts)
