"""Checkpoints of the public MindSpore ports and of the trainer of fast-MPN-COV, built from their names."""

from __future__ import annotations

import re

import mindspore as ms
import numpy as np
import pytest
import torch

from covpool.checkpoints import convert_file, convert_state_dict, load_into, read_ckpt, read_parameters, read_state_dict
from covpool.checkpoints.conversion import start_from
from covpool.checkpoints.format import load_network, read_checkpoint, save_checkpoint
from covpool.errors import UserError
from covpool.export import export_network, fold_batch_norm, open_exported
from covpool.models import create_model
from tests.checkpoints.checkpoint_files import tensors
from tests.checkpoints.port_files import port_arrays, port_logits, write_port_file
from tests.checkpoints.released import rule_images, rule_state_dict

SMALL = {"base_width": 8, "reduction_dim": 16, "num_classes": 5}


def network(name: str = "resnet18", pooling: str = "dropcov", **args) -> ms.nn.Cell:
    return create_model(name, pooling=pooling, **{**SMALL, **args}).set_train(False)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture
def pynative_mode() -> None:
    """Nothing is compiled."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize(("name", "pooling"), [("resnet18", "dropcov"), ("resnet50", "dropcov"), ("resnet50", "gcp")])
def test_logits_of_a_port(name, pooling, tmp_path, pynative_mode):
    arrays = port_arrays(name, "acd" if pooling == "dropcov" else "mpncov")
    write_port_file(tmp_path / "port.ckpt", arrays)
    cell, images = network(name, pooling), rule_images(3, 64)
    load_network(cell, read_checkpoint(tmp_path / "port.ckpt"))
    expected = port_logits(arrays, name, images)
    assert error(cell(ms.Tensor(images)).asnumpy(), expected) < 1e-5
    cell.set_conventions("torchvision")
    assert error(cell(ms.Tensor(images)).asnumpy(), expected) > 1e-3, "the conventions must matter here"


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize(("head", "pooling"), [("acd", "dropcov"), ("mpncov", "fast_mpn")])
def test_names_of_a_port(name, head, pooling, tmp_path):
    arrays = port_arrays(name, head, classes=1001)
    write_port_file(tmp_path / "port.ckpt", arrays)
    found = read_ckpt(tmp_path / "port.ckpt")
    assert set(found) == {p.name for p in network(name, pooling, num_classes=1001).get_parameters()}
    if head == "acd":
        assert arrays["eca_layer.conv.weight"].shape == (1, 1, 1, 3)
        assert found["pooling.conv.weight"].asnumpy().tobytes() == arrays["eca_layer.conv.weight"].tobytes()


def test_the_conventions_stay_with_the_network(tmp_path, pynative_mode):
    arrays = port_arrays("resnet18", "acd")
    write_port_file(tmp_path / "port.ckpt", arrays)
    images = rule_images(3, 64)
    expected = port_logits(arrays, "resnet18", images)

    pretrained = network()
    start_from(pretrained, read_checkpoint(tmp_path / "port.ckpt"))
    save_checkpoint(tmp_path / "saved.ckpt", pretrained, about={"epoch": 1})
    convert_file(tmp_path / "port.ckpt", tmp_path / "converted.ckpt", network=network())
    convert_file(tmp_path / "port.ckpt", tmp_path / "unchecked.ckpt")
    for file in ("saved", "converted", "unchecked"):
        again = network()
        load_network(again, read_checkpoint(tmp_path / f"{file}.ckpt"))
        assert again.conventions == "model_zoo"
        assert error(again(ms.Tensor(images)).asnumpy(), expected) < 1e-5
    assert error(fold_batch_norm(pretrained)(ms.Tensor(images)).asnumpy(), expected) < 1e-5


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_a_port_is_exported(file_format, tmp_path, pynative_mode):
    arrays, images = port_arrays("resnet50", "acd"), rule_images(3, 64, batch=6)
    write_port_file(tmp_path / "port.ckpt", arrays)
    cell = network("resnet50")
    load_network(cell, read_checkpoint(tmp_path / "port.ckpt"))
    path = export_network(cell, tmp_path / "net", file_format, images, {}).path
    assert error(open_exported(path)(images[:2]), port_logits(arrays, "resnet50", images[:2])) < 1e-5


def test_conventions_change_a_compiled_network(graph_mode):
    images = rule_images(3, 64)
    cell = network("resnet10", "gcp")
    before = cell(ms.Tensor(images)).asnumpy()
    cell.set_conventions("model_zoo")
    changed = cell(ms.Tensor(images)).asnumpy()
    cell.set_conventions("torchvision")
    assert not np.array_equal(before, changed)
    np.testing.assert_array_equal(cell(ms.Tensor(images)).asnumpy(), before)


def test_conventions_are_names():
    with pytest.raises(ValueError, match="conventions must be 'torchvision' or 'model_zoo', not 'zoo'"):
        create_model("resnet10", conventions="zoo", **SMALL)
    assert create_model("resnet10", conventions="model_zoo", **SMALL).conventions == "model_zoo"


def test_pytorch_names_say_what_they_cannot_carry(tmp_path, caplog):
    write_port_file(tmp_path / "port.ckpt", port_arrays("resnet18", "acd"))
    convert_file(tmp_path / "port.ckpt", tmp_path / "port.safetensors", to="safetensors")
    assert "eps" in caplog.text and "1e-4" in caplog.text


@pytest.mark.parametrize(
    ("conventions", "message"),
    [('"zoo"', "conventions"), ("7", "conventions"), ("{", "damaged")],
)
def test_unknown_conventions_of_a_checkpoint(conventions, message, tmp_path):
    entries = [{"name": p.name, "data": p} for p in network().get_parameters()]
    ms.save_checkpoint(
        entries, str(tmp_path / "n.ckpt"), append_dict={"about.conventions": conventions}, crc_check=True
    )
    with pytest.raises(UserError, match=message) as raised:
        load_network(network(), read_checkpoint(tmp_path / "n.ckpt"))
    assert "\n" not in str(raised.value)


TRAINER = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def trainer_names(source: dict[str, np.ndarray], pretrained: bool, features: str) -> dict[str, np.ndarray]:
    """A state dict as the trainer of fast-MPN-COV saves it."""
    reduction = (
        {"layer_reduce": f"{features}8", "layer_reduce_bn": f"{features}9"}
        if pretrained
        else {"layer_reduce": "representation.conv_dr_block.0", "layer_reduce_bn": "representation.conv_dr_block.1"}
    )
    renamed = {**{name: features + number for name, number in TRAINER.items()}, **reduction, "fc": "classifier"}
    return {re.sub(r"^\w+", lambda match: renamed[match[0]], name): value for name, value in source.items()}


@pytest.mark.parametrize("features", ["features.", "features.module.", "module.features."])
@pytest.mark.parametrize("pretrained", [True, False])
def test_names_of_the_trainer_of_fast_mpn_cov(features, pretrained, tmp_path):
    source = rule_state_dict("resnet50", "mpncov", 16, classes=5, width=8)
    renamed = trainer_names(source, pretrained, features)
    if features.startswith("module."):
        renamed = {n if n.startswith("module.") else f"module.{n}": value for n, value in renamed.items()}
    torch.save({"arch": "mpncovresnet50", "state_dict": tensors(renamed)}, tmp_path / "m.pth.tar")
    parameters = read_parameters(tmp_path / "m.pth.tar")
    expected = convert_state_dict(source)
    assert set(parameters) == set(expected)
    assert all(parameters[n].asnumpy().tobytes() == expected[n].asnumpy().tobytes() for n in expected)
    load_into(network("resnet50", "fast_mpn"), parameters)


def test_a_trainers_network_with_another_stride_is_told(tmp_path, caplog):
    source = trainer_names(rule_state_dict("resnet18", "mpncov", 16, classes=5, width=8), False, "features.")
    torch.save({"arch": "resnet18", "state_dict": tensors(source)}, tmp_path / "m.pth.tar")
    read_state_dict(tmp_path / "m.pth.tar")
    assert "stride 2" in caplog.text


def test_a_network_without_reduction_is_named_as_what_it_is():
    source = rule_state_dict("resnet18", "gap", classes=5, width=8)
    source["fc.weight"] = np.zeros((5, 64 * 65 // 2), np.float32)
    with pytest.raises(UserError, match=r"reduction_dim: none \(covariance of all 64 channels\) in the checkpoint"):
        load_into(network(), convert_state_dict(trainer_names(source, False, "features.")))


def test_two_names_of_a_port_for_one_tensor(tmp_path):
    arrays = port_arrays("resnet10", "mpncov")
    arrays["layer1.0.bn1.gamma"] = arrays["layer1.0.bn1d.gamma"]
    write_port_file(tmp_path / "port.ckpt", arrays)
    with pytest.raises(UserError, match=r"two tensors become layer1\.0\.bn1\.gamma"):
        read_ckpt(tmp_path / "port.ckpt")
