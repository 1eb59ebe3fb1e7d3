"""Shared by the tests of the networks."""

from __future__ import annotations

import pytest


@pytest.fixture
def pynative_mode() -> None:
    """Run the test in PyNative mode: nothing is compiled, so small networks start at once."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
