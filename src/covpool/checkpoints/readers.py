"""Reading checkpoints of other frameworks as arrays with PyTorch names; no code of a file is ever run."""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable

import mindspore  # noqa: F401 - MindSpore must be imported before PyTorch: both bring an OpenMP runtime
import numpy as np

from covpool.checkpoints.entries import check_file, damaged
from covpool.checkpoints.paddle import read_paddle
from covpool.errors import UserError

logger = logging.getLogger(__name__)

# What unpicklers raise on foreign or damaged bytes, which they run like a program.
_UNPICKLING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)

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
    except (*_UNPICKLING_ERRORS, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, "PyTorch", error) from error
    if broken:
        raise UserError(f"{path}: damaged, the checksum of its part {broken!r} is wrong")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
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
    except _UNPICKLING_ERRORS as error:
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
