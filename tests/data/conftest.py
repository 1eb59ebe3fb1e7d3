from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from src.data import ArraySource, array_source


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., Path]:
    """Write an image file below tmp_path: of one gray value, or of given pixels."""

    def write(name: str, pixels: Any = 0, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full((6, 8, 3), pixels, np.uint8) if isinstance(pixels, int) else pixels
        Image.fromarray(array).save(path, **options)
        return path

    return write


@pytest.fixture
def numbered() -> Callable[..., ArraySource]:
    """A source of n images whose label is their number, and whose pixels hold it too."""

    def make(n: int, side: int = 8, channels: int = 3) -> ArraySource:
        numbers = np.arange(n)
        noise = np.random.default_rng(7).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
        noise[:, 0, 0, 0] = numbers % 256
        return array_source("numbered", "train", [str(i) for i in numbers], noise, numbers, (0.5,) * 3, (0.25,) * 3)

    return make


@pytest.fixture
def batches() -> Callable[..., list[dict[str, np.ndarray]]]:
    """All batches of a dataset as NumPy arrays."""

    def collect(dataset: Any) -> list[dict[str, np.ndarray]]:
        return list(dataset.create_dict_iterator(num_epochs=1, output_numpy=True))

    return collect
