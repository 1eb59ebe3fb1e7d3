"""Poolings by name: listing, creation, one clear line for every wrong name or argument."""

from __future__ import annotations

import pytest

from covpool.pooling import UnknownNameError, create_pooling, list_poolings, pooling_info, register_pooling
from covpool.pooling.covariance import CovariancePooling
from covpool.registry import Registry


def test_names() -> None:
    names = list_poolings()
    assert names == sorted(names)
    first = "apn bcnn bcnn_lt bdc cholesky dropcov fast_mpn gap gcp"
    assert " ".join(names) == f"{first} ibcnn ibcnn_lt ilogm layernorm logm maxexp mpn mtp seb sigme"


def test_unknown_name_lists_nearest_and_all() -> None:
    with pytest.raises(UnknownNameError) as error:
        create_pooling("dropcv", 8)
    message = str(error.value)
    assert isinstance(error.value, ValueError)
    assert "Did you mean 'dropcov'" in message
    assert all(name in message for name in list_poolings())
    assert "\n" not in message


@pytest.mark.parametrize("name", [None, 3, "", "GCP"])
def test_unknown_name_of_any_kind(name: object) -> None:
    with pytest.raises(UnknownNameError):
        pooling_info(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_poolings())
def test_unknown_argument(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no argument 'iteration'; its arguments: "):
        create_pooling(name, 8, iteration=3)


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("fast_mpn", {"iterations": 0}, ValueError),
        ("fast_mpn", {"iterations": 11}, ValueError),
        ("fast_mpn", {"iterations": 2.5}, TypeError),
        ("fast_mpn", {"iterations": True}, TypeError),
        ("dropcov", {"decay": 0}, ValueError),
        ("dropcov", {"decay": "10"}, TypeError),
        ("dropcov", {"gate": "relu"}, ValueError),
        ("dropcov", {"rescale": 1}, TypeError),
        ("dropcov", {"max_rate": 1.0}, ValueError),
        ("dropcov", {"rate": 1.0}, ValueError),
        ("dropcov", {"rate": float("nan")}, ValueError),
        ("dropcov", {"seed": -1}, ValueError),
        ("sigme", {"slope": 0.0}, ValueError),
        ("layernorm", {"eps": 0.0}, ValueError),
        ("logm", {"eps": -1e-3}, ValueError),
        ("ilogm", {"eps": "small"}, TypeError),
        ("mpn", {"alpha": 1.5}, ValueError),
        ("mpn", {"alpha": 0.0}, ValueError),
        ("mpn", {"solver": "qr"}, ValueError),
        ("apn", {"tau": 0}, ValueError),
        ("apn", {"floor": 0}, ValueError),
        ("apn", {"alpha_min": 1.0}, ValueError),
        ("apn", {"objective": "largest"}, ValueError),
        ("maxexp", {"eta": 0}, ValueError),
        ("maxexp", {"eta": 2.0}, TypeError),
        ("maxexp", {"eps": 0.0}, ValueError),
        ("bdc", {"eps": 0.0}, ValueError),
        ("cholesky", {"eps": -1e-6}, ValueError),
        ("mtp", {"terms": 0}, ValueError),
        ("mtp", {"terms": 10.0}, TypeError),
        ("mtp", {"gradient": "automatic"}, ValueError),
        ("seb", {"solver": "qr"}, ValueError),
    ],
)
def test_bad_argument(name: str, args: dict, error: type) -> None:
    with pytest.raises(error, match=next(iter(args))) as info:
        create_pooling(name, 8, **args)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(("channels", "error"), [(0, ValueError), (-3, ValueError), (8.0, TypeError), ("8", TypeError)])
def test_bad_channels(channels: object, error: type) -> None:
    with pytest.raises(error, match="channels"):
        create_pooling("gcp", channels)  # type: ignore[arg-type]


def test_dropcov_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="at least 2 channels"):
        create_pooling("dropcov", 1)


def test_collision() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register_pooling("gcp", CovariancePooling)


def test_generic_registry() -> None:
    registry: Registry[int] = Registry("number")
    registry.add("one", 1)
    registry.add("two", 2)
    assert registry.get("one") == 1
    assert registry.names() == ["one", "two"]
    with pytest.raises(ValueError, match="non-empty"):
        registry.add("", 3)
    with pytest.raises(UnknownNameError, match=r"Unknown number 'onne'. Did you mean 'one'\? Known names: one, two\."):
        registry.get("onne")


def test_rate_factors() -> None:
    factors = {name: pooling_info(name).rate_factor for name in list_poolings()}
    assert {factors[name] for name in ("gap", "gcp", "dropcov", "fast_mpn", "mpn")} == {1.0}
    assert factors["bcnn"] == 10 and factors["layernorm"] == 0.1
