"""Every network with every pooling: shapes, evaluation mode, names and arguments; its training is in test_sweep.py."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from covpool.models import create_model, list_models, register_model
from covpool.pooling import UnknownNameError, list_poolings, pooling_info
from tests.checkpoints.released import rule_images


def small(name: str, pooling: str = "gcp", **args) -> nn.Cell:
    return create_model(name, pooling=pooling, **{"base_width": 8, "reduction_dim": 16, "num_classes": 5, **args})


def images(size: int = 32, batch: int = 2, channels: int = 3) -> ms.Tensor:
    return ms.Tensor(rule_images(1, size, batch, channels))


@pytest.mark.parametrize("pooling", list_poolings())
def test_compositions_agree(pooling, pynative_mode):
    network = small("resnet10", pooling)
    network.set_train(False)
    x = images(64)
    features = network.forward_features(x)
    vector = network.forward_head(features, pre_logits=True)
    assert features.shape[1] == network.num_features == (16 if pooling_info(pooling).is_covariance else 64)
    assert vector.shape == (2, network.pooling.out_features) == (2, network.fc.in_channels)
    np.testing.assert_array_equal(network.fc(vector).asnumpy(), network(x).asnumpy())
    np.testing.assert_array_equal(network.forward_head(features).asnumpy(), network(x).asnumpy())


@pytest.mark.parametrize("pooling", list_poolings())
def test_evaluation_is_deterministic(pooling, pynative_mode):
    network = small("resnet10", pooling)
    network.set_train(False)
    x = images(64)
    before = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
    np.testing.assert_array_equal(network(x).asnumpy(), network(x).asnumpy())
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("pooling", list_poolings())
def test_stage_4_has_stride_1_before_a_covariance(name, pooling, pynative_mode):
    network = small(name, pooling)
    network.set_train(False)
    expected = 4 if pooling_info(pooling).is_covariance else 2  # of 64 pixels; 14 or 7 of 224
    assert network.forward_backbone(images(64)).shape[2:] == (expected, expected)


@pytest.mark.parametrize(("pooling", "size"), [("gap", 7), ("gcp", 14)])
def test_positions_at_224(pooling, size, pynative_mode):
    network = small("resnet10", pooling)
    network.set_train(False)
    assert network.forward_features(images(224, 1)).shape[2:] == (size, size)


def test_global_average_pooling_has_no_reduction():
    names = {p.name for p in small("resnet10", "gap").get_parameters()}
    assert not any(name.startswith("layer_reduce") for name in names)
    assert "layer_reduce.weight" in {p.name for p in small("resnet10", "gcp").get_parameters()}


@pytest.mark.parametrize("size", [28, 32])
def test_small_stem_and_one_channel(size, pynative_mode):
    network = small("resnet10", "gcp", stem="small", in_channels=1)
    network.set_train(False)
    assert network.conv1.weight.shape == (8, 1, 3, 3)
    assert network.forward_stem(images(size, channels=1)).shape == (2, 8, size, size)
    assert network.forward_features(images(size, channels=1)).shape[2:] == (-(-size // 4),) * 2
    assert network(images(size, channels=1)).shape == (2, 5)


def test_imagenet_stem_is_the_plain_max_pooling(pynative_mode):
    network = small("resnet10", "gap")
    network.set_train(False)
    x = images(45)
    plain = ops.relu(network.bn1(network.conv1(x))).asnumpy()
    padded = np.pad(plain, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    np.testing.assert_array_equal(network.forward_stem(x).asnumpy(), windows.max((-2, -1)))


@pytest.mark.parametrize("size", [(64, 96), (33, 47)])
def test_any_image_size(size, pynative_mode):
    network = small("resnet10", "gcp")
    network.set_train(False)
    x = ms.Tensor(np.random.Generator(np.random.PCG64(0)).standard_normal((1, 3, *size)).astype(np.float32))
    assert network(x).shape == (1, 5)


def test_list_of_models():
    assert {"resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"} <= set(list_models())
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"name": "resnet19"}, "resnet18"),
        ({"name": "resnet10", "pooling": "dropcow"}, "dropcov"),
    ],
)
def test_unknown_names_tell_the_nearest(args, message):
    with pytest.raises(UnknownNameError, match=message):
        create_model(**args)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"depth": 3}, TypeError, "does not take depth"),
        ({"stem": "tiny"}, ValueError, "stem must be"),
        ({"num_classes": -1}, ValueError, "num_classes"),
        ({"reduction_dim": 0}, ValueError, "reduction_dim"),
        ({"base_width": 0}, ValueError, "base_width"),
        ({"pooling_args": {"power": 3}}, ValueError, "power"),
    ],
)
def test_bad_arguments(args, error, message):
    with pytest.raises(error, match=message):
        small("resnet10", **args)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_model("resnet18", lambda **_: nn.Cell())
