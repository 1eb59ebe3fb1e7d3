"""Shared by the comparisons with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import mindspore  # noqa: F401  must come before torch: both bring an OpenMP runtime
import pytest
import torch


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """The tensors are small, and PyTorch's threads would wait for each other beside MindSpore's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
