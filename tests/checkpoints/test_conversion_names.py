"""Names of released checkpoints to MindSpore's and back."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covpool.checkpoints import convert_state_dict, to_pytorch
from covpool.errors import UserError
from covpool.models import create_model
from covpool.pooling import list_poolings
from tests.checkpoints.released import rule_state_dict

POOLINGS = {"gap": "gap", "acd": "dropcov", "mpncov": "fast_mpn"}
SMALL = {"reduction_dim": 16, "classes": 5, "width": 8}


def state_dict(network: str = "resnet18", head: str = "acd") -> dict[str, np.ndarray]:
    return rule_state_dict(network, head, **SMALL)


def names(network: str, pooling: str) -> set[str]:
    cell = create_model(network, pooling=pooling, reduction_dim=16, num_classes=5, base_width=8)
    return {p.name for p in cell.get_parameters()}


@pytest.mark.parametrize("network", ["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize("head", ["gap", "acd", "mpncov"])
def test_names_are_those_of_the_network(network, head):
    assert set(convert_state_dict(state_dict(network, head))) == names(network, POOLINGS[head])


def test_values_are_unchanged_and_statistics_fixed():
    source = state_dict()
    parameters = convert_state_dict(source)
    pairs = {
        "layer1.0.bn1.gamma": "layer1.0.bn1.weight",
        "layer2.0.downsample.1.beta": "layer2.0.downsample.1.bias",
        "layer_reduce_bn.moving_mean": "layer_reduce_bn.running_mean",
        "bn1.moving_variance": "bn1.running_var",
        "layer2.0.downsample.0.weight": "layer2.0.downsample.0.weight",
        "pooling.conv.weight": "eca_layer.conv.weight",
        "fc.bias": "fc.bias",
    }
    for target, name in pairs.items():
        assert parameters[target].name == target
        assert parameters[target].asnumpy().tobytes() == source[name].tobytes()
        assert parameters[target].requires_grad == (not target.rpartition(".")[2].startswith("moving"))


def test_the_count_of_masks_starts_at_zero():
    counter = convert_state_dict(state_dict())["pooling.dropout.counter"]
    assert (counter.dtype, counter.shape, int(counter.asnumpy()), counter.requires_grad) == (ms.int32, (), 0, False)


@pytest.mark.parametrize("head", ["gap", "acd", "mpncov"])
def test_round_trip_is_bit_exact(head):
    source = state_dict("resnet50", head)
    again = to_pytorch(convert_state_dict(source))
    assert set(again) == set(source)
    for name, value in source.items():
        assert again[name].dtype == value.dtype and again[name].shape == value.shape
        assert again[name].tobytes() == value.tobytes()


@settings(max_examples=30, deadline=None)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_round_trip_keeps_every_bit_pattern(bits):
    value = np.array(bits, np.uint32).view(np.float32).reshape(2, 2)  # infinities, NaN payloads, denormals too
    again = to_pytorch(convert_state_dict({"fc.weight": value}))
    assert again["fc.weight"].tobytes() == value.tobytes()


@pytest.mark.parametrize("pooling", list_poolings())
def test_every_pooling_survives_the_round_trip(pooling):
    cell = create_model("resnet10", pooling=pooling, reduction_dim=16, num_classes=5, base_width=8)
    before = {p.name: p for p in cell.get_parameters()}
    after = convert_state_dict(to_pytorch(before))
    assert set(after) == set(before)
    assert all(after[name].asnumpy().tobytes() == before[name].asnumpy().tobytes() for name in before)
    assert all(after[name].requires_grad == before[name].requires_grad for name in before)


def test_data_parallel_prefix_is_dropped():
    source = state_dict()
    prefixed = {f"module.{name}": value for name, value in source.items()}
    assert set(convert_state_dict(prefixed)) == set(convert_state_dict(source))


def test_checkpoints_without_batch_counts_convert():
    source = {k: v for k, v in state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(convert_state_dict(source)) == set(convert_state_dict(state_dict()))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(dtype):
    value = np.array([[0.5, -2.0]], dtype)
    parameter = convert_state_dict({"fc.weight": value})["fc.weight"]
    assert parameter.dtype == ms.float32
    np.testing.assert_array_equal(parameter.asnumpy(), value.astype(np.float32))


def test_everything_without_a_rule_is_listed_in_one_line():
    source = {
        **state_dict(),
        "norm.weight": np.zeros((1, 3, 1), np.float32),
        "bn1.extra": np.zeros(3, np.float32),
        "cls_token": np.zeros((1, 3), np.float32),
        "fc.weight": np.zeros((5, 136), np.int32),
        "eca_layer.conv.weight": np.zeros((1, 3), np.float32),
    }
    with pytest.raises(UserError) as error:
        convert_state_dict(source)
    message = str(error.value)
    assert "\n" not in message
    for name in ("norm.weight [1, 3, 1]", "bn1.extra [3]", "cls_token [1, 3]", "fc.weight [5, 136] int32", "eca_layer"):
        assert name in message


def test_a_long_list_is_abbreviated():
    with pytest.raises(UserError, match="and 44 more"):
        convert_state_dict({f"x{i}": np.zeros(1, np.float32) for i in range(50)})


def test_two_names_for_one_tensor():
    value = np.zeros((2, 2), np.float32)
    with pytest.raises(UserError, match=r"both fc\.weight and module\.fc\.weight"):
        convert_state_dict({"fc.weight": value, "module.fc.weight": value})
    with pytest.raises(UserError, match=r"pooling\.conv\.weight"):
        convert_state_dict(
            {
                "eca_layer.conv.weight": np.zeros((1, 1, 3), np.float32),
                "pooling.conv.weight": np.zeros((1, 1, 3), np.float32),
            }
        )


def test_names_of_other_networks_do_not_convert_back():
    with pytest.raises(UserError, match=r"moments\.scale"):
        to_pytorch({"moments.scale": ms.Parameter(ms.Tensor([1.0]), name="moments.scale")})
