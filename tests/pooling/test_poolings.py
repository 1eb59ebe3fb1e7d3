"""What holds for every pooling: float64 references, invariances, degenerate inputs, mixed precision, export shape."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.pooling import create_pooling, list_poolings, pooling_info
from tests.pooling import reference
from tests.pooling.reference import (
    GRADIENT_TOLERANCE,
    REFERENCES,
    VALUE_TOLERANCE,
    directional_derivative,
    features,
    gradient,
    gradients,
    relative_error,
    value_and_gradient,
)

# The signed root divides by 2 sqrt|v|: rounding of an entry near 0 is magnified, more likely so among more entries.
ROOTS = ("bcnn", "bcnn_lt", "ibcnn", "ibcnn_lt")

SHAPES = {
    "rank-deficient": (2, 16, 3, 3),
    "one position": (2, 5, 1, 1),
    "one map, not square": (1, 8, 4, 5),
}
LARGE_SHAPES = {"full rank": (1, 256, 18, 18), "rank-deficient": (1, 256, 7, 7)}  # d = 64: see the fixtures


def check_value_and_gradient(name: str, shape: tuple) -> None:
    """Against the float64 reference and its central difference in a random direction."""
    x = features(shape)
    cell = create_pooling(name, shape[1])
    expected = REFERENCES[name](x)
    rng = np.random.default_rng(1)
    g, v = rng.standard_normal((shape[0], cell.out_features)), rng.standard_normal(shape)
    out, grad = value_and_gradient(cell, x, g)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out, expected, atol=VALUE_TOLERANCE * max(np.abs(expected).max(), 1e-3))
    assert np.isfinite(grad).all()
    function = REFERENCES[name]
    if name == "apn":  # no gradient through alpha
        alpha = reference.apn_alpha(x)
        function = functools.partial(reference.apn_at, alpha=alpha)
    # 1e-8 beside the eps of 1e-6: the logarithms of null directions would be mostly rounding.
    derivative = directional_derivative(function, x, g, v, 1e-6 if name == "cholesky" else 1e-8)
    scale = max(abs(derivative), np.linalg.norm(grad) * np.linalg.norm(v) / np.sqrt(v.size), 1e-6)
    tolerance = GRADIENT_TOLERANCE if shape[1] < 64 else 2e-2 if name in ROOTS else 1e-3
    assert abs((grad * v).sum() - derivative) < tolerance * scale


def test_every_pooling_has_a_reference() -> None:
    assert sorted(REFERENCES) == sorted(list_poolings())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_value_and_gradient(name: str, shape: tuple, pynative_mode: None) -> None:
    """test_fixtures.py and test_extreme_values.py compile every pooling; a shape more costs another compilation."""
    check_value_and_gradient(name, shape)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_value_and_gradient_of_many_channels(name: str, pynative_mode: None) -> None:
    check_value_and_gradient(name, LARGE_SHAPES["full rank"])


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_value_and_gradient_of_many_channels_in_graph_mode(name: str, graph_mode: None) -> None:
    check_value_and_gradient(name, LARGE_SHAPES["rank-deficient"])


@pytest.mark.parametrize("name", ["bcnn_lt", "ibcnn_lt", "layernorm"])
def test_learnable_scale_and_shift(name: str, mode: str) -> None:
    x = features((3, 6, 5, 5))
    cell = create_pooling(name, 6)
    rng = np.random.default_rng(2)
    gamma, beta, g = rng.uniform(0.5, 2, 21), rng.standard_normal(21), rng.standard_normal((3, 21))
    cell.affine.gamma.set_data(ms.Tensor(gamma.astype(np.float32)))
    cell.affine.beta.set_data(ms.Tensor(beta.astype(np.float32)))
    plain = REFERENCES[name](x)
    assert relative_error(cell(ms.Tensor(x)), gamma * plain + beta) < 1e-5
    dx, dw = gradients(cell, x, g)
    assert relative_error(dw["affine.gamma"], (plain * g).sum(0)) < 1e-5
    assert relative_error(dw["affine.beta"], g.sum(0)) < 1e-6
    assert relative_error(dx, gradient(create_pooling(name, 6), x, g * gamma)) < 1e-4


class Scaled(nn.Cell):
    """A network around a pooling, as mixed precision finds it."""

    def __init__(self, pooling: nn.Cell) -> None:
        super().__init__()
        self.pooling = pooling

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.pooling(x)


EVERY_LEVEL = ["dropcov", "fast_mpn", "gcp", "mpn"]


@pytest.mark.parametrize("name", EVERY_LEVEL)
def test_float32_with_mixed_precision(
    name: str, graph_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_mixed_precision(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", list_poolings())
def test_float32_with_mixed_precision_in_pynative_mode(
    name: str, pynative_mode: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/training/test_precision_graph.py looks at the compiled graph of all poolings."""
    check_mixed_precision(name, tmp_path, monkeypatch)


def check_mixed_precision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covariances here pass float16's largest value, 65504; the input is exact in float16."""
    monkeypatch.chdir(tmp_path)  # O1 writes rewritten sources into the working folder
    x = (np.round(features((2, 8, 6, 6))) * 256).astype(np.float16).astype(np.float32)
    cell = create_pooling(name, 8)
    g = np.random.default_rng(0).standard_normal((2, cell.out_features)) * 100
    expected, plain = value_and_gradient(cell, x, g)
    if name in ("gcp", "dropcov"):
        assert np.abs(expected).max() > 65504
    # O3 and "auto" set the same flags as O2: seen with some poolings.
    for level in ("O1", "O2", "O3", "auto") if name in EVERY_LEVEL else ("O1", "O2"):
        net = ms.amp.auto_mixed_precision(Scaled(create_pooling(name, 8)), level)
        out, grad = value_and_gradient(net, x, g)
        assert out.dtype == np.float32, level
        assert relative_error(out, expected) < 1e-6, level
        # At O2 and O3 the gradient leaves the pooling through the cast of its input, in float16.
        relative, absolute = (1e-3, 1e-7) if level in ("O2", "O3") else (1e-5, 0.0)
        assert np.abs(grad - plain).max() <= relative * np.abs(plain).max() + absolute, level


@pytest.mark.parametrize("name", list_poolings())
def test_batch_size_is_open_and_positions_have_no_order_in_evaluation(name: str, graph_mode: None) -> None:
    cell = create_pooling(name, 8).set_train(False)
    cell.set_inputs(ms.Tensor(shape=[None, 8, 4, 4], dtype=ms.float32))
    x = features((6, 8, 4, 4))
    whole = REFERENCES[name](x)
    for n in (1, 2, 6):
        assert relative_error(cell(ms.Tensor(x[:n])), whole[:n]) < VALUE_TOLERANCE
    shuffled = np.random.default_rng(3).permutation(x.reshape(6, 8, 16), axis=2).reshape(x.shape)
    assert relative_error(cell(ms.Tensor(shuffled)), cell(ms.Tensor(x)).asnumpy()) < 1e-5


@pytest.mark.parametrize("name", list_poolings())
def test_docstring_and_document_tell_the_facts(name: str, root: Path) -> None:
    """The class: formula, source, arguments. docs/poolings.md: a row with every argument and its default."""
    info = pooling_info(name)
    doc = info.cell.__doc__ or ""
    assert info.is_covariance == (name != "gap")
    assert name == "gap" or "Source:" in doc
    assert all(f"{argument}:" in doc for argument in info.arguments)
    rows = [line.split("|") for line in (root / "docs" / "poolings.md").read_text().splitlines()]
    _, _, output, arguments, flops, published, source, _ = next(row for row in rows if row[1:2] == [f" `{name}` "])
    call = ast.parse(f"f({', '.join(re.findall('`(.*?)`', arguments))})", mode="eval").body
    assert isinstance(call, ast.Call)
    documented = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    parameters = inspect.signature(info.cell).parameters
    assert documented == {key: parameters[key].default for key in info.arguments if key != "solver"}
    assert all(cell.strip() for cell in (output, flops, published)) and (name == "gap" or source.strip())
