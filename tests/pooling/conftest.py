"""Shared by the tests of the poolings."""

from __future__ import annotations

import pytest


@pytest.fixture
def pynative_mode() -> None:
    """Run the test in PyNative mode."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
