"""Strict loading: what differs is named, and nothing is changed then."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.checkpoints import convert_state_dict, load_into
from covpool.errors import UserError
from covpool.models import create_model
from tests.checkpoints.released import rule_state_dict


def network(name: str = "resnet18", pooling: str = "dropcov", **args) -> nn.Cell:
    return create_model(name, pooling=pooling, **{"base_width": 8, "reduction_dim": 16, "num_classes": 5, **args})


@pytest.fixture
def parameters() -> dict[str, ms.Parameter]:
    return convert_state_dict(rule_state_dict("resnet18", "acd", 16, classes=5, width=8))


def values(cell: nn.Cell) -> dict[str, bytes]:
    return {p.name: p.asnumpy().tobytes() for p in cell.get_parameters()}


def test_every_value_arrives(parameters):
    cell = network()
    assert load_into(cell, parameters) == []
    assert values(cell) == {name: p.asnumpy().tobytes() for name, p in parameters.items()}


def test_the_source_stays_independent(parameters):
    cell = network()
    load_into(cell, parameters)
    before = parameters["fc.bias"].asnumpy().copy()
    cell.fc.bias.set_data(ms.Tensor(before + 1))
    np.testing.assert_array_equal(parameters["fc.bias"].asnumpy(), before)


@pytest.mark.parametrize(
    ("args", "phrases"),
    [
        ({"reduction_dim": 64}, ["reduction_dim: 16 in the checkpoint, 64 in the network"]),
        ({"num_classes": 7}, ["class_num: 5 in the checkpoint, 7 in the network"]),
        ({"base_width": 16}, ["base_width: 8 in the checkpoint, 16 in the network", "and 98 more"]),
        ({"in_channels": 1}, ["in_channels: 3 in the checkpoint, 1 in the network"]),
        ({"stem": "small"}, ["stem: imagenet in the checkpoint, small in the network"]),
        ({"name": "resnet34"}, ["(resnet18) in the checkpoint", "(resnet34) in the network", "missing"]),
        ({"name": "resnet50"}, ["basic blocks", "bottleneck blocks (3, 4, 6, 3) (resnet50) in the network"]),
        ({"name": "resnet10"}, ["(resnet10) in the network", "left over in the checkpoint (40)"]),
        ({"pooling": "gap"}, ["reduction_dim: 16 in the checkpoint, none (global average pooling) in the network"]),
        ({"pooling": "fast_mpn"}, ["pooling: dropcov in the checkpoint, one without parameters in the network"]),
    ],
)
def test_contradictions_are_named_and_nothing_is_loaded(parameters, args, phrases):
    cell = network(**args)
    before = values(cell)
    with pytest.raises(UserError) as error:
        load_into(cell, parameters)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1200
    for phrase in phrases:
        assert phrase in message
    assert values(cell) == before


def test_two_way_difference(parameters):
    parameters["spare.weight"] = ms.Parameter(ms.Tensor(np.zeros((2, 2), np.float32)), name="spare.weight")
    del parameters["bn1.gamma"]
    parameters["fc.bias"] = ms.Parameter(ms.Tensor(np.zeros(6, np.float32)), name="fc.bias")
    parameters["bn1.beta"] = ms.Parameter(ms.Tensor(np.zeros(8, np.int32)), name="bn1.beta")
    with pytest.raises(UserError) as error:
        load_into(network(), parameters)
    message = str(error.value)
    assert "missing in the checkpoint (1): bn1.gamma" in message
    assert "left over in the checkpoint (1): spare.weight" in message
    assert "of another shape (1): fc.bias [6] instead of [5]" in message
    assert "of another type (1): bn1.beta Int32 instead of Float32" in message


@pytest.mark.parametrize("present", [True, False])
def test_the_classifier_can_be_skipped(parameters, present):
    cell = network(num_classes=9)
    before = values(cell)
    if not present:
        del parameters["fc.weight"], parameters["fc.bias"]
    assert load_into(cell, parameters, skip_classifier=True) == ["fc.weight", "fc.bias"]
    after = values(cell)
    assert [name for name in after if after[name] == before[name]] == [
        "pooling.dropout.counter",
        "fc.weight",
        "fc.bias",
    ]


def test_skipping_the_classifier_skips_nothing_else(parameters):
    with pytest.raises(UserError, match="reduction_dim"):
        load_into(network(reduction_dim=8), parameters, skip_classifier=True)


def test_a_covariance_network_starts_from_a_backbone():
    source = convert_state_dict(rule_state_dict("resnet18", "gap", classes=1000, width=8))
    cell = network()
    before = values(cell)
    kept = load_into(cell, source, backbone_only=True)
    after = values(cell)
    assert {name.split(".")[0] for name in kept} == {"layer_reduce", "layer_reduce_bn", "pooling", "fc"}
    for name in after:
        expected = before[name] if name in kept else source[name].asnumpy().tobytes()
        assert after[name] == expected
    with pytest.raises(UserError, match=r"left over in the checkpoint \(40\): layer1\.1"):
        load_into(network("resnet10"), source, backbone_only=True)


def test_weights_take_the_networks_precision(parameters):
    cell = network()
    cell.fc.to_float(ms.float16)
    half = dict(parameters)
    half["fc.weight"] = ms.Parameter(ms.Tensor(parameters["fc.weight"].asnumpy().astype(np.float16)), name="fc.weight")
    load_into(cell, half)
    assert cell.fc.weight.dtype == ms.float32
