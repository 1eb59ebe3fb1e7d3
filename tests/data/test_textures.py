"""Texture classes differ in what they are said to differ in, and in nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.data.textures import Textures


def _statistics(textures: Textures, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and correlation of the channels, averaged over images."""
    means, variances, correlations = [], [], []
    for image in textures.images(label, 60, seed=3):
        pixels = image.reshape(-1, 3).astype(np.float64)
        means.append(pixels.mean(0))
        variances.append(pixels.var(0))
        correlations.append(np.corrcoef(pixels.T)[np.triu_indices(3, 1)])
    return np.mean(means, 0), np.mean(variances, 0), np.mean(correlations, 0)


def test_correlation_classes_have_equal_means_and_variances() -> None:
    textures = Textures(("correlation",), classes=8, size=48)
    found = [_statistics(textures, label) for label in range(8)]
    assert np.ptp([mean for mean, _, _ in found], axis=0).max() < 8  # brightness varies by 12 from image to image
    assert np.ptp([variance for _, variance, _ in found], axis=0).max() < 0.2 * 36**2
    for label, (_, _, correlation) in enumerate(found):
        np.testing.assert_allclose(correlation, textures.correlation(label)[np.triu_indices(3, 1)], atol=0.06)


def test_colour_classes_differ_in_the_mean_alone() -> None:
    textures = Textures(("colour",), classes=4, size=48)
    found = [_statistics(textures, label) for label in range(4)]
    assert min(np.abs(found[i][0] - found[j][0]).max() for i in range(4) for j in range(i)) > 40
    assert max(np.abs(correlation).max() for _, _, correlation in found) < 0.06


def test_orientations_are_told_apart_by_their_gradients() -> None:
    textures = Textures(("orientation",), classes=3, size=48, strength=1.0)
    shares = []
    for label in range(3):
        gray = np.stack([image.mean(2) for image in textures.images(label, 20, seed=0)])
        down, right = np.diff(gray, axis=1).var(), np.diff(gray, axis=2).var()
        shares.append(down / (down + right))
    assert shares[0] < 0.2 and 0.4 < shares[1] < 0.6 and shares[2] > 0.8


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--classes=3", "--size=16", "--train=4", "--val=2", "--by", "correlation", "colour"]
    for name in ("one", "two"):
        assert cli.run(["make-textures", f"--output={tmp_path / name}", *options]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 18
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    images = {Image.open(tmp_path / "one" / file).tobytes() for file in files}
    assert len(images) == 18, "no image twice, not between train and val either"
    capsys.readouterr()
    assert cli.run(["make-textures", f"--output={tmp_path / 'one'}", *options]) == 1
    assert cli.run(["make-textures", f"--output={tmp_path / 'three'}", "--strength=2"]) == 2
    assert "strength = 2.0 between 0 and 1" in capsys.readouterr().err and not (tmp_path / "three").exists()
