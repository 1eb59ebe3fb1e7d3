"""The Python programs of docs/deploy.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covpool.export import export_network
from tests.export.conftest import tiny, transform


@pytest.fixture
def names(images, tmp_path, monkeypatch, pynative_mode) -> dict[str, Any]:
    """What the programs take as given: a network, images, facts, and both files in the working folder."""
    monkeypatch.chdir(tmp_path)
    about = {"class_names": ["a", "b", "c", "d"], "transform": transform(224, 224)}
    images = np.resize(images[:2], (2, 3, 224, 224))
    for file_format in ("MINDIR", "ONNX"):
        export_network(tiny(), "net", file_format, images, about)
    return {"network": tiny(), "images": images, "about": about}


def test_programs_of_the_documentation(names, root):
    text = (root / "docs" / "deploy.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(programs) == 3
    for program in programs:
        scope = dict(names)
        exec(compile(program, "docs/deploy.md", "exec"), scope)  # noqa: S102 - programs of this repository
        assert scope["logits"].shape == (len(scope["images"]) if "exported" in scope else 8, 4)
    assert {p.name for p in Path().iterdir()} == {"net.mindir", "net.onnx"}
