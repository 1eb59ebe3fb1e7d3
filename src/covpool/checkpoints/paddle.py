"""Paddle's `.pdparams`: a pickle of arrays, read by an unpickler that can build nothing else."""

from __future__ import annotations

import pickle
import re
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable

import numpy as np

from covpool.errors import UserError

# Paddle adds a table of its own parameter names to the tensors.
_NAME_TABLE = "StructuredToParameterName@@"
# Codes of what NumPy calls boolean, integer, floating and complex kinds.
_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}


def read_paddle(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict of Paddle with PyTorch names.

    `_mean` and `_variance` become `running_mean` and `running_var`; weights of rank 2, which Paddle stores as
    (in, out), are transposed.

    Args:
        path: The file.

    Returns:
        PyTorch name -> array.

    Raises:
        UserError: The pickle wants to build anything but arrays; a value is not an array.
        Exception: On damaged bytes: one of several, as the unpickler meets them.
    """
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, path).load()
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not a state dict (name -> array)")
    arrays = {}
    for name, value in content.items():
        if name == _NAME_TABLE:
            continue
        if not isinstance(name, str) or not isinstance(value, _Array):
            raise UserError(f"{path}: {name} is of type {type(value).__name__}, not an array of numbers")
        module, _, leaf = name.rpartition(".")
        leaf = _STATISTICS.get(leaf, leaf)
        array = value.value
        if leaf == "weight" and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        arrays[f"{module}.{leaf}" if module else leaf] = array
    return arrays


class _ArrayUnpickler(pickle._Unpickler):
    """Builds arrays and containers; any other global name in the file is an error.

    Python's own unpickler: the one in C takes any amount of memory when one bit of a file is wrong. NumPy's functions
    for this, which can end the process on wrong content, are not used either.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    stack: list[Any]

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The few names that pickled arrays refer to."""
        try:
            return _ALLOWED[(module.replace("numpy._core", "numpy.core"), name)]
        except KeyError:
            raise UserError(
                f"{self._path}: refers to {module}.{name}; only arrays are read, because anything else could run code"
            ) from None

    def _load_bytearray8(self) -> None:
        """Protocol 5's arrays; the original takes memory before it knows that the file is as long."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def _load_build(self) -> None:
        """Give arrays their content; the original would set any attribute of any function or class, too."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (_Kind, _Array)):
            target.__setstate__(state)
        elif not isinstance(target, OrderedDict):  # whose attributes nobody here reads
            raise UserError(
                f"{self._path}: changes a {type(target).__name__}; only arrays are read, because anything else could "
                "run code"
            )

    dispatch[pickle.BUILD[0]] = _load_build  # type: ignore[assignment]
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8  # type: ignore[assignment]


class _Kind:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str, *_: Any) -> None:
        if not _NUMBERS.fullmatch(code):
            raise ValueError(f"an array of {code!r}, not of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for `numpy.ndarray`."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        content = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C").copy("K")


def _reconstruct(*_: Any) -> _Array:
    """An array whose content follows (protocols below 5)."""
    return _Array()


def _frombuffer(data: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    """An array with its content (protocol 5)."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Protocols below 3 write bytes as text; nothing but this codec appears in arrays."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
