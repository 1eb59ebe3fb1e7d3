"""Comparison of runs: the table's numbers and a picture that opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from covpool.errors import UserError
from covpool.plots import plot_curves
from covpool.research.tables import comparison_table, plot_comparison, read_epochs

RECORDS = [
    {"kind": "step", "epoch": 1, "step": 5, "loss": 2.0},
    {"kind": "epoch", "step": 1, "epoch": 1, "loss": 1.5, "top_1_accuracy": 0.5, "train_s": 10.0, "learning_rate": 0.1},
    {
        "kind": "epoch",
        "step": 1,
        "epoch": 2,
        "loss": 1.0,
        "top_1_accuracy": 0.75,
        "train_s": 12.0,
        "learning_rate": 0.1,
    },
    {"kind": "epoch", "step": 1, "epoch": 3, "loss": 0.9, "top_1_accuracy": 0.7, "train_s": 11.0, "learning_rate": 0.1},
]


def run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return path


def test_table_and_picture(tmp_path: Path) -> None:
    epochs = read_epochs(run_folder(tmp_path / "a"))
    table = comparison_table({"gap": epochs})
    assert table.splitlines()[-1] == "| gap | 3 | 70.00 | 75.00 | 0.900 | 11 |"
    plot_comparison({"gap": epochs, "gcp": epochs}, tmp_path / "plot.png", "two runs")
    plot_curves(epochs, tmp_path / "curves.png")
    for name in ("plot.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 800


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_epochs(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no evaluated epoch"):
        read_epochs(tmp_path)
