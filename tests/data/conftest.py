"""Shared by the tests of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.data import ArraySource, array_source
from tests.data.image_files import PIXELS, encoded


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four good images in train/, two in val/."""
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = len(list(root.rglob("*.png")))  # another image each time
                (root / split / label / f"{number}.png").write_bytes(encoded(pixels=np.roll(PIXELS, seed, 1)[:9, :9]))
    return root


@pytest.fixture
def check(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Run the check: (exit code, problems, notes), each finding as (kind, path, text)."""

    def run(*options: str) -> tuple[int, list[tuple[str, str, str]], list[tuple[str, str, str]]]:
        report = tmp_path / "report.json"
        code = cli.run(["check-data", "--data_path", str(folder), "--json", str(report), *options])
        content = json.loads(report.read_text())
        printed = capsys.readouterr().out.splitlines()
        problems, notes = ([(f["kind"], f["path"], f["text"]) for f in content[k]] for k in ("problems", "notes"))
        for finding in problems:
            assert f"problem: {': '.join(part for part in finding if part)}" in printed
        assert f"problems: {len(problems)}, notes: {len(notes)}" in printed[-1] or "--write_clean_list" in options
        return code, problems, notes

    return run
