"""Folding of batch normalisations: exact, on a copy, with clear errors."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from covpool.errors import UserError
from covpool.models import fold_batch_norm
from covpool.pooling import list_poolings
from tests.export.conftest import lively, small, tiny

pytestmark = pytest.mark.usefixtures("pynative_mode")


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in network.get_parameters()}


def relative(found: ms.Tensor, expected: ms.Tensor) -> float:
    a, b = found.asnumpy(), expected.asnumpy()
    return float(np.abs(a - b).max() / np.abs(b).max())


def double_precision(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: np.ndarray) -> np.ndarray:
    """The two layers by another implementation, in float64."""
    t = {p.name.rpartition(".")[2]: torch.from_numpy(p.asnumpy()).double() for p in norm.get_parameters()}
    bias = torch.from_numpy(conv.bias.asnumpy()).double() if conv.has_bias else None
    weight = torch.from_numpy(conv.weight.asnumpy()).double()
    y = torch.nn.functional.conv2d(
        torch.from_numpy(x).double(), weight, bias, conv.stride, conv.padding, groups=conv.group
    )
    statistics = (t["moving_mean"], t["moving_variance"], t["gamma"], t["beta"])
    return torch.nn.functional.batch_norm(y, *statistics, eps=norm.eps).numpy()


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("group", "kernel"), [(1, 3), (2, 3), (8, 3), (1, 1)])
def test_folded_layer_equals_both_layers_in_float64(group, kernel, has_bias, images):
    x = images.reshape(-1, 8, 24, 32)  # 6 images of 8 channels: groups need channels
    conv = nn.Conv2d(8, 16, kernel, 2, "pad", kernel // 2, group=group, has_bias=has_bias, bias_init="ones")
    pair = lively(nn.SequentialCell(conv, nn.BatchNorm2d(16, eps=1e-3)))
    expected = double_precision(conv, pair[1], x)
    folded = fold_batch_norm(pair)
    found = folded(ms.Tensor(x)).asnumpy()
    assert isinstance(folded[1], nn.Identity) and folded[0].has_bias
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-6


def test_weights_are_rounded_once():
    pair = lively(nn.SequentialCell(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    conv, norm = pair
    v = {p.name.rpartition(".")[2]: p.asnumpy().astype(np.float64) for p in norm.get_parameters()}
    factor = v["gamma"] / np.sqrt(v["moving_variance"] + norm.eps)
    folded = fold_batch_norm(pair)
    weight = (conv.weight.asnumpy() * factor[:, None, None, None]).astype(np.float32)
    np.testing.assert_array_equal(folded[0].weight.asnumpy(), weight)
    bias = (v["beta"] - v["moving_mean"] * factor).astype(np.float32)
    np.testing.assert_array_equal(folded[0].bias.asnumpy(), bias)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_networks_agree_on_real_images(name, large_images):
    network = small(name)
    folded = fold_batch_norm(network)
    x = ms.Tensor(large_images)
    assert relative(folded.forward_features(x), network.forward_features(x)) < 1e-5
    assert relative(folded(x), network(x)) < 1e-5


@pytest.mark.parametrize("pooling", list_poolings())
def test_poolings_stay_as_they_are(pooling, images):
    network = tiny(pooling)
    folded = fold_batch_norm(network)
    x = network.forward_features(ms.Tensor(images))
    np.testing.assert_array_equal(folded.forward_head(x).asnumpy(), network.forward_head(x).asnumpy())


def test_no_normalisation_is_left():
    network = small("resnet50")
    cells = [cell for _, cell in fold_batch_norm(network).cells_and_names()]
    assert not any(isinstance(cell, nn.BatchNorm2d) for cell in cells)
    assert all(cell.has_bias for cell in cells if isinstance(cell, nn.Conv2d))


def test_parameter_names():
    network = small("resnet10")
    names = [p.name for p in fold_batch_norm(network).get_parameters()]
    convolutions = [name for name in values(network) if name.endswith((".weight",)) and name != "fc.weight"]
    assert len(names) == len(set(names))
    assert set(names) == {"fc.weight", "fc.bias", *convolutions, *(n[: -len("weight")] + "bias" for n in convolutions)}
    assert {"conv1.bias", "layer2.0.downsample.0.bias", "layer_reduce.bias"} < set(names)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_stays_as_it_is(compiled, images):
    network = tiny()
    x = ms.Tensor(images)
    ms.set_context(mode=ms.GRAPH_MODE if compiled else ms.PYNATIVE_MODE)
    before, logits, graphs = values(network), network(x).asnumpy(), set(network.compile_cache)
    folded = fold_batch_norm(network)
    assert not folded.compile_cache
    for parameter in folded.get_parameters():
        parameter.set_data(parameter * 0)
    del folded
    np.testing.assert_array_equal(network(x).asnumpy(), logits)
    assert network.compile_cache == graphs
    after = values(network)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    network.set_train()
    network(x)
    assert not np.array_equal(network.bn1.moving_mean.asnumpy(), before["bn1.moving_mean"])


def test_a_network_in_training_is_folded_for_evaluation(images):
    network = tiny()
    expected = network(ms.Tensor(images))
    network.set_train()
    folded = fold_batch_norm(network)
    assert network.training and not folded.training
    assert relative(folded(ms.Tensor(images)), expected) < 1e-6


def test_nothing_left_to_fold():
    folded = fold_batch_norm(tiny())
    again = values(fold_batch_norm(folded))
    for name, value in values(folded).items():
        np.testing.assert_array_equal(again[name], value)


def test_frozen_statistics_fold(images):
    network = tiny()
    network.bn1.use_batch_statistics = False
    assert relative(fold_batch_norm(network)(ms.Tensor(images)), network(ms.Tensor(images))) < 1e-6


def test_errors_name_the_cell():
    network = tiny()
    network.bn1.use_batch_statistics = True
    with pytest.raises(UserError, match="cannot fold bn1: it uses the statistics of the batch"):
        fold_batch_norm(network)
    block = nn.SequentialCell(nn.Conv2d(3, 4, 1), nn.SequentialCell(nn.ReLU(), nn.BatchNorm2d(4)))
    with pytest.raises(UserError, match=r"cannot fold 1\.1: no convolution of its width stands before it"):
        fold_batch_norm(block)
    with pytest.raises(UserError, match="cannot fold 0: no convolution"):
        fold_batch_norm(nn.SequentialCell(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))
    with pytest.raises(UserError, match="cannot fold 1: no convolution of its width"):
        fold_batch_norm(nn.SequentialCell(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3)))
