"""Values and gradients against reference numbers made in float64 by another implementation."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from covpool.pooling import create_pooling
from covpool.pooling.covariance import centred
from tests.pooling.reference import cotangent, load, relative_error, value_and_gradient

# Largest relative errors that float32 leaves here (value, gradient); the contract allows 1e-3 and 5e-3.
# The signed root divides by 2 sqrt|v|, which magnifies the rounding of entries near 0 (4e-4 seen).
EXPECTED = {
    "bcnn": (2e-6, 1e-3),
    "bcnn_lt": (2e-6, 1e-3),
    "bdc": (2e-6, 5e-6),
    "cholesky": (1e-6, 1e-6),
    "fast_mpn": (1e-5, 5e-6),
    "gcp": (2e-6, 2e-6),
    "ibcnn": (5e-6, 3e-3),
    "ibcnn_lt": (5e-6, 3e-3),
    "ilogm": (5e-6, 2e-5),
    "layernorm": (2e-6, 2e-6),
    "logm": (5e-6, 2e-5),
    "maxexp": (5e-6, 5e-6),
    "mpn": (2e-6, 1e-5),
    "mtp": (5e-6, 5e-6),
    "seb": (5e-6, 2e-5),
    "sigme": (1e-5, 5e-6),
}


# A shape is compiled anew: GRAPH mode has the largest one, and with --all the others.
COMPILED = ["d64_s14", *(pytest.param(name, marks=pytest.mark.only_with_all) for name in ("d16_s5", "d64_s7"))]


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("fixture", COMPILED)
def test_fixture_in_graph_mode(name: str, fixture: str, graph_mode: None) -> None:
    check_fixture(name, fixture)


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("fixture", ["d16_s5", "d64_s7", "d64_s14"])
def test_fixture_in_pynative_mode(name: str, fixture: str, pynative_mode: None) -> None:
    check_fixture(name, fixture)


def check_fixture(name: str, fixture: str) -> None:
    data = load(fixture)
    key = name.replace("_lt", "")  # scale 1, shift 0
    if key + "_out" not in data:
        assert (fixture, key) in [("d64_s7", k) for k in ("ibcnn", "ilogm", "logm", "mpn", "seb")]  # no reference there
        return
    x = data["x"]
    cell = create_pooling(name, x.shape[1])
    shape = (x.shape[0], cell.out_features)
    out, grad = value_and_gradient(cell, x, cotangent(data, shape))
    assert out.shape == shape
    assert out.dtype == np.float32
    assert relative_error(out, data[key + "_out"]) < EXPECTED[name][0]
    assert relative_error(grad, data[key + "_grad"]) < EXPECTED[name][1]


@pytest.mark.parametrize("fixture", COMPILED)
def test_dropcov_fixture_in_graph_mode(fixture: str, graph_mode: None) -> None:
    check_dropcov(fixture)


@pytest.mark.parametrize("fixture", ["d16_s5", "d64_s7", "d64_s14"])
def test_dropcov_fixture_in_pynative_mode(fixture: str, pynative_mode: None) -> None:
    check_dropcov(fixture)


def check_dropcov(fixture: str) -> None:
    data = load(fixture)
    x = ms.Tensor(data["x"])
    cell = create_pooling("dropcov", x.shape[1], max_rate=0.99)
    cell.conv.weight.set_data(ms.Tensor(data["dropcov_kernel"].reshape(1, 1, 3).astype(np.float32)))
    a, mean = centred(x)
    omega = cell.importance(mean)
    assert relative_error(omega, data["dropcov_omega"]) < 1e-5
    rescaled = x * (1 + omega).expand_dims(-1).expand_dims(-1)
    assert relative_error(rescaled, data["dropcov_rescaled"]) < 1e-5
    rho = float(cell.drop_rate(omega, a, 1 + omega))
    assert rho == pytest.approx(float(data["dropcov_rho"]), abs=1e-5)
    cell.set_train(False)
    assert relative_error(cell(x), data["gcp_out"]) < 2e-6


@pytest.mark.parametrize("fixture", ["d16_s5", "d64_s14"])
def test_apn_fixture(fixture: str, mode: str) -> None:
    data = load(fixture)
    cell = create_pooling("apn", data["x"].shape[1], tau=4.0, floor=0.1, alpha_min=0.1)
    lam, _ = cell.eigen(ms.Tensor(data["x"]))
    alpha = cell.function_parameter(lam).asnumpy().ravel()
    np.testing.assert_allclose(alpha, data["apn_alpha_c0.1_tau4"], atol=1e-3)


def test_published_gradient_of_mtp(mode: str) -> None:
    """That of the Lyapunov iteration, which is not the one of the polynomial."""
    data = load("d16_s5")
    cell = create_pooling("mtp", 16, gradient="lyapunov")
    out, grad = value_and_gradient(cell, data["x"], cotangent(data, data["mtp_out"].shape))
    assert relative_error(out, data["mtp_out"]) < 5e-6
    assert relative_error(grad, data["mtp_lyapunov_grad"]) < 5e-6
    assert relative_error(grad, data["mtp_grad"]) > 1e-2
