"""Checkpoint files that are damaged, malicious or something else: one clear line, and no code of theirs runs."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import mindspore  # noqa: F401 - before torch: both bring an OpenMP runtime
import numpy as np
import pytest
import torch

from covpool.checkpoints import read_state_dict, readers
from covpool.errors import UserError
from tests.checkpoints.checkpoint_files import ENDINGS, error_of, written


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


def small_file(folder: Path, kind: str) -> Path:
    arrays = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.ones(2, np.float16)}
    if kind.startswith("paddle"):
        path = folder / "model.pdparams"
        path.write_bytes(pickle.dumps(arrays, protocol=int(kind[-1])))
        return path
    if kind == "legacy":
        path = folder / "model.pth"
        state = {name: torch.from_numpy(value) for name, value in arrays.items()}
        torch.save(state, path, _use_new_zipfile_serialization=False)
        return path
    return written(folder, kind, arrays)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # PyTorch's, on a number of its header
@pytest.mark.parametrize("kind", [".pth", "legacy", ".safetensors", "paddle2", "paddle4", "paddle5"])
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_at_any_place_is_a_clear_error_or_a_number(tmp_path, kind, bit):
    path = small_file(tmp_path, kind)
    whole = path.read_bytes()
    for place in range(bit, len(whole), 8 if kind == ".pth" else 1):  # a zip file is long, and checked by PyTorch too
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            arrays = read_state_dict(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert all(type(array) is np.ndarray for array in arrays.values())


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


def test_the_unpickler_accepts_only_its_codec(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    assert "damaged" in error_of(path)


def test_the_unpickler_changes_nothing_but_arrays(tmp_path):
    path = tmp_path / "model.pdparams"
    function = b"cnumpy.core.numeric\n_frombuffer\n"
    path.write_bytes(b"\x80\x02" + function + b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.")  # slot state
    assert "could run code" in error_of(path)
    assert readers._frombuffer.__defaults__ is None
    path.write_bytes(b"\x80\x02" + function + b"}X\x04\x00\x00\x00nameK\x01sb.")
    assert "could run code" in error_of(path)
    assert not readers._frombuffer.__dict__


@pytest.mark.parametrize("version", ["2.9.1", "2.2.0+cpu", "1.13.1"])
def test_a_torch_that_can_be_made_to_run_code_is_not_used(tmp_path, source, monkeypatch, version):
    path = written(tmp_path, ".pth", source)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("used"))
    assert f"PyTorch {version}" in error_of(path)
    assert "2.10" in error_of(path) and ".safetensors" in error_of(path)


def test_safetensors_of_a_format_without_numpy_type(tmp_path):
    from safetensors.torch import save_file

    save_file({"fc.bias": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    assert "a format that NumPy does not have" in error_of(tmp_path / "model.safetensors")


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
