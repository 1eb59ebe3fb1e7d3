"""Checkpoints: whole, checked, strict; the store keeps what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.checkpoints import load_network, load_optimizer, read_checkpoint, save_checkpoint
from src.errors import UserError
from src.models import create_model
from src.training.optimizers import build_optimizer
from src.training.store import CheckpointStore

ABOUT = {"architecture": {"net_name": "resnet10", "pooling": "gcp"}, "class_names": ["a", "ä b"], "epoch": 3}


def network(**arguments: object) -> nn.Cell:
    defaults: dict[str, object] = {"pooling": "gcp", "reduction_dim": 8, "base_width": 4, "num_classes": 3}
    return create_model("resnet10", **{**defaults, **arguments})


def optimizer(net: nn.Cell, seed: int = 0) -> nn.Optimizer:
    made = build_optimizer(list(net.trainable_params()), np.full(5, 0.1, np.float32))
    rng = np.random.default_rng(seed)
    for parameter in made.moments:
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape), ms.float32))
    return made


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    net = network()
    opt = optimizer(net)
    opt.global_step.set_data(ms.Tensor([17], ms.int32))
    save_checkpoint(tmp_path / "a.ckpt", net, opt, ABOUT)
    other = network()
    other_opt = optimizer(other, seed=9)
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint.about == ABOUT
    load_network(other, checkpoint, ABOUT["architecture"])
    load_optimizer(other_opt, other, checkpoint)
    for one, two in zip(net.get_parameters(), other.get_parameters()):
        assert one.asnumpy().tobytes() == two.asnumpy().tobytes()
    for one, two in zip(opt.moments, other_opt.moments):
        assert one.asnumpy().tobytes() == two.asnumpy().tobytes()
    assert other_opt.global_step.asnumpy() == 17
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, network(), None, {})
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 25).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.ckpt"):
            read_checkpoint(path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, network(), None, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"a\.ckpt"):
        read_checkpoint(path)


def test_other_network_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.ckpt", network(), None, ABOUT)
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="pooling is 'gcp' in the checkpoint and 'gap' in the configuration"):
        load_network(network(pooling="gap"), checkpoint, {"pooling": "gap"})
    with pytest.raises(UserError, match="reduction"):
        load_network(network(reduction_dim=16), checkpoint)


def test_fine_tuning_leaves_out_a_classifier_of_other_classes(tmp_path: Path) -> None:
    source = network()
    save_checkpoint(tmp_path / "a.ckpt", source, None, {"architecture": {"class_num": 3}})
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    target = network(num_classes=7)
    fresh = target.fc.weight.asnumpy().copy()
    assert not load_network(target, checkpoint, {"class_num": 7}, fine_tune=True)
    assert (target.fc.weight.asnumpy() == fresh).all()
    assert (target.conv1.weight.asnumpy() == source.conv1.weight.asnumpy()).all()
    assert load_network(network(), checkpoint, {"class_num": 3}, fine_tune=True)
    with pytest.raises(UserError, match="class_num is 3 in the checkpoint and 7"):
        load_network(target, checkpoint, {"class_num": 7})


def test_a_network_alone_cannot_be_resumed_from(tmp_path: Path) -> None:
    net = network()
    save_checkpoint(tmp_path / "a.ckpt", net)
    with pytest.raises(UserError, match="no optimiser state"):
        load_optimizer(optimizer(net), net, read_checkpoint(tmp_path / "a.ckpt"))


def test_store_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    net = network()
    opt = optimizer(net)
    store = CheckpointStore(tmp_path, keep_max=2)
    for epoch, metric in enumerate([0.5, 0.9, 0.7, 0.8], start=1):
        store.save(net, opt, epoch, epoch * 10, metric, ABOUT)
        store.save_best(net, opt, epoch, epoch * 10, metric, ABOUT)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.ckpt",
        "epoch_0003.ckpt",
        "epoch_0004.ckpt",
        "index.json",
    ]
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["best"]["epoch"] == 2 and index["last"] == "epoch_0004.ckpt"
    again = CheckpointStore(tmp_path, keep_max=2)
    assert again.best_metric == 0.9
    newest = again.newest_valid()
    assert newest is not None and newest.about["epoch"] == 4


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    opt = optimizer(net)
    store = CheckpointStore(tmp_path, keep_max=5)
    for epoch in (1, 2):
        store.save(net, opt, epoch, epoch, None, ABOUT)
    newest = tmp_path / "epoch_0002.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    found = CheckpointStore(tmp_path, keep_max=5).newest_valid()
    assert found is not None and found.about["epoch"] == 1
    assert len(caplog.records) == 1 and "epoch_0002.ckpt" in caplog.text
