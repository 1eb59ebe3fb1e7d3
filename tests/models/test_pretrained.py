"""Starting from weights: what is taken of a file, what is not, and the line that says so."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from PIL import Image

from covpool.checkpoints import convert_file, convert_state_dict, read_weights, start_from
from covpool.checkpoints.format import save_checkpoint
from covpool.errors import UserError
from covpool.models import create_model
from tests.checkpoints.checkpoint_files import tensors
from tests.checkpoints.released import rule_state_dict

SMALL = {"base_width": 8, "reduction_dim": 16, "num_classes": 5}
FRESH = {"layer_reduce", "layer_reduce_bn", "fc"}


def network(pooling: str = "fast_mpn", **args: object) -> ms.nn.Cell:
    return create_model("resnet10", pooling=pooling, **{**SMALL, **args})


def values(cell: ms.nn.Cell) -> dict[str, bytes]:
    return {p.name: p.asnumpy().tobytes() for p in cell.get_parameters()}


@pytest.fixture
def torchvision_file(tmp_path: Path) -> Path:
    """A plain ResNet as torchvision saves it, small."""
    path = tmp_path / "resnet10-0676ba61.pth"
    torch.save(tensors(rule_state_dict("resnet10", "gap", classes=1000, width=8)), path)
    return path


def test_a_covariance_network_starts_from_a_plain_one(torchvision_file, caplog):
    caplog.set_level(logging.INFO)
    cell = network()
    before = values(cell)
    left = start_from(cell, read_weights(torchvision_file))
    source = convert_state_dict(rule_state_dict("resnet10", "gap", classes=1000, width=8))
    assert {name.split(".")[0] for name in left} == FRESH
    for name, value in values(cell).items():
        assert value == (before[name] if name in left else source[name].asnumpy().tobytes())
    assert [record.message for record in caplog.records] == [
        f"started from the backbone of {torchvision_file}, a plain network with global average pooling: 60 of its 62 "
        "tensors taken, without fc; newly initialised: layer_reduce, layer_reduce_bn, fc"
    ]


def test_the_conversion_takes_the_same(torchvision_file, tmp_path):
    cell, converted = network(), network()
    for parameter, other in zip(cell.get_parameters(), converted.get_parameters()):
        other.set_data(parameter.value())
    start_from(cell, read_weights(torchvision_file))
    report = convert_file(torchvision_file, tmp_path / "new.ckpt", network=converted, backbone_only=True)
    assert values(converted) == values(cell)
    assert {name.split(".")[0] for name in report.fresh} == FRESH and report.left_out == ["fc.weight", "fc.bias"]


def test_a_checkpoint_of_average_pooling_does_not_contradict(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    architecture = {"net_name": "resnet10", "pooling": "gap", "class_num": 5}
    save_checkpoint(tmp_path / "gap.ckpt", network("gap"), about={"architecture": architecture})
    wanted = {"net_name": "resnet10", "pooling": "fast_mpn", "reduction_dim": 16, "class_num": 7}
    start_from(network(num_classes=7), read_weights(tmp_path / "gap.ckpt"), wanted, ["a"] * 7)
    assert "started from the backbone of" in caplog.text
    with pytest.raises(UserError, match="net_name is 'resnet10' in the checkpoint and 'resnet18'"):
        start_from(network(), read_weights(tmp_path / "gap.ckpt"), {**wanted, "net_name": "resnet18"})


@pytest.mark.parametrize(
    ("pooling", "classes", "line"),
    [
        ("gap", 1000, "its classifier included: it has as many outputs, and does not name its classes"),
        (
            "gap",
            5,
            "without its classifier: it has other classes (fc.weight is (1000, 64) in the file, (5, 64) in the ",
        ),
        ("gap", 0, "without its classifier: the network has no classifier"),
        ("dropcov", 0, "newly initialised: layer_reduce, layer_reduce_bn, pooling"),
    ],
)
def test_create_model_from_a_file(pooling, classes, line, torchvision_file, caplog):
    caplog.set_level(logging.INFO)
    cell = network(pooling, num_classes=classes, pretrained=torchvision_file)
    source = convert_state_dict(rule_state_dict("resnet10", "gap", classes=1000, width=8))
    np.testing.assert_array_equal(cell.layer4[0].conv1.weight.asnumpy(), source["layer4.0.conv1.weight"].asnumpy())
    if classes == 1000:
        np.testing.assert_array_equal(cell.fc.weight.asnumpy(), source["fc.weight"].asnumpy())
    assert line in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(("head", "pooling"), [("acd", "dropcov"), ("mpncov", "fast_mpn")])
def test_released_files_and_features(head, pooling, tmp_path):
    torch.save(tensors(rule_state_dict("resnet10", head, 16, classes=5, width=8)), tmp_path / "released.pth.tar")
    source = convert_state_dict(rule_state_dict("resnet10", head, 16, classes=5, width=8))
    cell = network(pooling, pretrained=str(tmp_path / "released.pth.tar"))
    assert values(cell) == {name: p.asnumpy().tobytes() for name, p in source.items()}
    stages = network(pooling, pretrained=tmp_path / "released.pth.tar", features_only=True)
    assert {"layer4.0.conv1.weight"} <= set(values(stages)) <= set(source)
    assert all(value == source[name].asnumpy().tobytes() for name, value in values(stages).items())


def test_what_is_no_backbone_of_this_network_changes_nothing(torchvision_file):
    cell = create_model("resnet18", pooling="fast_mpn", **SMALL)
    before = values(cell)
    with pytest.raises(UserError, match=r"resnet10\) in the checkpoint, .*resnet18\) in the network"):
        start_from(cell, read_weights(torchvision_file))
    assert values(cell) == before


def test_an_average_pooling_takes_no_covariance_network(tmp_path):
    save_checkpoint(tmp_path / "cov.ckpt", network())
    with pytest.raises(UserError, match="layer_reduce"):
        start_from(network("gap"), read_weights(tmp_path / "cov.ckpt"))


def test_training_starts_from_a_released_file(torchvision_file, tmp_path, caplog):
    """``--pre_trained=resnet50-0676ba61.pth``, as `covpool train` prepares it."""
    from covpool.config import load_config
    from covpool.runtime.distributed import World
    from covpool.training.run_folder import RunFolder
    from covpool.training.start import prepare

    caplog.set_level(logging.INFO)
    for name in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "data" / split / name / "1.png")
    keys = {"net_name": "resnet10", "pooling": "dropcov", "base_width": 8, "reduction_dim": 16, "class_num": "auto"}
    keys.update(dataset="image_folder", train_image_size=32, eval_image_size=32, batch_size=2, epoch_size=1)
    keys.update(
        data_path=tmp_path / "data", output_path=tmp_path / "run", pre_trained=torchvision_file, warmup_epochs=0
    )
    (tmp_path / "config.yaml").write_text("net_name: resnet10\n")
    config = load_config(tmp_path / "config.yaml", [f"--{key}={value}" for key, value in keys.items()])
    state = prepare(config, World(), RunFolder(tmp_path / "run")).state
    expected = rule_state_dict("resnet10", "gap", classes=1000, width=8)["layer4.0.conv1.weight"]
    np.testing.assert_array_equal(state.network.layer4[0].conv1.weight.asnumpy(), expected)
    assert "without fc; newly initialised: layer_reduce, layer_reduce_bn, pooling, fc" in caplog.text
