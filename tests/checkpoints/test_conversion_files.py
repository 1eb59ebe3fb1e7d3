"""Checkpoint files of every format, read and written."""

from __future__ import annotations

import pickle
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch  # after mindspore: both bring an OpenMP runtime
from safetensors.numpy import load_file, save_file

from covpool.checkpoints import (
    conversion,
    convert_file,
    convert_state_dict,
    read_ckpt,
    read_parameters,
    read_state_dict,
    write_ckpt,
    write_safetensors,
)
from covpool.errors import UserError
from covpool.models import create_model
from tests.checkpoints.checkpoint_files import paddle_dict, same, tensors


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


def test_a_network_that_was_trained_becomes_safetensors(tmp_path, source):
    parameters = convert_state_dict(source)
    parameters["pooling.dropout.counter"] = ms.Parameter(ms.Tensor(7, ms.int32))  # PyTorch has no such entry
    write_ckpt(tmp_path / "model.ckpt", parameters)
    convert_file(tmp_path / "model.ckpt", tmp_path / "model.safetensors", "safetensors")
    assert same(load_file(tmp_path / "model.safetensors"), source)


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


def test_a_file_that_differs_after_writing_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_model("resnet10", pooling="gap", num_classes=3, base_width=4)
    source, output = tmp_path / "a.ckpt", tmp_path / "b.safetensors"
    write_ckpt(source, {p.name: p for p in network.get_parameters()})
    output.write_bytes(b"an earlier file")
    read = conversion.read_state_dict
    monkeypatch.setattr(conversion, "read_state_dict", lambda path: {k: v + 1 for k, v in read(path).items()})
    with pytest.raises(UserError, match="differs after writing"):
        convert_file(source, output, "safetensors")
    assert output.read_bytes() == b"an earlier file" and len(list(tmp_path.iterdir())) == 2
