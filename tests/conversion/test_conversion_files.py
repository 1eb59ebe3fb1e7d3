"""Checkpoint files: every format, damage, and the command line."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch  # after mindspore: both bring an OpenMP runtime
from safetensors.numpy import load_file, save_file

from src.conversion import (
    convert_state_dict,
    read_ckpt,
    read_parameters,
    read_state_dict,
    write_ckpt,
    write_safetensors,
)
from src.errors import UserError
from tests.conversion.released import rule_state_dict

KEYS = {"reduction_dim": 16, "classes": 5, "width": 8}


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    return rule_state_dict("resnet10", "acd", **KEYS)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def paddle_dict(arrays: dict[str, np.ndarray]) -> dict[str, object]:
    """As Paddle saves the same network: its own names of statistics, dense weights (in, out), a table of names."""
    content: dict[str, object] = {}
    for name, value in arrays.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        content[name] = value.T.copy() if value.ndim == 2 else value
    content["StructuredToParameterName@@"] = {name: f"param_{i}" for i, name in enumerate(content)}
    return content


def same(read: dict[str, np.ndarray], source: dict[str, np.ndarray], counts: bool = True) -> bool:
    expected = {k: v for k, v in source.items() if counts or not k.endswith("num_batches_tracked")}
    return set(read) == set(expected) and all(read[k].tobytes() == expected[k].tobytes() for k in expected)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_pytorch_files(tmp_path, source, legacy, wrapped):
    path = tmp_path / ("model.pth.tar" if wrapped else "model.pth")
    content = tensors(source)
    if wrapped:
        optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        content = {
            "epoch": 90,
            "arch": "resnet18",
            "state_dict": content,
            "best_acc1": torch.tensor(73.8),
            "optimizer": optimizer,
        }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_state_dict(path), source)


def test_pytorch_file_of_a_data_parallel_model(tmp_path, source):
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors(source).items()}}, path)
    assert set(read_parameters(path)) == set(convert_state_dict(source))


def test_pytorch_loads_what_is_written_back(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    source = {k: v.numpy() for k, v in module.state_dict().items()}
    write_safetensors(tmp_path / "a.safetensors", source)
    module.load_state_dict(tensors(load_file(tmp_path / "a.safetensors")), strict=True)


def test_half_precision_files(tmp_path):
    weight = torch.tensor([[0.5, -1.5], [2.0, 3.0]])
    torch.save({"fc.weight": weight.bfloat16(), "fc.bias": torch.nn.Parameter(weight[0].half())}, tmp_path / "m.pth")
    parameters = read_parameters(tmp_path / "m.pth")
    np.testing.assert_array_equal(parameters["fc.weight"].asnumpy(), weight.numpy())
    np.testing.assert_array_equal(parameters["fc.bias"].asnumpy(), weight[0].numpy())


def test_safetensors_files(tmp_path, source):
    save_file(source, tmp_path / "model.safetensors")
    assert same(read_state_dict(tmp_path / "model.safetensors"), source)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_paddle_files(tmp_path, source, protocol):
    path = tmp_path / "model.pdparams"
    path.write_bytes(pickle.dumps(paddle_dict(source), protocol=protocol))
    assert same(read_state_dict(path), source, counts=False)


def test_paddle_files_of_numpy_2(tmp_path, source):
    path = tmp_path / "model.pdparams"
    content = pickle.dumps(paddle_dict(source), protocol=2)
    path.write_bytes(content.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"))
    assert same(read_state_dict(path), source, counts=False)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("ending", [".pdparams", ".pth"])
def test_no_code_of_a_file_runs(tmp_path, ending):
    path, trace = tmp_path / f"model{ending}", tmp_path / "trace"
    content = {"fc.weight": np.zeros((2, 2), np.float32), "bad": Malicious(trace)}
    if ending == ".pth":
        torch.save({"bad": content["bad"]}, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="could run code"):
        read_state_dict(path)
    assert not trace.exists()


def written(folder: Path, ending: str, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / f"model{ending}"
    if ending == ".pth":
        torch.save(tensors(arrays), path)
    elif ending == ".safetensors":
        save_file(arrays, path)
    elif ending == ".pdparams":
        path.write_bytes(pickle.dumps(paddle_dict(arrays), protocol=4))
    else:
        write_ckpt(path, convert_state_dict(arrays))
    return path


ENDINGS = [".pth", ".safetensors", ".pdparams", ".ckpt"]


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_parameters(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path, source, ending, keep):
    path = written(tmp_path, ending, source)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: int(len(content) * keep)])
    message = error_of(path)
    assert "is empty" in message if keep == 0 else "damaged" in message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"hello world\n" * 100, b"\x00" * 500, bytes(range(256)) * 9, b"PK\x03\x04junk"])
def test_foreign_files(tmp_path, ending, content):
    path = tmp_path / f"model{ending}"
    path.write_bytes(content)
    error_of(path)


@pytest.mark.parametrize("ending", [".pth", ".ckpt"])
def test_a_flipped_bit_is_noticed(tmp_path, source, ending):
    path = written(tmp_path, ending, source)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert "checksum" in error_of(path)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ([torch.zeros(2)], "holds list"),
        ({}, "holds dict"),
        ({"epoch": 3, "weights": torch.zeros(2)}, "epoch is of type int"),
        ({"fc.weight": torch.zeros(3, 3).to_sparse()}, "sparse"),
        (torch.nn.Linear(2, 2), "could run code"),
    ],
)
def test_pytorch_files_that_hold_something_else(tmp_path, content, phrase):
    torch.save(content, tmp_path / "model.pth")
    assert phrase in error_of(tmp_path / "model.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {"a": np.array([None, {}])}])
def test_paddle_files_that_hold_something_else(tmp_path, content):
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps(content))
    assert "not a" in error_of(tmp_path / "model.pdparams")


def test_names_of_files(tmp_path):
    assert "no such file" in error_of(tmp_path / "model.pth")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "known are .pth, .pt, .tar, .safetensors, .pdparams" in error_of(tmp_path / "model.onnx")


@pytest.mark.parametrize(("package", "ending"), [("torch", ".pth"), ("safetensors", ".safetensors")])
def test_optional_packages(tmp_path, source, monkeypatch, package, ending):
    path = written(tmp_path, ending, source)
    for module in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install {package}" in error_of(path)


def test_ckpt_files_keep_every_bit(tmp_path, source):
    parameters = convert_state_dict(source)
    write_ckpt(tmp_path / "model.ckpt", parameters)
    again = read_ckpt(tmp_path / "model.ckpt")
    assert set(again) == set(parameters)
    for name, parameter in parameters.items():
        assert again[name].asnumpy().tobytes() == parameter.asnumpy().tobytes()
        assert (again[name].shape, again[name].dtype) == (parameter.shape, parameter.dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
    assert (tmp_path / "model.ckpt").read_bytes()[-17:-10] == b"crc_num"


def test_ckpt_files_without_checksum_are_told(tmp_path, caplog):
    entries = [{"name": "fc.bias", "data": ms.Tensor(np.ones(3, np.float32))}]
    ms.save_checkpoint(entries, str(tmp_path / "model.ckpt"))
    assert list(read_ckpt(tmp_path / "model.ckpt")) == ["fc.bias"]
    assert "no checksum" in caplog.text


def test_training_state_is_left_out(tmp_path):
    entries = [{"name": n, "data": ms.Tensor(np.ones(3, np.float32))} for n in ("fc.bias", "optimizer.moments.fc.bias")]
    ms.save_checkpoint(entries, str(tmp_path / "model.ckpt"), crc_check=True, append_dict={"about.epoch": "3"})
    assert list(read_ckpt(tmp_path / "model.ckpt")) == ["fc.bias"]


def test_an_earlier_file_survives_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"earlier")

    def fail(_entries, name, **_):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", fail)
    with pytest.raises(UserError, match="No space left"):
        write_ckpt(path, {"a": ms.Parameter(ms.Tensor([1.0]), name="a")})
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


def test_endings_of_outputs(tmp_path):
    with pytest.raises(UserError, match=r"must end with \.ckpt"):
        write_ckpt(tmp_path / "model.bin", {})
    with pytest.raises(UserError, match=r"must end with \.safetensors"):
        write_safetensors(tmp_path / "model.bin", {})
    assert list(tmp_path.iterdir()) == []


CONFIG = "net_name: resnet10\npooling: dropcov\nreduction_dim: 16\nclass_num: 5\nbase_width: 8\n"


def convert(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "c.yaml").write_text(CONFIG)
    command = [sys.executable, str(root / "scripts/convert_checkpoint.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command_line_there_and_back(tmp_path, root, source):
    torch.save({"state_dict": tensors({f"module.{k}": v for k, v in source.items()})}, tmp_path / "m.pth.tar")
    there = convert(root, tmp_path, "--source", "m.pth.tar", "--config_path=c.yaml", "--output", "m.ckpt")
    assert (there.returncode, there.stderr) == (0, "")
    back = ("--source=m.ckpt", "--config_path=c.yaml", "--to=safetensors", "--output=m.safetensors")
    result = convert(root, tmp_path, *back)
    assert (result.returncode, result.stderr) == (0, "")
    assert same(load_file(tmp_path / "m.safetensors"), source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "m.ckpt", "m.pth.tar", "m.safetensors"]


def test_command_line_for_fine_tuning(tmp_path, root):
    backbone = rule_state_dict("resnet10", "gap", classes=1000, width=8)
    torch.save(tensors(backbone), tmp_path / "gap.pth")
    arguments = ("--source=gap.pth", "--config_path=c.yaml", "--output=m.ckpt")
    wrong = convert(root, tmp_path, *arguments)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "reduction_dim: none (global average pooling) in the checkpoint, 16 in the network" in wrong.stderr
    assert not (tmp_path / "m.ckpt").exists()

    result = convert(root, tmp_path, *arguments, "--backbone_only")
    assert result.returncode == 0, result.stderr
    assert re.search(r"newly initialised: layer_reduce\.weight, .*, fc\.bias", result.stdout)
    assert "left out of gap.pth: fc.weight, fc.bias" in result.stdout
    full = read_ckpt(tmp_path / "m.ckpt")
    assert full["fc.weight"].shape == (5, 136)
    assert full["layer4.0.bn2.gamma"].asnumpy().tobytes() == backbone["layer4.0.bn2.weight"].tobytes()

    result = convert(root, tmp_path, "--source=m.ckpt", "--config_path=c.yaml", "--output=n.ckpt", "--num_classes=3")
    assert result.returncode == 0, result.stderr
    assert set(full) - set(read_ckpt(tmp_path / "n.ckpt")) == {"fc.weight", "fc.bias"}


def test_command_line_usage(tmp_path, root):
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt")
    assert result.returncode == 2 and "--config_path is needed" in result.stderr
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml", "--reduktion_dim=3")
    assert result.returncode == 2 and "reduction_dim" in result.stderr
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml")
    assert (result.returncode, result.stderr) == (2, "error: m.pth: no such file\n")


def test_the_unpickler_accepts_only_its_codec(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    assert "damaged" in error_of(path)
