"""Shared by the tests of the networks."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Where a file compares with PyTorch, its threads would wait for each other beside MindSpore's."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(threads)


@pytest.fixture
def pynative_mode() -> None:
    """Run the test in PyNative mode: nothing is compiled, so small networks start at once."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
