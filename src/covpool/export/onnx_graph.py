"""MindIR operators written as ONNX operators."""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from covpool.errors import UserError
from covpool.export.mindir import Graph, Name, Node

OPSET = 17
IR_VERSION = 8

_VALID = 2  # MindSpore's number of padding with nothing
_END = 2**31 - 1  # of an axis, whatever its length

# MindSpore's name -> ONNX's, for operators that take tensors and nothing else; most have the same one.
_SAME = "Abs Add Div Equal Erf Exp Greater Less Log Mul Neg Pow Sigmoid Sign Sqrt Sub Tanh"
_PLAIN = {
    **{name: name for name in _SAME.split()},
    **{"LessEqual": "LessOrEqual", "MatMulExt": "MatMul", "Maximum": "Max", "Minimum": "Min"},
    **{"Muls": "Mul", "ReLU": "Relu"},
}

# All operators of the written files; others are not loaded.
OPERATORS = frozenset(_PLAIN.values()) | {
    *(
        "AveragePool",
        "Clip",
        "Concat",
        "Conv",
        "Gather",
        "Gemm",
        "LayerNormalization",
        "MatMul",
        "MaxPool",
        "ReduceMean",
    ),
    *("ReduceSum", "Reshape", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
}


class _Writer:
    """Collects ONNX nodes and constants. Tensors are named by strings."""

    def __init__(self, graph: Graph) -> None:
        self.uses = Counter(x for node in graph.nodes for x in node.inputs if isinstance(x, Name))
        self.names: dict[Name, str] = {name: str(name) for name in graph.parameters}
        self.constants = {str(name): array for name, array in graph.parameters.items()}
        self.producers: dict[str, onnx.NodeProto] = {}

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node; inputs that are not names become constants."""
        output = f"{operator}_{len(self.producers)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.producers[output] = helper.make_node(operator, names, [output], name=output, **attributes)
        return output

    def constant(self, value: Any) -> str:
        """A tensor of a number, an array, or of indices (a tuple)."""
        if isinstance(value, tuple):
            array = np.asarray(value, np.int64)
        else:
            array = value if isinstance(value, np.ndarray) else np.asarray(value, np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def named(self, value: Any) -> Any:
        """A MindIR input by the names of this graph."""
        if isinstance(value, tuple):
            return tuple(map(self.named, value))
        return self.names[value] if isinstance(value, Name) else value

    def write(self, node: Node) -> None:
        inputs = [self.named(x) for x in node.inputs]
        if node.operator in _PLAIN:
            output = self.add(_PLAIN[node.operator], *inputs)
        else:
            output = _WRITERS[node.operator](self, node, inputs)
        self.names[node.output] = output


def _indices(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _convolution(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    top, bottom, left, right = node.attributes["pad_list"]
    return writer.add(
        "Conv",
        *inputs,
        strides=node.attributes["stride"][2:],
        dilations=node.attributes["dilation"][2:],
        pads=(top, left, bottom, right),
        group=node.attributes["group"],
    )


def _bias(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    """Into the convolution or dense layer before it."""
    producer = writer.producers.get(inputs[0])
    if producer is None or producer.op_type not in ("Conv", "Gemm") or len(producer.input) != 2:
        raise UserError("a bias that follows neither convolution nor dense layer cannot be written as ONNX")
    if writer.uses[node.inputs[0]] != 1:
        raise UserError("a convolution that is used with and without its bias cannot be written as ONNX")
    producer.input.append(inputs[1])
    return inputs[0]


def _batch_product(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    swapped = (*range(node.rank - 2), node.rank - 1, node.rank - 2)
    factors = [writer.add("Transpose", x, perm=swapped) if t else x for x, t in zip(inputs[:2], inputs[2:])]
    return writer.add("MatMul", *factors)


def _average_pool(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    x, kernel, strides, pad_mode = inputs[:4]
    if pad_mode != _VALID:
        raise UserError("an average pooling with padding cannot be written as ONNX")
    return writer.add("AveragePool", x, kernel_shape=kernel, strides=strides)


def _max_pool_3d(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    """A pool of depth 1, which is a pool of images: few runtimes are good at the other form."""
    pads = node.attributes["pad_list"]
    kernel, strides = node.attributes["kernel_size"][2:], node.attributes["strides"][2:]
    if (kernel[0], strides[0], pads[:2]) != (1, 1, (0, 0)) or node.attributes["ceil_mode"]:
        raise UserError("a 3D max-pooling that is deeper than 1 cannot be written as ONNX")
    image = _squeeze(writer, node, [inputs[0], 2])
    pooled = writer.add(
        "MaxPool", image, kernel_shape=kernel[1:], strides=strides[1:], pads=(pads[2], pads[4], pads[3], pads[5])
    )
    return writer.add("Unsqueeze", pooled, (2,))


def _squeeze(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    axes = _indices(inputs[1])
    producer = writer.producers.get(inputs[0])
    if producer is not None and producer.op_type == "Unsqueeze" and _axes(writer, producer) == axes:
        return producer.input[0]
    return writer.add("Squeeze", inputs[0], axes)


def _split(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    """Equal parts: the first goes by the node's name, the others by that and their number."""
    first = writer.add("Split", inputs[0], axis=inputs[1])
    writer.producers[first].output.extend(f"{first}_{part}" for part in range(1, inputs[2]))
    return first


def _axes(writer: _Writer, node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(writer.constants[node.input[1]].tolist())


def _strided_slice(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    """Parts of axes; one whose end is open, such as the images of a batch, stays so."""
    x, begin, end, steps, begin_mask, end_mask, *others = inputs
    if any(others) or any(step != 1 for step in steps):
        raise UserError("a slice with steps, new axes or single places cannot be written as ONNX")
    starts = [0 if begin_mask >> axis & 1 else value for axis, value in enumerate(begin)]
    ends = [_END if end_mask >> axis & 1 else value for axis, value in enumerate(end)]
    axes = tuple(axis for axis in range(len(starts)) if (starts[axis], ends[axis]) != (0, _END))
    if not axes:
        return x
    return writer.add("Slice", x, tuple(starts[a] for a in axes), tuple(ends[a] for a in axes), axes)


def _layer_norm(writer: _Writer, node: Node, inputs: list[Any]) -> str:
    x, gamma, beta, axis, _, epsilon = inputs
    return writer.add("LayerNormalization", x, gamma, beta, axis=axis, epsilon=epsilon)


_WRITERS: dict[str, Callable[[_Writer, Node, list[Any]], str]] = {
    "AvgPool": _average_pool,
    "BatchMatMul": _batch_product,
    "BiasAdd": _bias,
    "Conv2D": _convolution,
    "Concat": lambda w, n, x: w.add("Concat", *x[0], axis=x[1]),
    "ExpandDims": lambda w, n, x: w.add("Unsqueeze", x[0], _indices(x[1])),
    "Gather": lambda w, n, x: w.add("Gather", x[0], x[1], axis=x[2]),
    "LayerNorm": _layer_norm,
    "MaskedFill": lambda w, n, x: w.add("Where", x[1], x[2], x[0]),
    "MatMul": lambda w, n, x: w.add("Gemm", x[0], x[1], transA=int(x[2]), transB=int(x[3])),
    "MaxPool3D": _max_pool_3d,
    "ReLU6": lambda w, n, x: w.add("Clip", x[0], 0.0, 6.0),
    "ReduceMean": lambda w, n, x: w.add("ReduceMean", x[0], axes=_indices(x[1]), keepdims=int(x[2])),
    "Reshape": lambda w, n, x: w.add("Reshape", x[0], x[1]),
    "Split": _split,
    "Softmax": lambda w, n, x: w.add("Softmax", x[0], axis=_indices(x[1])[0]),
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "SumExt": lambda w, n, x: w.add("ReduceSum", x[0], _indices(x[1]), keepdims=int(x[2])),
    "Transpose": lambda w, n, x: w.add("Transpose", x[0], perm=x[1]),
    "TupleGetItem": lambda w, n, x: f"{x[0]}_{x[1]}",
}


def onnx_graph(graph: Graph, input_shape: tuple[int, int, int], classes: int) -> onnx.GraphProto:
    """A graph (n, *input_shape) ``images`` -> (n, classes) ``logits``, for any n; UserError if ONNX lacks a part."""
    known = _PLAIN.keys() | _WRITERS.keys()
    unknown = sorted({node.operator for node in graph.nodes} - known)
    if unknown:
        raise UserError(
            f"ONNX has no counterpart for {', '.join(unknown)} in this network; export it with --file_format=MINDIR"
        )
    writer = _Writer(graph)
    writer.names[graph.inputs[0]] = "images"
    for node in graph.nodes:
        writer.write(node)
    nodes = _needed(list(writer.producers.values()), writer.names[graph.output])
    nodes[-1].output[0] = "logits"
    used = {name for node in nodes for name in node.input}
    return helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", *input_shape])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(array, name) for name, array in writer.constants.items() if name in used],
    )


def _needed(nodes: list[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """The nodes that the output depends on, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
