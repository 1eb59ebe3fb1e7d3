"""MindIR files: writing them for any batch size, running them, and their graphs as plain Python values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train import mind_ir_pb2

from covpool.errors import UserError, first_line
from covpool.export.contents import checked_mindir, read_sealed, seal
from covpool.runtime.files import os_errors_as

# Above it MindSpore writes a folder of several files in place of one.
LARGEST = 2**30


def write_mindir(network: nn.Cell, path: Path, shape: tuple[int, int, int], about: Mapping[str, Any]) -> None:
    """Write the evaluation graph of a network: images (n, *shape) of any n -> logits.

    ``about``: facts that JSON can hold (class names, image transform); they travel inside the file. UserError: the
    network is too large for one file, or the file cannot be written.
    """

    def add_about(model: Any) -> None:
        model.user_info.add(key="about", value=json.dumps(dict(about)))

    write_graph(network, ms.Tensor(shape=[None, *shape], dtype=ms.float32), path, custom_func=add_about)
    seal(path)


def write_graph(network: nn.Cell, images: ms.Tensor, path: Path, **options: Any) -> None:
    """Write the evaluation graph of a network for images of a shape, with ``options`` of ``mindspore.export``."""
    size = sum(parameter.nbytes for parameter in network.get_parameters())
    if size > LARGEST:
        raise UserError(f"the network holds {size / 2**30:.1f} GiB; an exported file takes {LARGEST / 2**30:g} GiB")
    network.set_train(False)
    with os_errors_as(f"cannot write {path}"):
        ms.export(network, images, file_name=str(path), file_format="MINDIR", **options)


class MindIRModel:
    """A MindIR file, ready to run: images (n, channels, height, width) float32 -> logits (n, K), NumPy arrays.

    ``about`` is what travelled with the graph: ``class_names`` and the image ``transform``. MindSpore's context must be
    set to ``device_target``. UserError: missing, damaged or not a MindIR, or it could do more than compute.
    """

    def __init__(self, path: Path, device_target: str = "CPU") -> None:
        model = checked_mindir(read_sealed(path), path)
        try:
            information = {entry.key: entry.value for entry in model.user_info}
            self.about: dict[str, Any] = json.loads(information.get("about", "{}"))
            graph = ms.load(str(path))
        except Exception as error:  # whatever MindSpore's parsers met
            raise UserError(f"{path} is damaged or not a MindIR file of export.py: {first_line(error)}") from error
        self._network = nn.GraphCell(graph)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._network(ms.Tensor(np.ascontiguousarray(images, np.float32))).asnumpy()


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
    """One operator."""

    operator: str  # MindSpore's name of it
    inputs: tuple[Any, ...]  # names of tensors, and constants: numbers, tuples, None or NumPy arrays
    output: Name  # its (first) result
    rank: int  # number of dimensions of the result
    attributes: dict[str, Any]  # the operator's attributes


@dataclass(frozen=True)
class Graph:
    """What is computed, without MindSpore's bookkeeping (loads of parameters, dependencies, tuples)."""

    inputs: tuple[Name, ...]  # tensors that are given
    output: Name  # the result
    parameters: dict[Name, np.ndarray]  # arrays by the network's parameter names
    nodes: tuple[Node, ...]  # operators in the order of computation


def read_graph(path: Path) -> Graph:
    """Read the graph of a MindIR file that holds its parameters; UserError where it has branches or loops."""
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
