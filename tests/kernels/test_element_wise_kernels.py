"""Signed root and scale and shift against the cells that they replace."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.kernels.cells import CompiledAffine, CompiledSignedRootL2
from covpool.pooling.element_wise import Affine, SignedRootL2
from tests.pooling.reference import gradient, gradients, relative_error

SHAPES = [(2, 7), (40, 8256)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signed_root(library: Path, shape: tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(0)
    v, g = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    v[:, ::3] = 0
    v[-1] = 0  # a row of zeros: zero, without a gradient
    plain, compiled = SignedRootL2(), CompiledSignedRootL2(library)
    assert relative_error(compiled(ms.Tensor(v)), plain(ms.Tensor(v)).asnumpy()) < 1e-6
    found, expected = gradient(compiled, v, g), gradient(plain, v, g)
    np.testing.assert_array_equal(found[v == 0], 0)
    assert relative_error(found, expected) < 2e-6


def test_what_is_not_a_number_stays_in_its_row(library: Path, graph_mode: None) -> None:
    v = np.ones((2, 50), np.float32)
    v[0, 20] = np.nan
    assert np.isfinite(CompiledSignedRootL2(library)(ms.Tensor(v)).asnumpy()).all(1).tolist() == [False, True]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_affine(library: Path, shape: tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(0)
    v, g = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    found = []
    for compiled in (False, True):
        affine = Affine(shape[1])
        affine.gamma.set_data(ms.Tensor(np.linspace(0.5, 2, shape[1], dtype=np.float32)))
        affine.beta.set_data(ms.Tensor(np.linspace(-1, 1, shape[1], dtype=np.float32)))
        names = [p.name for p in affine.get_parameters()]
        cell = CompiledAffine(affine, library) if compiled else affine
        assert [p.name for p in cell.get_parameters()] == names
        dx, weights = gradients(cell, v, g)
        found.append([cell(ms.Tensor(v)).asnumpy(), dx, *(weights[name] for name in names)])
    for plain, compiled_result in zip(*found):
        assert relative_error(compiled_result, plain) < 2e-6
