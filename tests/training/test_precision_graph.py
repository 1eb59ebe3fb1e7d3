"""Types in the compiled training graph: what is float16 at each level, and that pooling and loss never are."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from mindspore.common.api import _cell_graph_executor
from mindspore.train.amp import build_train_network
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from covpool.models import create_model
from covpool.models.classifier import ImageClassifier, batch_norm, convolution
from covpool.pooling import list_poolings, pooling_info
from covpool.pooling.base import Pooling
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.recipe import loss_scale_manager
from covpool.training.step import apply_amp_level

LEVELS = ("O1", "O2", "O3", "auto")
# MindSpore makes O2 of "auto", and O3 is O2 with half-precision normalisations.
SLOW_LEVELS = ("O1", "O2", *(pytest.param(level, marks=pytest.mark.only_with_all) for level in ("O3", "auto")))
HALF = {"FLOAT16", "BFLOAT16"}
FLOATS = {"FLOAT", "DOUBLE", *HALF}
PRODUCTS = {"MatMul", "MatMulExt", "BatchMatMul", "BatchMatMulExt", "Dense"}
_phases = itertools.count()


class FirstPosition(Pooling):
    """A pooling without arithmetic, the measure of what a network does outside its pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x[:, :, 0, 0]


class Tiny(ImageClassifier):
    """One convolution before the head that all networks share."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.conv = convolution(3, 6, 3)
        self.bn = batch_norm(6)
        self.relu = nn.ReLU()
        self.build_head(6, "gcp" if pooling == "none" else pooling, 4, 5, None)
        if pooling == "none":
            self.pooling = FirstPosition(4)
            self.fc = nn.Dense(4, 5)

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        return self.relu(self.bn(self.conv(x)))


class Several(nn.Cell):
    """Tiny networks with these poolings, one graph to compile instead of many.

    Their logits are added with different factors, else they would share what comes before the logits in the backward
    pass.
    """

    def __init__(self, poolings: list[str]) -> None:
        super().__init__()
        self.networks = nn.CellList([Tiny(name) for name in poolings])

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        logits = 0.0
        for number, network in enumerate(self.networks):
            logits = logits + (number + 2.0) * network(x)
        return logits


@dataclass(frozen=True)
class Operation:
    """One operation of a graph: name, where it comes from, types of its floating-point inputs and results."""

    name: str
    scope: str
    inputs: frozenset[str]
    outputs: frozenset[str]


def training_graph(network: nn.Cell, level: str) -> list[Operation]:
    """Compile the training step as ``Model`` builds it, forward, backward and update, without running it."""
    ms.set_context(mode=ms.GRAPH_MODE)
    left = apply_amp_level(network, level)
    manager = loss_scale_manager(level, "fixed", 1024.0, "CPU")
    step = build_train_network(
        network,
        nn.Momentum(network.trainable_params(), 0.1, 0.9),
        LabelSmoothingCrossEntropy(0.1),
        level=left,
        **({} if manager is None else {"loss_scale_manager": manager}),
    )
    step.set_train()
    images = ms.Tensor(np.zeros((2, 3, 8, 8), np.float32))
    phase, _ = _cell_graph_executor.compile(
        step, images, ms.Tensor([0, 1], ms.int32), phase=f"types{next(_phases)}", do_convert=False
    )
    model = ModelProto()
    model.ParseFromString(_cell_graph_executor._get_func_graph_proto(step, phase, "mind_ir"))
    _cell_graph_executor.del_net_res(step, {phase})
    return [operation for graph in (model.graph, *model.functions) for operation in _operations(graph)]


def _operations(graph: Any) -> Iterator[Operation]:
    types = {parameter.name: _name(parameter.data_type) for parameter in getattr(graph, "parameter", ())}
    types.update({value.name: _name(value.tensor[0].data_type) for value in graph.input if value.tensor})
    for node in graph.node:
        results = [_name(t.data_type) for a in node.attribute if a.name == "shape" for t in a.tensors]
        types.update(dict.fromkeys(node.output, results[0] if len(results) == 1 else "several"))
        operator = node.op_type.split(":")[2] if node.op_type.startswith("REF::") else node.op_type
        inputs = {types.get(name, "") for name in node.input}
        yield Operation(operator, node.domain, frozenset(inputs & FLOATS), frozenset(set(results) & FLOATS))


def _name(data_type: int) -> str:
    return str(TensorProto.DataType.Name(data_type))


def half_precision(operations: list[Operation]) -> Counter[str]:
    """How many operations of each kind compute in half precision."""
    return Counter(o.name for o in operations if o.name != "Cast" and HALF & (o.inputs | o.outputs))


@pytest.mark.parametrize("level", SLOW_LEVELS)
def test_poolings_add_no_half_precision(level: str) -> None:
    """Forward and backward: the half-precision operations of all networks are those of one without pooling, n times.

    They are counted, not looked up by cell: MindSpore makes the gradient of an operation once and names it after the
    cell that had it first.
    """
    poolings = [name for name in list_poolings() if pooling_info(name).is_covariance]
    assert len(poolings) >= 4
    alone = half_precision(training_graph(Several(["none"]), level))
    assert alone["Conv2D"] == 2  # the level is in effect: first convolution and reduction,
    assert alone["MatMul"] == 3  # and the classifier with its two gradients
    operations = training_graph(Several(poolings), level)
    together = half_precision(operations)
    different = {
        name: (together[name], count) for name, count in alone.items() if together[name] != len(poolings) * count
    }
    assert different == {}
    assert set(together) == set(alone)
    products = [o for o in operations if o.name in PRODUCTS]
    assert len([o for o in products if not HALF & o.outputs]) > 2 * len(poolings)


@pytest.mark.parametrize("level", LEVELS)
def test_loss_computes_in_float32(level: str) -> None:
    operations = training_graph(Tiny("gap"), level)
    loss = [o for o in operations if "/_loss_fn-LabelSmoothingCrossEntropy" in o.scope or "CrossEntropy" in o.name]
    assert [o.inputs for o in loss if o.name == "SoftmaxCrossEntropyWithLogits"] == [{"FLOAT"}]
    assert not any(HALF & (o.inputs | o.outputs) for o in loss if o.name != "Cast")


@pytest.mark.parametrize("level", ["O0", "O3", *SLOW_LEVELS[:2], SLOW_LEVELS[3]])
def test_convolutions_of_a_network_follow_the_level(level: str) -> None:
    network = create_model("resnet10", "gcp", reduction_dim=4, num_classes=5, stem="small", base_width=2)
    operations = training_graph(network, level)
    wanted = {"FLOAT" if level == "O0" else "FLOAT16"}
    convolutions = [o for o in operations if o.name == "Conv2D"]
    assert len(convolutions) == 13  # stem, 4 x 2, 3 shortcuts, reduction
    assert all(o.outputs == wanted for o in convolutions)
    normalisations = [o for o in operations if o.name.startswith("BatchNorm") and "Gradients" not in o.scope]
    assert normalisations
    if level != "O3":  # the level that keeps nothing
        assert all("FLOAT" in o.inputs and "FLOAT16" not in o.inputs for o in normalisations)


def test_o1_keeps_parameters_and_their_names(mode: str) -> None:
    arguments = {"reduction_dim": 4, "num_classes": 5, "stem": "small", "base_width": 2}
    full, half = (create_model("resnet10", "dropcov", **arguments) for _ in range(2))
    ms.load_param_into_net(half, full.parameters_dict())
    assert apply_amp_level(half, "O1") == "O0"
    assert [(p.name, p.dtype) for p in half.get_parameters()] == [(p.name, p.dtype) for p in full.get_parameters()]
    assert list(half.parameters_dict()) == list(full.parameters_dict())
    image = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    expected, logits = (network.set_train(False)(image).asnumpy() for network in (full, half))
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("level", ["O0", "O2", "O3", "auto"])
def test_other_levels_are_left_to_mindspore(level: str) -> None:
    network = Tiny("gcp")
    assert apply_amp_level(network, level) == level
    assert type(network.conv) is nn.Conv2d
