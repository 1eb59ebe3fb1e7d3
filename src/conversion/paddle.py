"""Paddle's `.pdparams`: a pickle of arrays, read by an unpickler that can build nothing else."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

# Paddle adds a table of its own parameter names to the tensors.
_NAME_TABLE = "StructuredToParameterName@@"
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
        Exception: Whatever the unpickler raises on damaged bytes.
    """
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, path).load()
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, not a state dict (name -> array)")
    arrays = {}
    for name, value in content.items():
        if name == _NAME_TABLE:
            continue
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise UserError(f"{path}: {name} is of type {type(value).__name__}, not an array of numbers")
        module, _, leaf = name.rpartition(".")
        leaf = _STATISTICS.get(leaf, leaf)
        if leaf == "weight" and value.ndim == 2:
            value = np.ascontiguousarray(value.T)
        arrays[f"{module}.{leaf}" if module else leaf] = value
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and containers; any other global name in the file is an error."""

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


def _encode(text: str, encoding: str) -> bytes:
    """Protocols below 3 write bytes as text; nothing but this codec appears in arrays."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy.core.numeric", "_frombuffer"): np.core.numeric._frombuffer,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
