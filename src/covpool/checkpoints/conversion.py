"""Checkpoints of other frameworks and this one's, and one file made into another."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.description import described
from covpool.checkpoints.format import read_checkpoint
from covpool.checkpoints.loading import load_into
from covpool.checkpoints.names import COUNTER, convert_state_dict, to_pytorch
from covpool.checkpoints.pretrained import read_weights, start_from
from covpool.checkpoints.readers import needs, read_state_dict
from covpool.errors import UserError
from covpool.runtime.files import whole_file

logger = logging.getLogger(__name__)


def read_ckpt(path: Path) -> dict[str, ms.Parameter]:
    """Read the network's parameters of a MindSpore checkpoint; what training adds to them is left out.

    Raises:
        UserError: See `read_checkpoint`.
    """
    return read_checkpoint(path).network


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
    entries = [{"name": name, "data": value} for name, value in parameters.items()]
    facts = described(about or {})
    _write(
        path,
        ".ckpt",
        lambda temporary: ms.save_checkpoint(entries, str(temporary), append_dict=facts, crc_check=True),
        check,
    )


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
    """Read a checkpoint of any known format as MindSpore parameters.

    Raises:
        UserError: See `read_ckpt`, `read_state_dict` and `convert_state_dict`.
    """
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
            if to == "safetensors" and name == COUNTER:  # PyTorch has no such entry
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
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: cannot be written ({reason})") from error
