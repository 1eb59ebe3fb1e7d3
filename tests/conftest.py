"""Shared by all tests: the repository root on the path, MindSpore's log kept to errors, both execution modes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src.runtime.environment import prepare_environment  # noqa: E402

prepare_environment()


@pytest.fixture
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(params=["GRAPH", "PYNATIVE"])
def mode(request: pytest.FixtureRequest) -> str:
    """Run the test in both execution modes of MindSpore."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE if request.param == "GRAPH" else ms.PYNATIVE_MODE)
    return request.param


@pytest.fixture
def graph_mode() -> None:
    """Run the test in graph mode."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def clean_env() -> dict[str, str]:
    """The environment for child processes: this one, without what a parent launcher may have left."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_"))}
