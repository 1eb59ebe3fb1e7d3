"""What an exported file may hold: operators that compute, its own weights and a checksum. Seen before it is loaded.

The runtimes believe what a file says: MindSpore loads a library that a `Custom` operator names, ONNX Runtime reads any
file that a tensor names as its content.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from mindspore.train import mind_ir_pb2

from covpool.errors import UserError
from covpool.runtime.files import os_errors_as

# Operators of MindIR that compute, or that order what is computed. A network that needs another one for its mathematics
# adds it here.
_MINDIR_NAMES = """
    Abs Add ArgMaxWithValue ArgMinWithValue Argmax AvgPool AvgPool3D BatchMatMul BatchNorm BiasAdd BroadcastTo Cast
    Cholesky ClampScalar ClampTensor Concat Constant Conv2D Depend Diag Div Equal Erf Exp ExpandDims Eye Fill FillV2
    Gather GatherD GatherNd GeLU GeluExt Greater GreaterEqual HSigmoid HSwish LayerNorm Less LessEqual Load Log
    LogicalAnd LogicalNot LogicalOr MakeTuple MaskedFill MatMul MatMulExt MatrixDiagV3 MaxPool MaxPool3D Maximum
    MeanExt Minimum Mul Muls Neg NotEqual Ones OnesLike Pad PadV3 Partial Pow ReLU ReLU6 RealDiv Reciprocal
    ReduceMax ReduceMean ReduceMin ReduceSum Reshape Return Rsqrt ScalarAdd ScalarCast ScalarDiv ScalarFloorDiv
    ScalarMod ScalarMul ScalarPow ScalarSub ScalarToTensor Select SelfAdjointEig Shape SiLU Sigmoid Sign Slice
    Softmax Split SplitWithSize Sqrt Square Squeeze StridedSlice Sub SumExt Svd Switch Tanh TensorShape
    TensorToScalar TensorToTuple Tile Transpose Tril Triu TupleGetItem TupleToTensor UpdateState Zeros ZerosLike
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

# Neither format has a checksum of its own, but both are protobuf messages, whose readers pass over fields that they do
# not know. Ours is field 1000, of 64 bytes: the SHA-256 of the name's ending and all before it, in hexadecimal digits;
# with the ending a file of one format is not taken for one of the other. It tells damage, not origin.
_FIELD = bytes([0xC2, 0x3E, 64])
_LENGTH = len(_FIELD) + 64


def seal(path: Path) -> None:
    """Append the checksum to a file."""
    path.chmod(0o600)  # MindSpore leaves its files read-only
    with path.open("ab") as file:
        file.write(_field(path, path.read_bytes()))


def read_sealed(path: Path) -> bytes:
    """Content of a file, compared with its checksum before any parser sees it; UserError if that is not right.

    Anyone can compute the checksum: what the file holds is checked besides.
    """
    if not path.is_file():
        raise UserError(f"no exported file at {path}")
    with os_errors_as(f"cannot read {path}"):
        content = path.read_bytes()
    body, field = content[:-_LENGTH], content[-_LENGTH:]
    if field != _field(path, body):
        raise UserError(f"{path} is damaged or not a file of export.py: its checksum is missing or wrong")
    return body


def _field(path: Path, body: bytes) -> bytes:
    return _FIELD + hashlib.sha256(path.suffix.encode("ascii", "replace") + body).hexdigest().encode("ascii")


def checked_mindir(content: bytes, path: Path) -> Any:
    """Parse a MindIR and see that it can only compute: the protobuf message.

    UserError: an operator outside `MINDIR_OPERATORS`, a reference to another file, a tensor whose content is longer or
    shorter than its shape, or no MindIR at all.
    """
    model = mind_ir_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a MindIR file of export.py: {error}") from error
    for message in messages(model):
        if isinstance(message, _TENSOR):
            _check_tensor(message, path)
        elif isinstance(message, (mind_ir_pb2.PreprocessorProto, mind_ir_pb2.FunctorProto)):
            raise refused(path, "preprocessing or a function")
        elif isinstance(message, (mind_ir_pb2.PrimitiveProto, mind_ir_pb2.NodeProto)):
            operator = message.op_type
            if operator not in MINDIR_OPERATORS and not operator.startswith(_REFERENCE):
                raise refused(path, f"the operator {operator}")
    return model


def messages(message: Message) -> Iterator[Message]:
    """A message and all messages within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from messages(inner)


def _check_tensor(tensor: Any, path: Path) -> None:
    if tensor.HasField("external_data"):
        raise refused(path, "weights in another file")
    if not tensor.raw_data:
        return  # the type and shape of a result
    expected = math.prod(tensor.dims) * _SIZES.get(tensor.data_type, 0)
    if any(d < 0 for d in tensor.dims) or len(tensor.raw_data) != expected or tensor.compression_type:
        raise UserError(
            f"{path} is damaged or not a MindIR file of export.py: {tensor.name} holds {len(tensor.raw_data)} bytes "
            f"for the shape {list(tensor.dims)}"
        )


def refused(path: Path, what: str) -> UserError:
    """The error for a file that could do more than compute."""
    return UserError(
        f"{path} holds {what}, which export.py does not write: not loaded, because it could run other code or read "
        "other files"
    )
