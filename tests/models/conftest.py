"""Shared by the tests of the networks."""

from __future__ import annotations

import mindspore as ms
import pytest


@pytest.fixture
def pynative_mode() -> None:
    """Run the test in PyNative mode: nothing is compiled, so small networks start at once."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
