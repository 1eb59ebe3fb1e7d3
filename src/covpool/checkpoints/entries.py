"""What a MindSpore checkpoint holds, by name, and what it says of itself. Nothing is believed before it was checked.

A `.ckpt` file is a protobuf message with a `value` for each parameter, or for each part of a large one. MindSpore's own
reader trusts its lengths and dimensions and writes beyond its memory when they contradict each other; this one reads
the same files and refuses such.
"""

from __future__ import annotations

import binascii
import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any, Callable, Mapping, Union

import mindspore as ms
import numpy as np
from mindspore.train.checkpoint_pb2 import Checkpoint

from covpool.checkpoints.names import from_port
from covpool.errors import UserError

logger = logging.getLogger(__name__)

# What MindSpore appends with crc_check=True: this mark and ten bytes with the CRC-32 of all before it.
_CRC_MARK = b"crc_num"
_CRC_BYTES = 10

_TYPES = {
    **{name: np.dtype(name.lower()) for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32")},
    **{name: np.dtype(name.lower()) for name in ("UInt64", "Float16", "Float32", "Float64")},
    "Bool": np.dtype(np.uint8),
    "BFloat16": np.dtype(np.uint16),
}
_TEXT = "str"
_MOST_DIMENSIONS = 8

Entry = Union[ms.Parameter, str]

# Texts of this project; everything else in a file is a parameter.
ABOUT = "about."
# Running statistics of every rank, (ranks, n): within an epoch they differ.
RANKS = "ranks.statistics"


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# What each fact about a checkpoint must be; others are not looked at.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_count,
    "step": _is_count,
    "steps_per_epoch": lambda value: _is_count(value, 1),
    "metric": lambda value: value is None or _is_number(value),
    "losses": lambda value: isinstance(value, list) and all(_are_numbers(row) and len(row) in (2, 3) for row in value),
    "architecture": lambda value: isinstance(value, dict),
    "transform": lambda value: isinstance(value, dict),
    "val_fraction": lambda value: _is_number(value) and 0 < value < 1,
    "cpu_kernels": lambda value: isinstance(value, str),
    "class_names": _are_names,
    "mean": _are_numbers,
    "std": _are_numbers,
    "conventions": lambda value: isinstance(value, str),
}


def write_entries(path: Path, entries: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write parameters by name, and facts that JSON can hold, as a MindSpore checkpoint with checksum."""
    facts = {ABOUT + key: json.dumps(value) for key, value in about.items()}
    listed = [{"name": name, "data": value} for name, value in entries.items()]
    ms.save_checkpoint(listed, str(path), append_dict=facts, crc_check=True)


def take_about(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take the facts about a checkpoint out of its entries, and see that each is of its type.

    UserError: a text that is no JSON, a fact of another type, or running statistics that fit no network.
    """
    about = {}
    for name in [name for name in entries if name.startswith(ABOUT)]:
        key, text = name[len(ABOUT) :], entries.pop(name)
        try:
            about[key] = json.loads(text)
            sound = key not in _FACTS or _FACTS[key](about[key])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged, its description of {key} cannot be read") from error
        if not sound:
            raise UserError(f"{path}: damaged, its description says {key} = {text[:80]}")
    if RANKS in entries:
        width = sum(p.size for name, p in entries.items() if name.endswith((".moving_mean", ".moving_variance")))
        expected = (len(about.get("losses", [])), width)
        if entries[RANKS].shape != expected:
            raise UserError(
                f"{path}: damaged, the running statistics of its ranks have the shape {entries[RANKS].shape} instead "
                f"of {expected}"
            )
    return about


def read_entries(path: Path, checksum_required: bool = False) -> dict[str, Any]:
    """Read everything in a MindSpore checkpoint; its checksum, where it has one, is compared.

    Parameters of the MindSpore ports get the names that they have here, see `names.from_port`. bfloat16 becomes
    float32, as in other formats. With `checksum_required` a file without checksum counts as damaged.

    Returns:
        Name -> parameter, or text for the names that begin with `about.`.

    Raises:
        UserError: No such file, not a checkpoint, or damaged.
    """
    check_file(path)
    if path.suffix != ".ckpt":
        raise UserError(f"{path}: a MindSpore checkpoint must end with .ckpt", exit_code=2)
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    end = len(content) - len(_CRC_MARK) - _CRC_BYTES
    checked = end >= 0 and content[end:-_CRC_BYTES] == _CRC_MARK
    if checksum_required and not checked:
        raise UserError(f"{path}: damaged, its checksum is missing")
    body = content[:end] if checked else content
    if checked and binascii.crc32(body) != int.from_bytes(content[-_CRC_BYTES:], "big"):
        raise UserError(f"{path}: damaged, its checksum is wrong")
    try:
        entries = _entries(body)
    except Exception as error:  # of many types, and about nothing but these bytes
        raise damaged(path, "MindSpore checkpoint", error) from error
    if not checked:
        logger.warning("%s: has no checksum; damage to its values would not be noticed", path)
    return from_port(entries, path)


def check_file(path: Path) -> None:
    """Raise UserError unless `path` is a file with content."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", exit_code=2)
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")


def damaged(path: Path, kind: str, error: BaseException) -> UserError:
    """The error for a file that cannot be read: the first sentence of what its reader says."""
    reason = str(error).strip().split("\n")[0].split(". ")[0]
    return UserError(f"{path}: not a readable {kind} file, or damaged ({type(error).__name__}: {reason})")


def _entries(content: memoryview) -> dict[str, Entry]:
    """Parameters and texts by name; an error where the structure contradicts itself."""
    message = Checkpoint()
    message.ParseFromString(content)
    message.DiscardUnknownFields()
    if message.ByteSize() != len(content):  # so that nothing was passed over, and nothing is there twice
        raise ValueError("it has fields that no checkpoint has")
    entries: dict[str, Entry] = {}
    for (name, kind, dims), values in itertools.groupby(message.value, key=_heading):
        if name in entries:
            raise ValueError(f"{name} is there twice")
        parts = [value.tensor.tensor_content for value in values]  # MindSpore cuts tensors above 512 MiB
        entries[name] = _entry(name, kind, dims, parts[0] if len(parts) == 1 else b"".join(parts))
    if not entries:
        raise ValueError("it holds no parameters")
    return entries


def _heading(value: Any) -> tuple[str, str, tuple[int, ...]]:
    """Name, type and dimensions of one `value`."""
    name, dims = value.tag, tuple(value.tensor.dims)
    if not value.IsInitialized() or not value.HasField("tensor"):  # or a map of parameters, which no network here has
        raise ValueError(f"{name or 'an entry'} lacks its name or tensor")
    if len(dims) > _MOST_DIMENSIONS or any(d < 0 for d in dims):
        raise ValueError(f"{name} has impossible dimensions")
    return name, value.tensor.tensor_type, dims


def _entry(name: str, kind: str, dims: tuple[int, ...], content: bytes) -> Entry:
    if (kind == _TEXT) != name.startswith(ABOUT):
        raise ValueError(f"{name} is {'a text' if kind == _TEXT else 'no text'}")
    if kind == _TEXT:
        return str(content, "utf-32-le").rstrip("\0")
    if kind not in _TYPES:
        raise ValueError(f"{name} is of the unknown type {kind!r}")
    shape = () if dims == (0,) else dims  # MindSpore's way of writing a number
    expected = math.prod(shape) * _TYPES[kind].itemsize
    if len(content) != expected:
        raise ValueError(f"{name} holds {len(content)} bytes; {kind} {list(shape)} takes {expected}")
    array = np.frombuffer(content, _TYPES[kind]).reshape(shape)
    if kind == "Bool":
        if array.size and array.max() > 1:
            raise ValueError(f"{name} holds truth values other than 0 and 1")
        array = array.astype(np.bool_)
    elif kind == "BFloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return ms.Parameter(ms.Tensor(array), name=name)
