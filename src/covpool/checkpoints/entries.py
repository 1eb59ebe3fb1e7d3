"""What a MindSpore checkpoint holds, by name, and what it says of itself. Nothing is believed before it was checked.

A `.ckpt` file is a protobuf message: `value` (field 1) once for each parameter, with `tag` (1) and `tensor` (2), which
has `dims` (1), `tensor_type` (2) and `tensor_content` (3). MindSpore's own reader trusts lengths and dimensions and
writes beyond its memory when they contradict each other; this one reads the same files and refuses such.
"""

from __future__ import annotations

import binascii
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Mapping, Union

import mindspore as ms
import numpy as np

from covpool.checkpoints.names import from_port
from covpool.errors import UserError

logger = logging.getLogger(__name__)

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
    "losses": lambda value: isinstance(value, list) and all(_are_numbers(row) and len(row) == 2 for row in value),
    "architecture": lambda value: isinstance(value, dict),
    "transform": lambda value: isinstance(value, dict),
    "class_names": _are_names,
    "mean": _are_numbers,
    "std": _are_numbers,
    "conventions": lambda value: isinstance(value, str),
}


def described(about: Mapping[str, Any]) -> dict[str, str]:
    """Facts about a checkpoint, which JSON can hold, as the texts that are stored in it."""
    return {ABOUT + key: json.dumps(value) for key, value in about.items()}


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
_MAP = 3

_VARINT, _BYTES = 0, 2  # wire types

Entry = Union[ms.Parameter, str]


def read_entries(path: Path, checksum_required: bool = False) -> dict[str, Any]:
    """Read everything in a MindSpore checkpoint; its checksum, where it has one, is compared.

    Parameters of the MindSpore ports get the names that they have here, see `names.from_port`. bfloat16 becomes
    float32, as in other formats.

    Args:
        path: A `.ckpt` file.
        checksum_required: Whether a file without checksum counts as damaged.

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
    except ValueError as error:
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
    """Parameters and texts by name; ValueError where the structure contradicts itself."""
    entries: dict[str, Entry] = {}
    slices: list[memoryview] = []
    begun: tuple[str, str, tuple[int, ...]] | None = None
    for value in _fields(content, {1: _BYTES}, repeated=True)[1]:
        name, kind, dims, part = _tensor(value)
        if begun != (name, kind, dims):
            if begun is not None:
                entries[begun[0]] = _entry(*begun, slices)
            if name in entries or (begun is not None and begun[0] == name):
                raise ValueError(f"{name} is there twice")
            begun, slices = (name, kind, dims), []
        slices.append(part)  # MindSpore cuts tensors above 512 MiB
    if begun is None:
        raise ValueError("it holds no parameters")
    entries[begun[0]] = _entry(*begun, slices)
    return entries


def _tensor(value: memoryview) -> tuple[str, str, tuple[int, ...], memoryview]:
    """Name, type, dimensions and content of one `value`."""
    outer = _fields(value, {1: _BYTES, 2: _BYTES, _MAP: _BYTES})
    name = str(_one(outer, 1, "a name"), "utf-8")
    if outer.get(_MAP):
        raise ValueError(f"{name} is a map of parameters, which no network here has")
    inner = _fields(_one(outer, 2, f"a tensor of {name}"), {1: _VARINT, 2: _BYTES, 3: _BYTES}, repeated=True)
    dims = tuple(inner.get(1, ()))
    if len(dims) > _MOST_DIMENSIONS or any(d >= 2**63 for d in dims):
        raise ValueError(f"{name} has impossible dimensions")
    return name, str(_one(inner, 2, f"a type of {name}"), "utf-8"), dims, _one(inner, 3, f"a content of {name}")


def _entry(name: str, kind: str, dims: tuple[int, ...], slices: list[memoryview]) -> Entry:
    content = slices[0] if len(slices) == 1 else b"".join(slices)
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


def _fields(message: memoryview, known: dict[int, int], repeated: bool = False) -> dict[int, list[Any]]:
    """Values of a message by field number; ValueError for a field that is not known or of another wire type.

    ``known`` is field number -> wire type; field 1 may be there more than once if ``repeated``.
    """
    found: dict[int, list[Any]] = {}
    for number, wire_type, value in _walk(message):
        if known.get(number) != wire_type:
            raise ValueError(f"it has a field {number} of wire type {wire_type} where none belongs")
        if number in found and not (repeated and number == 1):
            raise ValueError(f"it has its field {number} twice")
        found.setdefault(number, []).append(value)
    return {1: [], **found}


def _walk(message: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type and value of every field; contents are views, nothing is copied."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, place = _varint(message, place)
            yield number, wire_type, value
        elif wire_type == _BYTES:
            length, place = _varint(message, place)
            if length > end - place:
                raise ValueError("it is shorter than it says")
            yield number, wire_type, message[place : place + length]
            place += length
        else:
            raise ValueError(f"it has a field of wire type {wire_type}")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of up to ten bytes, and the place after it."""
    value = 0
    for index, digit in enumerate(message[place : place + 10]):
        value |= (digit & 127) << 7 * index
        if digit < 128:
            return value, place + index + 1
    raise ValueError("it ends within a number, or has one that is too long")


def _one(fields: dict[int, list[Any]], number: int, what: str) -> Any:
    if not fields.get(number):
        raise ValueError(f"it lacks {what}")
    return fields[number][0]
