"""The graph of a MindIR file as plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.train import mind_ir_pb2

from covpool.errors import UserError

_ATTRIBUTE = mind_ir_pb2.AttributeProto
_NUMPY_TYPES = {
    mind_ir_pb2.TensorProto.FLOAT: np.float32,
    mind_ir_pb2.TensorProto.INT32: np.int32,
    mind_ir_pb2.TensorProto.INT64: np.int64,
    mind_ir_pb2.TensorProto.BOOL: np.bool_,
    mind_ir_pb2.TensorProto.DOUBLE: np.float64,
    mind_ir_pb2.TensorProto.FLOAT64: np.float64,
}


class Name(str):
    """A tensor of the graph: an input, a parameter, or the (first) result of a node."""


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
        operator: MindSpore's name of it.
        inputs: Names of tensors, and constants: numbers, tuples, None or NumPy arrays.
        output: Its (first) result.
        rank: Number of dimensions of the result.
        attributes: The operator's attributes.
    """

    operator: str
    inputs: tuple[Any, ...]
    output: Name
    rank: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """What is computed, without MindSpore's bookkeeping (loads of parameters, dependencies, tuples).

    Attributes:
        inputs: Tensors that are given.
        output: The result.
        parameters: Arrays by the network's parameter names.
        nodes: Operators in the order of computation.
    """

    inputs: tuple[Name, ...]
    output: Name
    parameters: dict[Name, np.ndarray]
    nodes: tuple[Node, ...]


def read_graph(path: Path) -> Graph:
    """Read the graph of a MindIR file that holds its parameters.

    Raises:
        UserError: The graph has branches or loops.
    """
    model = ms.load_mindir(str(path))
    if model.functions:
        raise UserError("the network has branches or loops; they can be exported with --file_format=MINDIR alone")
    graph = model.graph
    primitives = {primitive.name: primitive for primitive in model.primitives}
    values: dict[str, Any] = {item.name: Name(item.name.rpartition(":")[2]) for item in graph.parameter}
    parameters = {values[item.name]: _array(item) for item in graph.parameter}
    values.update((item.name, Name(item.name)) for item in graph.input)
    nodes = []
    for proto in graph.node:
        inputs = tuple(values[name] for name in proto.input)
        primitive = primitives.get(proto.op_type.partition("::")[2])
        operator = primitive.op_type if primitive else proto.op_type
        output = proto.output[0]
        if operator == "Constant":
            values[output] = _value(proto.attribute[0])
        elif operator in ("Load", "Depend") or (operator == "TupleGetItem" and inputs[1] == 0):
            values[output] = inputs[0]  # of several results the first one: the node goes by its name
        elif operator == "MakeTuple":
            values[output] = inputs
        elif operator == "UpdateState":
            values[output] = None
        else:
            attributes = {a.name: _value(a) for a in primitive.attribute} if primitive else {}
            values[output] = Name(output)
            shapes = [tuple(a.tensors[0].dims) for a in proto.attribute if a.name == "shape" and a.tensors]
            nodes.append(Node(operator, inputs, values[output], len(shapes[0]) if shapes else 0, attributes))
    return Graph(
        tuple(values[item.name] for item in graph.input),
        values[graph.output[0].name],
        parameters,
        tuple(nodes),
    )


def _value(attribute: Any) -> Any:
    kind = attribute.type
    if kind in (_ATTRIBUTE.TUPLE, _ATTRIBUTE.LIST):
        return tuple(_value(item) for item in attribute.values)
    if kind == _ATTRIBUTE.TENSORS:
        return _array(attribute.tensors[0])
    if kind in (_ATTRIBUTE.INT32, _ATTRIBUTE.INT64):
        return attribute.ints[0] if attribute.ints else attribute.i
    if kind == _ATTRIBUTE.BOOL:
        return bool(attribute.ints[0] if attribute.ints else attribute.i)
    if kind == _ATTRIBUTE.FLOAT:
        return attribute.floats[0] if attribute.floats else attribute.f
    if kind == _ATTRIBUTE.DOUBLE:
        return attribute.doubles[0] if attribute.doubles else attribute.d
    if kind == _ATTRIBUTE.STRING:
        return (attribute.strings[0] if attribute.strings else attribute.s).decode()
    return None  # monads, None, types


def _array(tensor: Any) -> np.ndarray:
    return np.frombuffer(tensor.raw_data, _NUMPY_TYPES[tensor.data_type]).reshape(tuple(tensor.dims))
