"""Starting from the weights of a file: what fits is taken, and one line of the log says what was and was not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Mapping, Sequence

from mindspore import nn

from covpool.checkpoints.format import Checkpoint, other_classes, read_checkpoint, refuse_contradictions
from covpool.checkpoints.loading import HEAD, is_plain, load_into
from covpool.checkpoints.names import convert_state_dict
from covpool.checkpoints.readers import read_state_dict
from covpool.errors import UserError

logger = logging.getLogger(__name__)


def read_weights(path: Path) -> Checkpoint:
    """Read a checkpoint of any known format: `.ckpt`, or a state dict of PyTorch, safetensors or Paddle.

    Raises:
        UserError: See `read_checkpoint`, `read_state_dict` and `convert_state_dict`.
    """
    if path.suffix == ".ckpt":
        return read_checkpoint(path)
    return Checkpoint(path, convert_state_dict(read_state_dict(path)))


def start_from(
    network: nn.Cell,
    checkpoint: Checkpoint,
    architecture: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    backbone_only: bool = False,
) -> list[str]:
    """Take from a checkpoint what a network can start from.

    The classifier is left as it is where the number of classes, or one of their names, differs. A network with a
    reduction takes the backbone alone from a plain network with global average pooling. Anything else must fit, and
    nothing is changed where it does not.

    Args:
        network: A cell of `create_model`.
        checkpoint: What :func:`read_weights` gave.
        architecture: What the configuration says of the network; contradictions are named by key.
        class_names: The classes to train on; empty where they are not known.
        backbone_only: Take the backbone alone from any checkpoint.

    Returns:
        Names of the network's parameters that were left as they are, in its order.

    Raises:
        UserError: One line with everything that does not fit.
    """
    own = dict(network.parameters_and_names())
    sources, foreign = _by_own_names(network, checkpoint)
    shapes = {name: tuple(parameter.shape) for name, parameter in sources.items()}
    plain = "layer_reduce.weight" in own and is_plain(shapes)
    backbone_only = backbone_only or plain
    ignored = {"class_num", "pooling_args"} | ({"pooling", "reduction_dim"} if backbone_only else set())
    refuse_contradictions(checkpoint, {key: value for key, value in (architecture or {}).items() if key not in ignored})
    classes = other_classes(checkpoint, class_names) if class_names else ""
    other = f"it has other classes ({classes})" if classes else _other_classifier(own, shapes)
    try:
        kept = load_into(network, sources, bool(other), backbone_only, checkpoint.about)
    except UserError as error:
        raise UserError(f"{checkpoint.path} does not fit the network: {error}") from error
    if backbone_only:
        taken = len(own) - len(kept)
        without = _modules([*foreign, *(name for name in sources if name.startswith(HEAD))])
        reason = ", a plain network with global average pooling" if plain else ""
        logger.info(
            "started from the backbone of %s%s: %d of its %d tensors taken%s; newly initialised: %s",
            checkpoint.path,
            reason,
            taken,
            len(checkpoint.network),
            f", without {without}" if without else "",
            _modules(kept),
        )
    elif other:
        logger.info("started from %s without its classifier: %s", checkpoint.path, other)
    elif checkpoint.about.get("class_names"):
        logger.info("started from %s, its classifier included: it has the same classes", checkpoint.path)
    else:
        logger.info(
            "started from %s, its classifier included: it has as many outputs, and does not name its classes",
            checkpoint.path,
        )
    return kept


def _by_own_names(network: nn.Cell, checkpoint: Checkpoint) -> tuple[Mapping[str, Any], list[str]]:
    """The parameters by the names of the network, and the names of those that have no place in it.

    One that was built around another's backbone takes that one's own files: they have the names without a prefix, and
    a head that has no place here.
    """
    prefix = getattr(network, "backbone_prefix", "")
    if not prefix or any(name.startswith(prefix) for name in checkpoint.network):
        return checkpoint.network, []
    own = dict(network.parameters_and_names())
    named = {prefix + name: p for name, p in checkpoint.network.items() if prefix + name in own}
    return named, [name for name in checkpoint.network if prefix + name not in own]


def _other_classifier(own: Mapping[str, Any], shapes: Mapping[str, tuple]) -> str:
    """Why the classifier cannot be taken, by its shape, in words; empty if it can."""
    if "fc.weight" not in own:
        return "the network has no classifier"
    if "fc.weight" not in shapes:
        return "the file has no classifier"
    here, there = shapes["fc.weight"], tuple(own["fc.weight"].shape)
    return f"it has other classes (fc.weight is {here} in the file, {there} in the network)" if here != there else ""


def _modules(names: Sequence[str]) -> str:
    """The modules of these parameters: layer_reduce, fc, ..."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[0].removeprefix("backbone.").split(".")[0] for name in names))
