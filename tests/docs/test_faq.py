"""The program of docs/faq.md works: a checkpoint whose triangle is ordered by columns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest


def test_the_triangle_of_an_old_file_is_reordered(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    d, classes = 6, 3
    rng = np.random.default_rng(0)
    x = rng.standard_normal((d, 9))
    c = x @ x.T
    by_columns = np.triu(np.ones((d, d), bool)).T  # as an earlier fast-MPN-COV: torch.ones(d, d).triu().t()
    old = torch.tensor(rng.standard_normal((classes, d * (d + 1) // 2)))
    logits = old.numpy() @ c[by_columns]
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"module.features.0.weight": torch.zeros(1), "module.fc.weight": old}}, "old.pth.tar")

    (program,) = re.findall(r"```python\n(.*?)```", (root / "docs/faq.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(program, "docs/faq.md", "exec"), {})  # noqa: S102 - a program of this repository

    new = torch.load("reordered.pth", weights_only=True)
    assert set(new) == {"module.features.0.weight", "module.fc.weight"}
    np.testing.assert_allclose(new["module.fc.weight"].numpy() @ c[np.triu_indices(d)], logits, rtol=1e-12)
    assert not np.allclose(old.numpy() @ c[np.triu_indices(d)], logits)
