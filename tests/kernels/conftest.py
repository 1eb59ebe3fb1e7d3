"""The kernels, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from covpool.kernels.library import compile_kernels, set_threads


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = compile_kernels(tmp_path_factory.mktemp("cache") / "mindspore-gcp")
    set_threads(path, 2)
    return path
