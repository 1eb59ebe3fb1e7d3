"""Checkpoints of any format: one file made into another, and networks that start from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.entries import write_entries
from covpool.checkpoints.format import Checkpoint, other_classes, read_checkpoint, refuse_contradictions
from covpool.checkpoints.loading import HEAD, classifier_weight, is_plain, load_into
from covpool.checkpoints.names import convert_state_dict, is_counter, to_pytorch
from covpool.checkpoints.readers import needs, read_state_dict
from covpool.errors import UserError, first_line
from covpool.runtime.files import whole_file

logger = logging.getLogger(__name__)


def read_weights(path: Path, averaged: bool = True) -> Checkpoint:
    """Read a checkpoint of any known format: `.ckpt`, or a state dict of PyTorch, safetensors or Paddle.

    Of a checkpoint with averaged weights these count where ``averaged`` says so.

    UserError: see `read_checkpoint`, `read_state_dict` and `convert_state_dict`.
    """
    if path.suffix == ".ckpt":
        return read_checkpoint(path).averaged(averaged)
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
    ignored = {"class_num", "pooling_args", "train_image_size"} | (
        {"pooling", "reduction_dim"} if backbone_only else set()
    )
    refuse_contradictions(checkpoint, {key: value for key, value in (architecture or {}).items() if key not in ignored})
    classes = other_classes(checkpoint, class_names) if class_names else ""
    other = f"it has other classes ({classes})" if classes else _other_classifier(own, shapes)
    try:
        kept = load_into(network, sources, bool(other), backbone_only, checkpoint.about)
    except UserError as error:
        raise UserError(f"{checkpoint.path} does not fit the network: {error}") from error
    path = checkpoint.path
    if backbone_only:
        without = _modules([*foreign, *(name for name in sources if name.startswith(HEAD))])
        told = (
            f"the backbone of {path}{', a plain network with global average pooling' if plain else ''}: "
            f"{len(own) - len(kept)} of its {len(checkpoint.network)} tensors taken"
            f"{f', without {without}' if without else ''}; newly initialised: {_modules(kept)}"
        )
    elif other:
        told = f"{path} without its classifier: {other}"
    elif checkpoint.about.get("class_names"):
        told = f"{path}, its classifier included: it has the same classes"
    else:
        told = f"{path}, its classifier included: it has as many outputs, and does not name its classes"
    logger.info("started from %s", told)
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
    name = classifier_weight(own)
    if name is None:
        return "the network has no classifier"
    if name not in shapes:
        return "the file has no classifier"
    here, there = shapes[name], tuple(own[name].shape)
    return f"it has other classes ({name} is {here} in the file, {there} in the network)" if here != there else ""


def _modules(names: Sequence[str]) -> str:
    """The modules of these parameters: layer_reduce, fc, ..."""
    return ", ".join(dict.fromkeys(name.rpartition(".")[0].removeprefix("backbone.").split(".")[0] for name in names))


def read_ckpt(path: Path) -> dict[str, ms.Parameter]:
    """Read the network's parameters of a MindSpore checkpoint; what training adds to them is left out."""
    return read_checkpoint(path).averaged().network


Check = Callable[[Path], None]  # of a file that is written, but does not bear its name yet


def write_ckpt(
    path: Path,
    parameters: Mapping[str, ms.Parameter],
    about: Optional[Mapping[str, Any]] = None,
    check: Optional[Check] = None,
) -> None:
    """Write a MindSpore checkpoint with checksum; whole or not at all.

    Args:
        path: A `.ckpt` file.
        parameters: Name -> parameter.
        about: Facts that JSON can hold.
        check: Raises an error where the file must not appear.

    Raises:
        UserError: Wrong ending, or the file cannot be written.
    """
    _write(path, ".ckpt", lambda temporary: write_entries(temporary, parameters, about or {}), check)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], check: Optional[Check] = None) -> None:
    """Write arrays as safetensors; whole or not at all.

    Args:
        path: A `.safetensors` file.
        arrays: Name -> array.
        check: Raises an error where the file must not appear.

    Raises:
        UserError: Wrong ending, the package safetensors is missing, or the file cannot be written.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise needs("safetensors", path) from None
    content = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    _write(path, ".safetensors", lambda temporary: save_file(content, temporary, metadata={"format": "pt"}), check)


def read_parameters(path: Path) -> dict[str, ms.Parameter]:
    """Read a checkpoint of any known format as MindSpore parameters, see `read_weights`."""
    return read_weights(path).network


@dataclass(frozen=True)
class Report:
    """What became of a conversion.

    Attributes:
        written: Names in the new file.
        fresh: Names in it that were not in the source: newly initialised.
        left_out: MindSpore names of the source that are not in the new file.
    """

    written: list[str]
    fresh: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def convert_file(
    source: Path,
    output: Path,
    to: str = "ckpt",
    network: Optional[nn.Cell] = None,
    skip_classifier: bool = False,
    backbone_only: bool = False,
) -> Report:
    """Convert a checkpoint and check it against a network; the written file is read again and compared.

    Args:
        source: Any format of `read_parameters`.
        output: The new file.
        to: 'ckpt' for MindSpore, 'safetensors' for PyTorch names.
        network: Must fit the checkpoint, and then holds its values. Needed by `backbone_only`.
        skip_classifier: Leave the classifier out of the new file.
        backbone_only: Take the backbone only; all else in the new file is what `network` was initialised with.

    Returns:
        What was written.

    Raises:
        UserError: The source cannot be read or does not fit, or the new file cannot be written.
    """
    checkpoint = read_weights(source)
    parameters = checkpoint.network
    fresh: list[str] = []
    result = parameters
    if network is not None:
        if backbone_only:
            kept = fresh = start_from(network, checkpoint, backbone_only=True)
        else:
            kept = load_into(network, parameters, skip_classifier, about=checkpoint.about)
        left_out = set(kept) - set(fresh)
        result = {name: p for name, p in network.parameters_and_names() if name not in left_out}
    facts = {key: value for key, value in checkpoint.about.items() if key == "conventions"}

    def check(written: Path) -> None:
        again = read_ckpt(written) if to == "ckpt" else convert_state_dict(read_state_dict(written))
        for name, parameter in result.items():
            if to == "safetensors" and is_counter(name):  # PyTorch has no such entry
                continue
            if not np.array_equal(again[name].asnumpy(), parameter.asnumpy(), equal_nan=True):
                raise UserError(f"{output}: {name} differs after writing; nothing was written")

    if to == "ckpt":
        write_ckpt(output, result, facts, check)
    else:
        write_safetensors(output, to_pytorch(result), check)
        if facts:
            logger.warning(
                "%s: the names do not say that this network computes as MindSpore's ports do (eps 1e-4 in residual "
                "blocks, in networks of bottlenecks 'same' padding): PyTorch must be told",
                output,
            )
    taken = set(result) - set(fresh)
    return Report(list(result), fresh, [name for name in parameters if name not in taken])


def _write(path: Path, ending: str, write: Callable[[Path], None], check: Optional[Check]) -> None:
    if path.suffix != ending:
        raise UserError(f"{path}: the output must end with {ending}", exit_code=2)
    try:
        with whole_file(path) as temporary:
            write(temporary)
            if check is not None:
                check(temporary)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({first_line(error)})") from error
