"""What exported graphs hold: no training-only node, plain ONNX of the stated version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import nn, ops

from covpool.errors import UserError
from covpool.export import export_network, fold_batch_norm
from covpool.export.mindir import Graph, Name, read_graph
from covpool.export.onnx_file import write_onnx
from covpool.export.run import FORMATS
from covpool.models import freeze_parts, recompute
from covpool.pooling import list_poolings
from tests.export.conftest import small, tiny, transform

ABOUT = {"class_names": ["a", "b"], "transform": transform(24, 32)}

pytestmark = pytest.mark.usefixtures("pynative_mode")


def operators(graph: Graph) -> list[Any]:
    """Operators and constants in order, without names."""
    return [
        (n.operator, *(np.asarray(x).tolist() for x in n.inputs if not isinstance(x, Name)), sorted(n.attributes))
        for n in graph.nodes
    ]


def mindir(network: nn.Cell, folder: Path) -> Graph:
    path = folder / "net.mindir"
    FORMATS["MINDIR"].write(fold_batch_norm(network), path, (3, 24, 32), ABOUT)
    return read_graph(path)


def onnx_model(network: nn.Cell, folder: Path) -> onnx.ModelProto:
    path = folder / "net.onnx"
    FORMATS["ONNX"].write(fold_batch_norm(network), path, (3, 24, 32), ABOUT)
    return onnx.load(path)


@pytest.mark.parametrize("pooling", list_poolings())
def test_no_training_only_node_or_parameter(pooling, tmp_path):
    graph = mindir(tiny(pooling), tmp_path)
    names = {node.operator for node in graph.nodes}
    assert not {n for n in names if any(w in n for w in ("BatchNorm", "Dropout", "Random", "Uniform", "Assign", "Bit"))}
    own = {"pooling.affine.gamma", "pooling.affine.beta"} if pooling in ("bcnn_lt", "ibcnn_lt", "layernorm") else set()
    own |= {"pooling.temperature"} if pooling == "bdc" else set()
    reduction = set() if pooling == "gap" else {"layer_reduce.weight", "layer_reduce.bias"}
    assert set(graph.parameters) == {"conv1.weight", "conv1.bias", "fc.weight", "fc.bias", *reduction, *own}


def test_dropcov_leaves_no_trace(tmp_path):
    dropcov, plain = tiny("dropcov"), tiny("gcp")
    assert {"pooling.conv.weight", "pooling.dropout.counter"} <= {p.name for p in dropcov.get_parameters()}
    first, second = mindir(dropcov, tmp_path), mindir(plain, tmp_path)
    assert operators(first) == operators(second)
    assert first.parameters.keys() == second.parameters.keys()
    first, second = onnx_model(dropcov, tmp_path).graph, onnx_model(plain, tmp_path).graph
    assert list(first.node) == list(second.node)
    assert [i.name for i in first.initializer] == [i.name for i in second.initializer]


def test_what_is_for_training_alone_leaves_no_trace(tmp_path):
    plain, other = small("resnet10"), small("resnet10", drop_rate=0.5, drop_path_rate=0.5)
    recompute(other)
    freeze_parts(other, ["layer2"])
    assert {"dropout.counter", "layer4.0.drop_path.counter"} <= {p.name for p in other.get_parameters()}
    first, second = mindir(other, tmp_path), mindir(plain, tmp_path)
    assert [node.operator for node in first.nodes] == [node.operator for node in second.nodes]
    assert all((first.parameters[name] == value).all() for name, value in second.parameters.items())
    assert first.parameters.keys() == second.parameters.keys()


def test_convolutions_carry_the_bias(tmp_path):
    network = small("resnet18")
    convolutions = sum(isinstance(cell, nn.Conv2d) for _, cell in network.cells_and_names())
    graph = mindir(network, tmp_path)
    followers = [after.operator for node, after in zip(graph.nodes, graph.nodes[1:]) if node.operator == "Conv2D"]
    assert followers == ["BiasAdd"] * convolutions
    nodes = onnx_model(network, tmp_path).graph.node
    assert [len(node.input) for node in nodes if node.op_type == "Conv"] == [3] * convolutions
    assert {node.op_type for node in nodes} <= {
        *("Add", "Conv", "Gather", "Gemm", "MatMul", "MaxPool", "Mul", "ReduceMean", "Relu", "Reshape", "Sub"),
        "Transpose",
    }


def test_onnx_header_and_interface(tmp_path):
    model = onnx_model(small("resnet10"), tmp_path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {p.key for p in model.metadata_props} == {"class_names", "transform"}
    for value, name, shape in (
        (model.graph.input, "images", ["n", 3, 24, 32]),
        (model.graph.output, "logits", ["n", 5]),
    ):
        assert [v.name for v in value] == [name]
        dims = value[0].type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == shape
    names = {p.name for p in small("resnet10").get_parameters()}
    weights = [i for i in model.graph.initializer if not i.name.startswith("constant_")]
    assert {i.name for i in weights if i.name.endswith("weight")} == {n for n in names if n.endswith("weight")}
    assert all(i.data_type == onnx.TensorProto.FLOAT for i in weights)


def test_max_pooling_is_two_dimensional_in_onnx(tmp_path):
    nodes = onnx_model(small("resnet10"), tmp_path).graph.node
    pools = [node for node in nodes if node.op_type == "MaxPool"]
    attributes = {a.name: list(a.ints) for a in pools[0].attribute}
    assert len(pools) == 1
    assert attributes == {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def test_the_same_network_gives_the_same_file(images, tmp_path):
    first, second = (export_network(tiny("fast_mpn"), tmp_path / n, "ONNX", images[:6], ABOUT).path for n in "ab")
    assert first.read_bytes() == second.read_bytes()


class Function(nn.Cell):
    """Any function of images, followed by a mean: (N, C, H, W) -> (N, C)."""

    num_classes = 3

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.function(x).mean((2, 3))


def quotient(x):
    return ops.exp(-x) / (ops.maximum(x, ops.minimum(x * x, 2.0)) + 3.5)


def logarithm(x):
    return ops.log(ops.abs(x) + 1.0) - ops.sign(x) * ops.sqrt(ops.abs(x))


def choices(x):
    return ops.masked_fill(ops.masked_fill(ops.masked_fill(x, x > 1, 1.0), x < -1, -1.0), x <= 0, 0.25)


def power(x):
    return ops.pow(ops.abs(x) + 0.1, 0.75) + ops.sigmoid(x).sum(1, keepdims=True)


def shapes(x):
    return x.expand_dims(1).squeeze(1).reshape(-1, 3, 24, 32)


def products(x):
    rows = ops.matmul(x.reshape(-1, 24 * 32), ops.full((24 * 32, 1), 1 / 768, dtype=x.dtype)).reshape(-1, 3, 1, 1)
    return ops.ones_like(rows) * 0.5 + rows - x


@pytest.mark.parametrize("function", [quotient, logarithm, choices, power, shapes, products])
def test_operators_mean_the_same_in_onnx(function, images, tmp_path):
    network = Function(function).set_train(False)
    write_onnx(network, tmp_path / "net.onnx", (3, 24, 32), {})
    found = FORMATS["ONNX"].load(tmp_path / "net.onnx", "CPU")(images)
    np.testing.assert_allclose(found, network(ms.Tensor(images)).asnumpy(), rtol=2e-6, atol=1e-6)


def branches(x):
    if x.sum() > 0:
        return x * 2
    return x


class Shared(Function):
    """A convolution that is used with and without the bias that follows it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.conv = nn.Conv2d(3, 3, 1)
        self.bias = ops.BiasAdd()
        self.values = ms.Tensor(np.ones(3, np.float32))

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        y = self.conv(x)
        return (self.bias(y, self.values) * y).mean((2, 3))


class LoneBias(Shared):
    """A bias after something else."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.bias(x, self.values).mean((2, 3))


class DeepPool(Function):
    """A pooling over three dimensions."""

    def __init__(self) -> None:
        super().__init__(None)
        self.pool = nn.MaxPool3d((3, 3, 3), 1, pad_mode="pad", padding=1)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.pool(x.expand_dims(1)).squeeze(1).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: Function(ops.atan),
            "ONNX has no counterpart for Atan in this network; export it with --file_format=MINDIR",
        ),
        (
            lambda: Function(branches),
            "the network has branches or loops; they can be exported with --file_format=MINDIR alone",
        ),
        (Shared, "a convolution that is used with and without its bias cannot be written as ONNX"),
        (LoneBias, "a bias that follows neither convolution nor dense layer cannot be written as ONNX"),
        (DeepPool, "a 3D max-pooling that is deeper than 1 cannot be written as ONNX"),
    ],
)
def test_what_cannot_be_written_is_refused(network, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_onnx(network().set_train(False), tmp_path / "net.onnx", (3, 24, 32), {})
    assert not list(tmp_path.iterdir())
