"""The eigen-decomposition against NumPy's in float64, in both modes, and poolings that use it."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.kernels.apply import apply_cpu_kernels
from covpool.kernels.cells import CompiledCovarianceEigen, eigen_operator
from covpool.pooling import create_pooling
from covpool.pooling.spectral import CovarianceEigen
from tests.pooling.reference import features, gradients


@pytest.mark.parametrize(("count", "d", "rank"), [(1, 1, 1), (3, 2, 2), (5, 64, 200), (2, 129, 40), (4, 7, 0)])
def test_decomposition(library: Path, mode: str, count: int, d: int, rank: int) -> None:
    """Of full rank, of low rank, and of zero."""
    a = np.random.default_rng(0).standard_normal((count, d, rank)) * np.logspace(-6, 3, d)[:, None]
    c = a @ a.transpose(0, 2, 1)
    values, vectors = (t.asnumpy() for t in eigen_operator(library)(ms.Tensor(c)))
    size = max(np.abs(c).max(), 1e-300)
    assert np.abs(values - np.linalg.eigvalsh(c)).max() <= 1e-13 * d * size
    assert np.abs(vectors @ vectors.transpose(0, 2, 1) - np.eye(d)).max() <= 1e-12
    assert np.abs(vectors @ (values[..., None] * vectors.transpose(0, 2, 1)) - c).max() <= 1e-13 * d * size


def test_what_is_not_finite_gives_nan_for_its_image_alone(library: Path, graph_mode: None) -> None:
    c = np.stack([np.eye(3), np.full((3, 3), np.inf), 2 * np.eye(3)])
    values, vectors = (t.asnumpy() for t in eigen_operator(library)(ms.Tensor(c)))
    assert np.isnan(values[1]).all() and np.isnan(vectors[1]).all()
    np.testing.assert_array_equal(values[[0, 2]], [[1, 1, 1], [2, 2, 2]])


@pytest.mark.parametrize("name", ["mpn", "logm", "ilogm", "ibcnn", "apn"])
def test_poolings_agree(library: Path, graph_mode: None, name: str) -> None:
    """Values and gradients with LAPACK and with MindSpore's solver, fewer positions than channels."""
    x = features((3, 24, 4, 4))
    own, compiled = create_pooling(name, 24), create_pooling(name, 24)
    assert apply_cpu_kernels(compiled, library) > 0
    kinds = {type(cell) for _, cell in compiled.cells_and_names()}
    assert CompiledCovarianceEigen in kinds and CovarianceEigen not in kinds
    g = np.random.default_rng(1).standard_normal((3, own.out_features))
    for cell in (own, compiled):
        cell.set_train()
    values = [cell(ms.Tensor(x)).asnumpy() for cell in (own, compiled)]
    slopes = [gradients(cell, x, g)[0] for cell in (own, compiled)]
    for a, b in (values, slopes):
        # Where two eigenvalues are as far apart as NEAR, a rounding decides between quotient and derivative.
        assert np.linalg.norm(a - b) <= 5e-5 * np.linalg.norm(a)
