"""Exported files that were damaged, or want more than to compute."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.fault_families.foreign import predicts_as_known
from benchmarks.fault_families.trial import Trial


def crafted_exports(trial: Trial) -> None:
    """An exported file that was damaged, or that wants more than to compute: it answers as known, or is refused."""
    rng = trial.rng
    name = rng.choice(("net.onnx", "net.mindir"))
    body = (trial.material / name).read_bytes()[:-67]
    fault = rng.choice(
        ("flipped", "cut", "seal", "operator", "operator", "external", "shape", "about", "bytes", "type")
    )
    path = trial.work / name
    trial.fault = f"{name}: {fault}"
    if fault in ("flipped", "cut", "seal"):
        content = bytearray((trial.material / name).read_bytes())
        if fault == "flipped":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(
            content[: rng.randrange(len(content))] if fault == "cut" else body if fault == "seal" else content
        )
        trial.check(not predicts_as_known(trial, name, codes=(1,)), "wrong", "a damaged file was taken")
        return
    body = _bytes_changed(rng, body) if fault == "bytes" else _other_model(trial, name, body, fault)
    path.write_bytes(body + _seal(path.suffix, body))
    if fault == "bytes":  # the owner of a file may put any weights into it: no more than a crash is excluded
        trial.run("predict", "--file", name, "--images", str(next((trial.material / "data" / "val" / "bag").iterdir())))
    else:
        taken = predicts_as_known(
            trial, name, classes=fault != "about", codes=(1,) if fault in ("operator", "external") else (0, 1)
        )
        trial.check(not taken or fault not in ("operator", "external"), "code execution", "the file was loaded")
    trial.check(not list(trial.folder.rglob("pwned*")), "code execution", "code of the file ran")


def _seal(ending: str, body: bytes) -> bytes:
    return bytes([0xC2, 0x3E, 64]) + hashlib.sha256(ending.encode() + body).hexdigest().encode()


def _bytes_changed(rng: random.Random, body: bytes) -> bytes:
    content = bytearray(body)
    for _ in range(rng.choice((1, 1, 3, 20))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.2 else content)


_OPERATORS = (
    "Custom",
    "ReadFile",
    "WriteFile",
    "PyFunc",
    "PyExecute",
    "Loop",
    "If",
    "NoSuchOperator",
    "",
    "Print",
    "Send",
)


def _other_model(trial: Trial, name: str, body: bytes, fault: str) -> bytes:
    rng = trial.rng
    if name == "net.onnx":
        import onnx

        model: Any = onnx.load_model_from_string(body)
        tensors, nodes = model.graph.initializer, model.graph.node
    else:
        from mindspore.train import mind_ir_pb2

        model = mind_ir_pb2.ModelProto()
        model.ParseFromString(body)
        tensors, nodes = model.graph.parameter, (model.primitives if rng.random() < 0.5 else model.graph.node)
    tensor, node = rng.choice(list(tensors)), rng.choice(list(nodes))
    if fault == "operator":
        node.op_type = rng.choice([name for name in _OPERATORS if name != node.op_type])
        trial.fault += f" {node.op_type!r}"
        if name == "net.onnx" and rng.random() < 0.3:
            node.domain = "com.microsoft"
        if node.op_type == "Custom" and name == "net.mindir":
            library = native_code(trial)
            for key, value in (("func_type", "aot"), ("func", f"{library}:f"), ("func_name", f"{library}:f")):
                attribute = node.attribute.add(name=key, s=value.encode())
                attribute.type = type(attribute).STRING
    elif fault == "external":
        where = rng.choice(("/etc/passwd", "../../../etc/passwd", "secret", "/dev/zero"))
        (trial.work / "secret").write_bytes(bytes(4096))
        if name == "net.onnx":
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            tensor.external_data.add(key="location", value=where)
        else:
            tensor.ClearField("raw_data")
            tensor.external_data.location = where
    elif fault == "shape":
        axis = rng.randrange(len(tensor.dims)) if tensor.dims else None
        if axis is None:
            tensor.dims.append(rng.choice((2, -1, 2**40)))
        else:
            tensor.dims[axis] = rng.choice(
                [size for size in (0, 1, 3, -1, 2**20, 2**31, 2**62) if size != tensor.dims[axis]]
            )
    elif fault == "type":
        tensor.data_type = rng.choice([code for code in (0, 2, 3, 7, 8, 9, 10, 11, 99) if code != tensor.data_type])
    else:
        values = (
            "null",
            "{",
            "[]",
            '{"transform": {}}',
            '{"transform": {"height": -1}}',
            '{"class_names": 3}',
            "",
            "9" * 5000,
        )
        properties = model.metadata_props if name == "net.onnx" else model.user_info
        rng.choice(list(properties)).value = rng.choice(values)
    return model.SerializeToString()


def native_code(trial: Trial) -> Path:
    """A library whose loading leaves a trace."""
    library = trial.folder / "native.so"
    source = f'#include <cstdio>\nstruct S {{ S() {{ fclose(fopen("{trial.folder}/pwned", "w")); }} }} s;\n'
    source += 'extern "C" int f(int, void**, int*, long**, const char**, void*, void*) { return 0; }\n'
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", library], input=source, text=True, check=True)
    return library
