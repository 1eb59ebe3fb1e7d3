"""The cells of docs/tutorial.ipynb run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")


@pytest.mark.only_with_all
def test_the_notebook(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((root / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    space: dict[str, object] = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        program = "".join(cell["source"]).replace("EPOCHS = 40", "EPOCHS = 6")
        exec(compile(program, cell["id"], "exec"), space)  # noqa: S102 - a program of this repository
    rows = (tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 21
    assert space["covariances"].shape == (120, 64, 64)
