"""Checkpoint files of every format for the tests, and what an error of reading one must look like."""

from __future__ import annotations

import pickle
from pathlib import Path

import mindspore  # noqa: F401 - before torch: both bring an OpenMP runtime
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from covpool.checkpoints import convert_state_dict, read_parameters, write_ckpt
from covpool.errors import UserError

ENDINGS = [".pth", ".safetensors", ".pdparams", ".ckpt"]


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def paddle_dict(arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """As Paddle saves the same network: its own names of statistics, dense weights (in, out), a table of names."""
    content: dict[str, object] = {}
    for name, value in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        content[name] = value.T.copy() if value.ndim == 2 else value
    content["StructuredToParameterName@@"] = {name: f"param_{i}" for i, name in enumerate(content)}
    return content


def same(read: dict[str, np.ndarray], source: dict[str, np.ndarray], counts: bool = True) -> bool:
    expected = {k: v for k, v in source.items() if counts or not k.endswith("num_batches_tracked")}
    return set(read) == set(expected) and all(read[k].tobytes() == expected[k].tobytes() for k in expected)


def written(folder: Path, ending: str, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / f"model{ending}"
    if ending == ".pth":
        torch.save(tensors(arrays), path)
    elif ending == ".safetensors":
        save_file(arrays, path)
    elif ending == ".pdparams":
        path.write_bytes(pickle.dumps(paddle_dict(arrays), protocol=4))
    else:
        write_ckpt(path, convert_state_dict(arrays))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_parameters(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message
