"""The figures of the documents are those that their script draws."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# matplotlib's parser of formulas under newer pyparsing.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


@pytest.fixture
def drawing(root: Path):
    spec = importlib.util.spec_from_file_location("make_figures", root / "docs" / "images" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["overview", "dropcov", "fast_mpn", "tutorial_textures"])
def test_the_figures_are_up_to_date(drawing, root: Path, tmp_path: Path, name: str) -> None:
    getattr(drawing, name)(tmp_path)
    files = (tmp_path / f"{name}.png", root / "docs" / "images" / f"{name}.png")
    drawn, kept = (np.asarray(Image.open(file).convert("L"), float) for file in files)
    assert abs(np.subtract(drawn.shape, kept.shape)).max() <= 8  # fonts differ between versions of matplotlib
    rows, columns = np.minimum(drawn.shape, kept.shape)
    assert abs(drawn[:rows, :columns] - kept[:rows, :columns]).mean() < 8


def test_the_drawn_iteration_is_the_one_of_the_pooling(drawing) -> None:
    """Fast-MPN of a diagonal covariance is the scalar iteration on its eigenvalues."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((36, 5)))[0].T
    x = (x - x.mean(1, keepdims=True)).reshape(5, 6, 6)
    c = drawing.covariance(x)
    lam, u = np.linalg.eigh(c)
    y = drawing.newton_schulz(lam / lam.sum(), 5) * np.sqrt(lam.sum())
    np.testing.assert_allclose(drawing.pooled("fast_mpn", x), (u * y) @ u.T, atol=1e-5)


def test_links_lead_somewhere(root: Path) -> None:
    """Relative links and pictures of all documents."""
    dead = []
    for document in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                dead.append(f"{document.relative_to(root)}: {target}")
    assert not dead, "\n".join(dead)
