"""ONNX files: writing them for any batch size, and running them with ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from mindspore import nn

from covpool.errors import UserError, first_line
from covpool.export.contents import messages, read_sealed, refused, seal
from covpool.export.mindir import read_graph, write_graph
from covpool.runtime.files import os_errors_as

PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider", "Ascend": "CANNExecutionProvider"}

# Images of the traced batch: what MindSpore computes in advance for each image of the batch then serves any number.
_TRACED = 1


def write_onnx(network: nn.Cell, path: Path, shape: tuple[int, int, int], about: Mapping[str, Any]) -> None:
    """Write the evaluation graph of a network as ONNX: ``images`` (n, *shape) of any n -> ``logits`` (n, K).

    MindSpore's own MindIR is translated operator by operator. It is traced with one image, so that every other size
    is a constant; networks and poolings here leave the batch open in what they compute (reshape to -1). Of ``about``
    (class names, image transform) each value travels as one metadata property.

    UserError: an operator has no counterpart, the network is too large, or the file cannot be written.
    """
    import onnx  # after MindSpore, whose generated code needs protobuf's Python implementation

    from covpool.export.onnx_graph import IR_VERSION, OPSET, onnx_graph

    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder, "traced.mindir")
        write_graph(network, ms.Tensor(np.zeros((_TRACED, *shape), np.float32)), traced)
        graph = onnx_graph(read_graph(traced), shape, network.num_classes)
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="mindspore-gcp",
    )
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    with os_errors_as(f"cannot write {path}"):
        path.write_bytes(model.SerializeToString())
        seal(path)


class OnnxModel:
    """An ONNX file, ready to run: images (n, channels, height, width) float32 -> logits (n, K), NumPy arrays.

    ``about`` is what travelled with the graph: ``class_names`` and the image ``transform``. UserError: missing, damaged
    or not ONNX, it could do more than compute, or ONNX Runtime does not serve the device.
    """

    def __init__(self, path: Path, device_target: str = "CPU") -> None:
        import onnxruntime

        content = read_sealed(path)
        provider, available = PROVIDERS[device_target], onnxruntime.get_available_providers()
        if provider not in available:
            raise UserError(f"this ONNX Runtime has no {provider} for {device_target}; it has {', '.join(available)}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        check_onnx(content, path)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=[provider])
            properties = self._session.get_modelmeta().custom_metadata_map
            self.about: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise UserError(f"{path} is damaged or not an ONNX file of export.py: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._input: np.ascontiguousarray(images, np.float32)})[0]


def check_onnx(content: bytes, path: Path) -> None:
    """See that an ONNX file can only compute: plain operators that export.py writes, and its weights within it."""
    import onnx  # after MindSpore, whose generated code needs protobuf's Python implementation

    from covpool.export.onnx_graph import OPERATORS

    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not an ONNX file of export.py: {error}") from error
    for message in messages(model):
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            raise refused(path, "weights in another file")
        if isinstance(message, onnx.NodeProto) and (message.domain or message.op_type not in OPERATORS):
            raise refused(path, f"the operator {message.domain}{'.' if message.domain else ''}{message.op_type}")
