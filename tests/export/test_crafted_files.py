"""Exported files that are sealed, but want something else than to compute: refused before they are loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import nn, ops
from mindspore.train import mind_ir_pb2
from onnx import helper

from covpool.errors import UserError
from covpool.export import FORMATS, open_exported
from covpool.export.contents import seal
from covpool.export.mindir import write_mindir
from covpool.models.folding import fold_batch_norm
from tests.export.conftest import tiny

pytestmark = pytest.mark.usefixtures("pynative_mode")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of each format, without its seal."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    folder = tmp_path_factory.mktemp("whole")
    contents = {}
    for name, chosen in FORMATS.items():
        path = folder / f"net{chosen.ending}"
        chosen.write(fold_batch_norm(tiny()), path, (3, 24, 32), {})
        contents[name] = path.read_bytes()[:-67]
    return contents


def sealed(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    seal(path)
    return path


LIBRARY = """
#include <cstdio>
__attribute__((constructor)) static void loaded() { if (FILE *f = std::fopen("%s", "w")) std::fclose(f); }
extern "C" int Copy(int, void **, int *, int64_t **, const char **, void *, void *) { return 0; }
"""


class Native(nn.Cell):
    """A network with one operator of a shared library."""

    def __init__(self, library: Path) -> None:
        super().__init__()
        self.custom = ops.Custom(f"{library}:Copy", lambda x: x, lambda x: x, func_type="aot")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.custom(x)


def test_native_code_is_not_loaded(tmp_path):
    source, library, trace = tmp_path / "copy.cc", tmp_path / "copy.so", tmp_path / "trace"
    source.write_text("#include <cstdint>" + LIBRARY % trace)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    path = tmp_path / "net.mindir"
    write_mindir(Native(library), path, (3, 24, 32), {})
    trace.unlink(missing_ok=True)  # the export itself may have loaded it
    with pytest.raises(UserError, match=r"net\.mindir holds the operator Custom, .* could run other code"):
        open_exported(path)(np.zeros((1, 3, 24, 32), np.float32))
    assert not trace.exists()


def file_reader(model: Any) -> None:
    model.primitives[0].op_type = "ReadFile"


def in_a_node(model: Any) -> None:
    model.graph.node[-1].op_type = "PyExecute"


def in_a_function(model: Any) -> None:
    model.functions.add().node.add(op_type="PyFunc")


def in_an_attribute(model: Any) -> None:
    model.primitives[0].attribute.add(name="g").g.node.add(op_type="Custom")


def external_weights(model: Any) -> None:
    model.graph.parameter[0].external_data.location = "/etc/passwd"


def preprocessor(model: Any) -> None:
    model.preprocessor.op.add()


def longer_than_its_shape(model: Any) -> None:
    model.graph.parameter[0].raw_data += bytes(4)


def negative_shape(model: Any) -> None:
    model.graph.parameter[0].dims[0] *= -1


def unknown_number(model: Any) -> None:
    model.graph.parameter[0].data_type = mind_ir_pb2.TensorProto.STRING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (file_reader, "the operator ReadFile"),
        (in_a_node, "the operator PyExecute"),
        (in_a_function, "the operator PyFunc"),
        (in_an_attribute, "the operator Custom"),
        (external_weights, "weights in another file"),
        (preprocessor, "preprocessing"),
        (longer_than_its_shape, "damaged"),
        (negative_shape, "damaged"),
        (unknown_number, "damaged"),
    ],
)
def test_a_mindir_that_does_more_than_compute(change: Callable[[Any], None], message, whole, tmp_path):
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(whole["MINDIR"])
    change(model)
    with pytest.raises(UserError, match=rf"net\.mindir.*{message}"):
        open_exported(sealed(tmp_path / "net.mindir", model.SerializeToString()))


def external_data(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")


def unused_reference(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="secret")


def other_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].domain = "com.microsoft"


def other_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def tensor_in_an_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("value", model.graph.initializer[0]))
    external = model.graph.node[0].attribute[-1].t
    external.data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_data, "weights in another file"),
        (unused_reference, "weights in another file"),
        (tensor_in_an_attribute, "weights in another file"),
        (other_domain, "the operator com.microsoft"),
        (other_operator, "the operator Loop"),
    ],
)
def test_an_onnx_that_does_more_than_compute(change, message, whole, tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(bytes(4096))
    monkeypatch.chdir(tmp_path)
    model = onnx.load_model_from_string(whole["ONNX"])
    change(model)
    with pytest.raises(UserError, match=rf"net\.onnx.*{message}"):
        open_exported(sealed(tmp_path / "net.onnx", model.SerializeToString()))


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_file_itself_opens(file_format, whole, tmp_path):
    model = open_exported(sealed(tmp_path / f"net{FORMATS[file_format].ending}", whole[file_format]))
    assert model(np.ones((2, 3, 24, 32), np.float32)).shape == (2, 4)
