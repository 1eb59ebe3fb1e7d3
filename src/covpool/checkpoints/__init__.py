"""Checkpoints of PyTorch and Paddle in MindSpore, and the way back."""

from covpool.checkpoints.conversion import (
    Report,
    convert_file,
    read_ckpt,
    read_parameters,
    read_weights,
    start_from,
    write_ckpt,
    write_safetensors,
)
from covpool.checkpoints.entries import read_entries
from covpool.checkpoints.loading import load_into
from covpool.checkpoints.names import convert_state_dict, to_pytorch
from covpool.checkpoints.readers import read_state_dict

__all__ = [
    "Report",
    "convert_file",
    "convert_state_dict",
    "load_into",
    "read_ckpt",
    "read_entries",
    "read_parameters",
    "read_state_dict",
    "read_weights",
    "start_from",
    "to_pytorch",
    "write_ckpt",
    "write_safetensors",
]
