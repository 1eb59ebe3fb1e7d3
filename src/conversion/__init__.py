"""Checkpoints of PyTorch and Paddle in MindSpore, and the way back."""

from src.conversion.merge import load_into
from src.conversion.names import convert_state_dict, to_pytorch

__all__ = ["convert_state_dict", "load_into", "to_pytorch"]
