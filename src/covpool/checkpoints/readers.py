"""Reading checkpoints of other frameworks as arrays with PyTorch names; no code of a file is ever run."""

from __future__ import annotations

import logging
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable

import mindspore  # noqa: F401 - MindSpore must be imported before PyTorch: both bring an OpenMP runtime
import numpy as np

from covpool.checkpoints.entries import check_file, damaged
from covpool.errors import UserError

logger = logging.getLogger(__name__)

# The first version whose weights_only=True holds what it promises.
_TORCH = (2, 10)

# Keys under which training scripts keep the state dict, besides epoch, arch, best_acc1, optimizer.
_WRAPPERS = ("state_dict", "model")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Read a checkpoint of PyTorch (.pth, .pt, .pth.tar), safetensors (.safetensors) or Paddle (.pdparams).

    Args:
        path: The file; its ending tells the format.

    Returns:
        PyTorch name -> array. Paddle's dense weights are transposed, its statistics renamed. bfloat16, which NumPy
        does not have, becomes float32.

    Raises:
        UserError: No such file, unknown ending, damaged or foreign content, a missing package.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown ending; known are {', '.join(_READERS)}", exit_code=2)
    check_file(path)
    tensors = _unwrap(reader(path), path)
    return {str(name): _array(value, str(name), path) for name, value in tensors.items()}


def needs(package: str, path: Path) -> UserError:
    """The error for a missing optional package."""
    return UserError(f"{path}: reading or writing it needs the package {package}: pip install {package}")


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise needs("torch", path) from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _TORCH:
        raise UserError(
            f"{path}: PyTorch {torch.__version__} can be made to run code of the file that it reads (CVE-2025-32434, "
            f"CVE-2026-24747); install {_TORCH[0]}.{_TORCH[1]} or newer, or save the weights as .safetensors"
        )
    # PyTorch does not compare the checksums of its own archives.
    try:
        broken = zipfile.ZipFile(path).testzip() if zipfile.is_zipfile(path) else None
    except Exception as error:  # of many types, and about nothing but these bytes
        raise damaged(path, "PyTorch", error) from error
    if broken:
        raise UserError(f"{path}: damaged, the checksum of its part {broken!r} is wrong")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler runs damaged bytes like a program
        if "weights_only" in str(error).lower() or "Weights only" in str(error):
            raise UserError(
                f"{path}: holds Python objects besides tensors, which are not read because that could run code; save "
                "its state_dict alone with torch.save"
            ) from error
        raise damaged(path, "PyTorch", error) from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise needs("safetensors", path) from None
    try:
        return load_file(path)
    except AttributeError as error:
        raise UserError(f"{path}: holds numbers of a format that NumPy does not have ({error})") from error
    except (OSError, SafetensorError) as error:
        raise damaged(path, "safetensors", error) from error


def _read_paddle(path: Path) -> Any:
    try:
        return read_paddle(path)
    except UserError:
        raise
    except Exception as error:
        raise damaged(path, "Paddle", error) from error


def _unwrap(content: Any, path: Path) -> dict[str, Any]:
    """The state dict of what a file holds: itself, or under one of the usual keys."""
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            if str(content.get("arch")).startswith("resnet") and any("conv_dr_block" in str(n) for n in content[key]):
                logger.warning(
                    "%s: the trainer of fast-MPN-COV gives its %s stride 2 in stage 4, covariance networks here have "
                    "stride 1: they compute something else with these weights",
                    path,
                    content["arch"],
                )
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds {type(content).__name__}, not a state dict (name -> tensor)")
    return content


def _array(value: Any, name: str, path: Path) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.layout) != "torch.strided":
            raise UserError(f"{path}: {name} is a sparse tensor")
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not isinstance(value, np.ndarray):
        raise UserError(f"{path}: {name} is of type {type(value).__name__}, not a tensor; is this a state dict?")
    return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".tar": _read_torch,
    ".safetensors": _read_safetensors,
    ".pdparams": _read_paddle,
}


# Paddle adds a table of its own parameter names to the tensors.
_NAME_TABLE = "StructuredToParameterName@@"
# Codes of what NumPy calls boolean, integer, floating and complex kinds.
_NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}


def read_paddle(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict of Paddle with PyTorch names.

    `_mean` and `_variance` become `running_mean` and `running_var`; weights of rank 2, which Paddle stores as
    (in, out), are transposed. UserError: the pickle wants to build anything but arrays; a value is not an array.
    On damaged bytes: any exception, as the unpickler meets them.
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
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),  # its content follows (protocols below 5)
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
