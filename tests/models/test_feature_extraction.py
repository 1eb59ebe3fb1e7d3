"""What timm's users know: lists by pattern, no or another classifier, features of stages, frozen parts."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

import covpool
from covpool.models import create_model, freeze, list_models
from covpool.pooling import create_pooling
from tests.checkpoints.released import rule_images

SMALL = {"base_width": 8, "reduction_dim": 16, "num_classes": 5}
LEFT = ["fc.weight", "fc.bias"]


def network(pooling: str = "gcp", name: str = "resnet10", **args: object) -> nn.Cell:
    return create_model(name, pooling=pooling, **{**SMALL, **args}).set_train(False)


def images(size: int = 32, batch: int = 2) -> ms.Tensor:
    return ms.Tensor(rule_images(1, size, batch))


def gradients_of(cell: nn.Cell) -> tuple[ms.Tensor, ...]:
    """Of the sum of squares of its outputs."""

    def loss(x: ms.Tensor) -> ms.Tensor:
        return ops.square(cell(x)).sum()

    return ms.value_and_grad(loss, None, cell.trainable_params())(images())[1]


def names(cell: nn.Cell) -> list[str]:
    return [p.name for p in cell.get_parameters()]


def test_list_by_pattern():
    assert (
        covpool.list_models("resnet1*") == list_models("resnet1*") == ["resnet10", "resnet101", "resnet152", "resnet18"]
    )
    assert list_models("nothing*") == []


def test_without_a_classifier(pynative_mode):
    ms.set_seed(1)
    full = network()
    ms.set_seed(1)
    bare = network(num_classes=0)
    assert names(bare) == [name for name in names(full) if name not in LEFT]
    vector = bare(images()).asnumpy()
    assert vector.shape == (2, 136)
    np.testing.assert_array_equal(vector, full.forward_head(full.forward_features(images()), pre_logits=True).asnumpy())


def test_another_classifier(pynative_mode):
    cell = network()
    kept = {p.name: p.asnumpy().copy() for p in cell.get_parameters() if p.name not in LEFT}
    cell.reset_classifier(7)
    assert names(cell)[-2:] == LEFT and cell.num_classes == 7
    assert cell(images()).shape == (2, 7) and cell.fc.weight.asnumpy().std() > 0
    cell.reset_classifier(0)
    assert cell(images()).shape == (2, 136)
    assert all((p.asnumpy() == kept[p.name]).all() for p in cell.get_parameters())
    with pytest.raises(ValueError, match="num_classes must be at least 1, or 0"):
        cell.reset_classifier(-1)


def test_what_was_compiled_is_compiled_again(graph_mode):
    cell = network("gap")
    assert cell(images()).shape == (2, 5)
    cell.reset_classifier(7)
    assert cell(images()).shape == (2, 7)
    cell.keep_features((0, 4))
    assert [m.shape for m in cell(images())] == [(2, 8, 16, 16), (2, 64, 1, 1)]


@pytest.mark.parametrize(("pooling", "stem", "reduction"), [("gap", "imagenet", 32), ("gcp", "small", 4)])
def test_features_of_stages(pooling, stem, reduction, pynative_mode):
    ms.set_seed(2)
    full = network(pooling, "resnet50" if stem == "small" else "resnet18", stem=stem)
    ms.set_seed(2)
    cell = network(pooling, "resnet50" if stem == "small" else "resnet18", stem=stem, features_only=True)
    info = cell.feature_info
    assert info.module_name() == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert info.reduction()[-1] == reduction
    x = images(64)
    maps = cell(x)
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(2, s.channels, 64 // s.reduction, 64 // s.reduction) for s in info]
    assert names(cell) == [name for name in names(full) if not name.startswith(("layer_reduce", "fc"))]
    np.testing.assert_array_equal(maps[-1].asnumpy(), full.forward_backbone(x).asnumpy())
    y = full.forward_stem(x)
    for stage, found in zip((full.layer1, full.layer2, full.layer3), maps[1:]):
        y = stage(y)
        np.testing.assert_array_equal(found.asnumpy(), y.asnumpy())


def test_features_of_chosen_stages(pynative_mode):
    cell = network("dropcov", features_only=True, out_indices=(1, 3))
    assert [(s.name, s.channels, s.reduction) for s in cell.feature_info] == [("layer1", 8, 4), ("layer3", 32, 16)]
    assert [m.shape for m in cell(images(64))] == [(2, 8, 16, 16), (2, 32, 4, 4)]
    assert not any(name.startswith(("layer4", "layer_reduce", "pooling", "fc")) for name in names(cell))


@pytest.mark.parametrize("indices", [(), (3, 1), (1, 1), (5,), (-1,)])
def test_stages_that_are_not_there(indices):
    with pytest.raises(ValueError, match="out_indices must rise within 0 to 4"):
        network(features_only=True, out_indices=indices)


def test_arguments_that_say_nothing():
    with pytest.raises(ValueError, match="out_indices needs features_only"):
        network(out_indices=(1,))
    with pytest.raises(TypeError, match="none are shipped"):
        network(pretrained=True)


@pytest.mark.parametrize(
    ("upto", "first", "kind"),
    [
        ("stem", "layer1", ms.PYNATIVE_MODE),
        ("layer2", "layer3", ms.PYNATIVE_MODE),
        ("layer2", "layer3", ms.GRAPH_MODE),
        ("layer3.0.bn1", "layer3.0.conv2", ms.PYNATIVE_MODE),
    ],
)
def test_a_frozen_part_stands_still(upto, first, kind):
    ms.set_context(mode=kind)
    cell = network("dropcov").set_train(True)
    cell(images())  # statistics move before
    freeze(cell, upto=upto)
    order = [name for name, _ in cell.parameters_and_names()]
    start = next(i for i, name in enumerate(order) if name.startswith(first))
    trained = [p.name for p in cell.trainable_params()]
    assert trained == [n for n in order[start:] if not n.endswith(("moving_mean", "moving_variance", "counter"))]
    before = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}
    gradients = gradients_of(cell)
    optimizer = nn.SGD(cell.trainable_params(), 0.1)
    optimizer(gradients)
    moved = {p.name for p in cell.get_parameters() if (p.asnumpy() != before[p.name]).any()}
    assert moved and not moved & set(order[:start])
    assert any(name.endswith("moving_mean") for name in moved)
    assert {"fc.weight", "layer4.0.conv1.weight"} <= moved


def test_a_part_that_is_not_there():
    with pytest.raises(ValueError, match=r"no part 'layer9' to freeze up to; there are stem, layer1, .*fc"):
        freeze(network(), upto="layer9")


class Plain(nn.Cell):
    """Somebody else's network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.SequentialCell(nn.Conv2d(3, 8, 3, 2, "pad", 1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Dense(8, 5)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.head(self.flat(self.pool(self.body(x))))


def test_somebody_elses_network(mode):
    cell = Plain()
    cell.pool = create_pooling("fast_mpn", channels=8)
    cell.flat = nn.Identity()
    cell.head = nn.Dense(cell.pool.out_features, 5)
    freeze(cell, upto="body")
    assert [p.name for p in cell.trainable_params()] == ["head.weight", "head.bias"]
    assert cell(images()).shape == (2, 5) and (gradients_of(cell)[0].asnumpy() != 0).any()
