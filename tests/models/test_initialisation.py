"""Fresh weights: moments and bounds of every kind of parameter."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.models import create_model


@pytest.fixture(scope="module")
def network() -> nn.Cell:
    ms.set_seed(3)
    return create_model("resnet18", pooling="gcp", reduction_dim=64)


def cells(network: nn.Cell, kind: type) -> list[tuple[str, nn.Cell]]:
    found = [(name, cell) for name, cell in network.cells_and_names() if isinstance(cell, kind)]
    assert found
    return found


def test_convolutions_are_kaiming_normal_over_fan_out(network):
    for name, cell in cells(network, nn.Conv2d):
        weight = cell.weight.asnumpy().astype(np.float64)
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        sigma = math.sqrt(2 / fan_out)
        z = weight / sigma
        error = 5 / math.sqrt(weight.size)  # five standard errors of the mean; the others are of the same order
        assert abs(z.mean()) < error, name
        assert abs(z.var() - 1) < 1.5 * error, name
        assert abs((z**4).mean() - 3) < 10 * error, name


def test_convolutions_differ(network):
    first = [cell.weight.asnumpy().ravel()[:64] for _, cell in cells(network, nn.Conv2d)]
    assert len({w.tobytes() for w in first}) == len(first)


def test_batch_normalisation_starts_at_the_identity(network):
    for name, cell in cells(network, nn.BatchNorm2d):
        expected = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}
        for leaf, value in expected.items():
            assert (getattr(cell, leaf).asnumpy() == value).all(), f"{name}.{leaf}"
        assert cell.eps == 1e-5
        assert math.isclose(cell.momentum, 0.1)  # the cell keeps the part that is new: 1 - 0.9


def test_classifier_is_uniform_as_pytorchs_default(network):
    bound = 1 / math.sqrt(network.fc.in_channels)
    for parameter in (network.fc.weight, network.fc.bias):
        z = parameter.asnumpy().astype(np.float64) / bound
        assert np.abs(z).max() <= 1
        assert np.abs(z).max() > 1 - 20 / z.size
        assert abs(z.mean()) < 5 * math.sqrt(1 / 3 / z.size)
        assert abs(z.var() - 1 / 3) < 5 * math.sqrt(4 / 45 / z.size)


def test_the_seed_decides():
    def draw(seed: int) -> list[np.ndarray]:
        ms.set_seed(seed)
        network = create_model("resnet10", pooling="dropcov", reduction_dim=8, base_width=8, num_classes=4)
        return [p.asnumpy() for p in network.get_parameters()]

    first, again, other = draw(1), draw(1), draw(2)
    assert all((a == b).all() for a, b in zip(first, again))
    assert any((a != b).any() for a, b in zip(first, other))
