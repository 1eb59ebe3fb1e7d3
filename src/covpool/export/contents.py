"""What an exported file may hold: operators that compute, and its own weights. Seen before anything is loaded.

The runtimes believe what a file says: MindSpore loads a library that a `Custom` operator names, ONNX Runtime reads any
file that a tensor names as its content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from mindspore.train import mind_ir_pb2

from covpool.errors import UserError

# Operators of MindIR that compute, or that order what is computed. A network that needs another one for its mathematics
# adds it here.
_MINDIR_NAMES = """
    Abs Add ArgMaxWithValue ArgMinWithValue Argmax AvgPool AvgPool3D BatchMatMul BatchNorm BiasAdd BroadcastTo Cast
    ClampScalar ClampTensor Concat Constant Conv2D Depend Diag Div Equal Erf Exp ExpandDims Eye Fill FillV2 Gather
    GatherD GatherNd GeLU GeluExt Greater GreaterEqual HSigmoid HSwish LayerNorm Less LessEqual Load Log LogicalAnd
    LogicalNot LogicalOr MakeTuple MaskedFill MatMul MatMulExt MatrixDiagV3 MaxPool MaxPool3D Maximum MeanExt Minimum
    Mul Muls Neg NotEqual Ones OnesLike Pad PadV3 Partial Pow ReLU ReLU6 RealDiv Reciprocal ReduceMax ReduceMean
    ReduceMin ReduceSum Reshape Return Rsqrt ScalarAdd ScalarCast ScalarDiv ScalarFloorDiv ScalarMod ScalarMul
    ScalarPow ScalarSub ScalarToTensor Select SelfAdjointEig Shape SiLU Sigmoid Sign Slice Softmax Split SplitWithSize
    Sqrt Square Squeeze StridedSlice Sub SumExt Svd Switch Tanh TensorShape TensorToScalar TensorToTuple Tile Transpose
    Tril Triu TupleGetItem TupleToTensor UpdateState Zeros ZerosLike
"""
MINDIR_OPERATORS = frozenset(_MINDIR_NAMES.split())
_REFERENCE = "REF::"  # of a node to a primitive or function of the same file

_TENSOR = mind_ir_pb2.TensorProto
_SIZES = {
    **dict.fromkeys((_TENSOR.BOOL, _TENSOR.INT8, _TENSOR.UINT8), 1),
    **dict.fromkeys((_TENSOR.FLOAT16, _TENSOR.BFLOAT16, _TENSOR.INT16, _TENSOR.UINT16), 2),
    **dict.fromkeys((_TENSOR.FLOAT, _TENSOR.INT32, _TENSOR.UINT32), 4),
    **dict.fromkeys((_TENSOR.DOUBLE, _TENSOR.FLOAT64, _TENSOR.INT64, _TENSOR.UINT64), 8),
}


def checked_mindir(content: bytes, path: Path) -> Any:
    """Parse a MindIR and see that it can only compute.

    Args:
        content: The file's content.
        path: Its name, for messages.

    Returns:
        The protobuf message.

    Raises:
        UserError: An operator outside `MINDIR_OPERATORS`, a reference to another file, a tensor whose content is
            longer or shorter than its shape, or no MindIR at all.
    """
    model = mind_ir_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a MindIR file of export.py: {error}") from error
    for message in _messages(model):
        if isinstance(message, _TENSOR):
            _check_tensor(message, path)
        elif isinstance(message, (mind_ir_pb2.PreprocessorProto, mind_ir_pb2.FunctorProto)):
            raise _refused(path, "preprocessing or a function")
        elif isinstance(message, (mind_ir_pb2.PrimitiveProto, mind_ir_pb2.NodeProto)):
            operator = message.op_type
            if operator not in MINDIR_OPERATORS and not operator.startswith(_REFERENCE):
                raise _refused(path, f"the operator {operator}")
    return model


def check_onnx(content: bytes, path: Path) -> None:
    """See that an ONNX file can only compute: plain operators that export.py writes, and its weights within it.

    Raises:
        UserError: Another operator, a reference to another file, or no ONNX at all.
    """
    import onnx

    from covpool.export.onnx_graph import OPERATORS

    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not an ONNX file of export.py: {error}") from error
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            raise _refused(path, "weights in another file")
        if isinstance(message, onnx.NodeProto) and (message.domain or message.op_type not in OPERATORS):
            raise _refused(path, f"the operator {message.domain}{'.' if message.domain else ''}{message.op_type}")


def _messages(message: Message) -> Iterator[Message]:
    """A message and all messages within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from _messages(inner)


def _check_tensor(tensor: Any, path: Path) -> None:
    if tensor.HasField("external_data"):
        raise _refused(path, "weights in another file")
    if not tensor.raw_data:
        return  # the type and shape of a result
    expected = math.prod(tensor.dims) * _SIZES.get(tensor.data_type, 0)
    if any(d < 0 for d in tensor.dims) or len(tensor.raw_data) != expected or tensor.compression_type:
        raise UserError(
            f"{path} is damaged or not a MindIR file of export.py: {tensor.name} holds {len(tensor.raw_data)} bytes "
            f"for the shape {list(tensor.dims)}"
        )


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds {what}, which export.py does not write: not loaded, because it could run other code or read "
        "other files"
    )
