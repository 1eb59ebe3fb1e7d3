"""The examples of docs/python.md run, and give what their comments say; docs/api.md is what the docstrings give."""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.reference import render
from tests.checkpoints.released import rule_state_dict

RESULT = re.compile(r"^(\S.*?)  # -> (.+)$", re.MULTILINE)


def blocks(root: Path) -> list[tuple[str, str]]:
    return re.findall(
        r"```python( mindcv)?\n(.*?)```", (root / "docs/python.md").read_text(encoding="utf-8"), re.DOTALL
    )


def run(block: str, names: dict) -> int:
    """Run a block; the number of results that its comments state."""
    exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102 - a document of this repository
    results = RESULT.findall(block)
    for expression, expected in results:
        if isinstance(ast.parse(expression).body[0], ast.Expr):
            assert repr(eval(expression, names)) == expected, expression  # noqa: S307
    return len(results)


def test_the_examples_run(root, tmp_path, monkeypatch, caplog):
    from safetensors.numpy import save_file

    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    save_file(rule_state_dict("resnet18", "gap"), "resnet18.safetensors")
    names: dict = {}
    found = [run(block, names) for mark, block in blocks(root) if not mark]
    assert sum(found) == 18
    assert "started from the backbone of resnet18.safetensors" in caplog.text


@pytest.mark.skipif(
    importlib.util.find_spec("mindcv") is None, reason="mindcv is not installed: pip install mindcv==0.3.0"
)
@pytest.mark.filterwarnings("ignore")
def test_the_example_with_mindcv_runs(root):
    import covpool

    ms.set_context(mode=ms.PYNATIVE_MODE)
    names = {"covpool": covpool, "images": ms.Tensor(np.zeros((2, 3, 64, 64), np.float32))}
    assert [run(block, names) for mark, block in blocks(root) if mark] == [1]


def test_the_reference_is_what_the_docstrings_give(root):
    stored = (root / "docs/api.md").read_text(encoding="utf-8")
    assert stored == render(), "python -m covpool.reference > docs/api.md"
    assert "### create_model" in stored and "### Checkpoint" not in stored
