"""Centring and triangle against the cells that they replace, and every pooling with and without the kernels."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.kernels import apply_cpu_kernels, find_kernels
from covpool.kernels.cells import CompiledCentre, CompiledSymmetricVector
from covpool.pooling import create_pooling, list_poolings
from covpool.pooling.covariance import Centre, GramVector, SymmetricVector, vector_length
from tests.pooling.reference import features, gradient, relative_error

WIDTHS = [1, 3, 33, 130]


class Centred(nn.Cell):
    """The centred map alone, as (N, C, H, W)."""

    def __init__(self, centre: nn.Cell) -> None:
        super().__init__()
        self.centre = centre

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.centre(x)[0].reshape(x.shape)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 70, 2, 3), (8, 200, 14, 14)], ids=str)
def test_centre(library: Path, shape: tuple[int, ...], mode: str) -> None:
    x, g = features(shape) + np.float32(5), features(shape, 1)
    a, mean = CompiledCentre(library)(ms.Tensor(x))
    expected, expected_mean = Centre()(ms.Tensor(x))
    assert a.shape == expected.shape and mean.shape == expected_mean.shape
    np.testing.assert_allclose(a.asnumpy(), expected.asnumpy(), atol=1e-5)
    np.testing.assert_array_equal(mean.asnumpy(), expected_mean.asnumpy())
    np.testing.assert_array_equal(gradient(Centred(CompiledCentre(library)), x, g), g)
    np.testing.assert_array_equal(gradient(Centred(Centre()), x, g), g)


@pytest.mark.parametrize("d", WIDTHS)
def test_triangle(library: Path, d: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    n = 40 if d == 130 else 2  # enough for several threads
    c, g = rng.standard_normal((n, d, d)), rng.standard_normal((n, vector_length(d)))
    c, g = c.astype(np.float32), g.astype(np.float32)
    plain, compiled = SymmetricVector(d), CompiledSymmetricVector(d, library)
    np.testing.assert_array_equal(compiled(ms.Tensor(c)).asnumpy(), plain(ms.Tensor(c)).asnumpy())
    np.testing.assert_array_equal(gradient(compiled, c, g), gradient(plain, c, g))


@pytest.mark.parametrize("d", [2, 130])
def test_covariance_vector(library: Path, d: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    a, g = rng.standard_normal((2, d, 9)), rng.standard_normal((2, vector_length(d)))
    a, g = a.astype(np.float32), g.astype(np.float32)
    plain, compiled = GramVector(d), GramVector(d)
    compiled.vector = CompiledSymmetricVector(d, library)
    assert relative_error(compiled(ms.Tensor(a)), plain(ms.Tensor(a)).asnumpy()) < 1e-6
    assert relative_error(gradient(compiled, a, g), gradient(plain, a, g)) < 1e-6


# Together they use every kernel in every combination that the others have.
ALWAYS = ("bcnn", "dropcov", "fast_mpn", "gcp", "layernorm")
REST = [pytest.param(name, marks=pytest.mark.only_with_all) for name in list_poolings() if name not in ALWAYS]


def output_and_gradients(cell: nn.Cell, x: np.ndarray) -> list[np.ndarray]:
    g = np.random.default_rng(1).standard_normal((len(x), cell.out_features)).astype(np.float32)
    parameters = list(cell.trainable_params())

    def weighted(x: ms.Tensor, g: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        out = cell(x)
        return (out * g).sum(), out

    step = ms.value_and_grad(weighted, 0, parameters or None, has_aux=True)
    (_, out), found = step(ms.Tensor(x), ms.Tensor(g))
    dx, weights = found if parameters else (found, ())
    assert len(weights) == len(parameters)
    return [t.asnumpy() for t in (out, dx, *weights)]


@pytest.mark.parametrize("name", [*ALWAYS, *REST])
def test_every_pooling(name: str, graph_mode: None) -> None:
    found = []
    for choice in ("mindspore", "compiled"):
        ms.set_seed(3)
        cell = create_pooling(name, 12)
        assert (apply_cpu_kernels(cell, find_kernels(choice)) > 0) == (choice == "compiled" and name != "gap")
        cell.set_train()
        found.append(output_and_gradients(cell, features((3, 12, 5, 5))))
    for plain, compiled in zip(*found):
        assert relative_error(compiled, plain) < (1e-3 if "bcnn" in name else 1e-5)
