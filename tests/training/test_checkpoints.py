"""Checkpoints: whole, checked, strict; the store keeps what it promises."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.checkpoints.conversion import start_from
from covpool.checkpoints.format import load_network, load_optimizer, read_checkpoint, save_checkpoint
from covpool.checkpoints.state import NonFiniteState, Progress, TrainingState
from covpool.checkpoints.store import CheckpointStore
from covpool.errors import UserError
from covpool.models import create_model
from covpool.runtime.distributed import World
from covpool.training.optimizers import build_optimizer

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
    assert start_from(target, checkpoint, {"class_num": 7}) == ["fc.weight", "fc.bias"]
    assert (target.fc.weight.asnumpy() == fresh).all()
    assert (target.conv1.weight.asnumpy() == source.conv1.weight.asnumpy()).all()
    assert start_from(network(), checkpoint, {"class_num": 3}) == []
    named = replace(checkpoint, about={**checkpoint.about, "class_names": ["a", "b", "c"]})
    for names, loaded in ((["a", "b", "c"], True), (["a", "b", "d"], False), (["b", "a", "c"], False)):
        assert (start_from(network(), named, class_names=names) == []) == loaded
    with pytest.raises(UserError, match="class_num is 3 in the checkpoint and 7"):
        load_network(target, checkpoint, {"class_num": 7})


def test_a_network_alone_cannot_be_resumed_from(tmp_path: Path) -> None:
    net = network()
    save_checkpoint(tmp_path / "a.ckpt", net)
    with pytest.raises(UserError, match="no optimiser state"):
        load_optimizer(optimizer(net), net, read_checkpoint(tmp_path / "a.ckpt"))
    save_checkpoint(tmp_path / "b.ckpt", net, optimizer(net), {"step": 3})
    state = TrainingState(net, optimizer(net), CheckpointStore(tmp_path, 3), World(), 10, {})
    with pytest.raises(UserError, match=r"b\.ckpt: damaged, it does not say after which epoch"):
        state.restore(read_checkpoint(tmp_path / "b.ckpt"), {})


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


def saved(folder: Path, keep_max: int = 3) -> bytes:
    """Five epochs of a small network, the second of which is the best; the index that they end with."""
    net = nn.Dense(2, 3)
    opt = optimizer(net)
    store = CheckpointStore(folder, keep_max)
    for epoch, metric in enumerate([0.5, 0.9, 0.7, 0.8, 0.6], start=1):
        store.save(net, opt, epoch, epoch * 10, metric, ABOUT)
        store.save_best(net, opt, epoch, epoch * 10, metric, ABOUT)
    return (folder / "index.json").read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda index: b"",
    "cut short": lambda index: index[: len(index) // 2],
    "bytes": lambda index: bytes(range(256)),
    "another list": lambda index: b'["epoch_0005.ckpt"]',
    "without entries": lambda index: b'{"checkpoints": {}, "last": null}',
    "other entries": lambda index: b'{"checkpoints": [5], "best": null}',
    "a file elsewhere": lambda index: index.replace(b'"epoch_0005.ckpt"', b'"../epoch_0005.ckpt"'),
    "a step that is none": lambda index: index.replace(b'"step": 50', b'"step": "5\\u0000"'),
    "a metric that is none": lambda index: index.replace(b'"metric": 0.6', b'"metric": []'),
    "an infinite metric": lambda index: index.replace(b'"metric": 0.9', b'"metric": Infinity'),
    "nested deeply": lambda index: b"[" * 100_000,
}


@pytest.mark.parametrize("how", [*DAMAGES, "folder", "pipe", "missing"])
def test_an_index_is_made_anew_from_whole_checkpoints(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = saved(tmp_path)
    path = tmp_path / "index.json"
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in DAMAGES:
        path.write_bytes(DAMAGES[how](whole))
    (tmp_path / "notes.ckpt").write_bytes(b"of somebody else")
    store = CheckpointStore(tmp_path, 3)
    (record,) = caplog.records
    said = "is missing" if how == "missing" else "is damaged"
    assert record.getMessage() == f"{path} {said}: made anew from 3 whole checkpoints and the best one"
    newest = store.newest_valid()
    assert newest is not None and newest.about["epoch"] == 5 and store.best_metric == 0.9
    net = nn.Dense(2, 3)
    store.save(net, optimizer(net), 6, 60, 0.1, ABOUT)
    store.save(net, optimizer(net), 7, 70, 0.1, ABOUT)
    expected = {"best.ckpt", *(f"epoch_000{epoch}.ckpt" for epoch in (5, 6, 7)), "index.json", "notes.ckpt"}
    aside = tmp_path / "index.damaged-1.json"
    assert {p.name for p in tmp_path.iterdir()} == expected | ({aside.name} if how != "missing" else set())
    if how in DAMAGES:
        assert aside.read_bytes() == DAMAGES[how](whole)
    index = json.loads(path.read_text())
    assert [entry["step"] for entry in index["checkpoints"]] == [50, 60, 70] and index["last"] == "epoch_0007.ckpt"
    before = json.loads(whole)
    assert index["best"] == before["best"] and index["checkpoints"][0] == before["checkpoints"][-1]
    caplog.clear()
    assert CheckpointStore(tmp_path, 3).best_metric == 0.9 and not caplog.records


def test_damaged_checkpoints_stay_out_of_a_new_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path)
    (tmp_path / "index.json").write_text("{")
    (tmp_path / "epoch_0005.ckpt").write_bytes(b"half")
    (tmp_path / "best.ckpt").write_bytes(b"")
    net = network()
    save_checkpoint(tmp_path / "epoch_0009.ckpt", net)  # whole, and says nothing of epoch and step
    store = CheckpointStore(tmp_path, 3)
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 4 and said[2].endswith("no checkpoint of a training; left out")
    assert any(line.endswith("made anew from 2 whole checkpoints") for line in said)
    newest = store.newest_valid()
    assert newest is not None and newest.about["epoch"] == 4 and store.best_metric is None


@pytest.mark.parametrize("name", ["epoch_0001.ckpt", "epoch_0006.ckpt", "best.ckpt"])
def test_a_folder_with_the_name_of_a_checkpoint_is_named(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path / name} is no file, but has the name of a checkpoint"):
        CheckpointStore(tmp_path, 3).tidy()
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_rates_go_on_from_the_same_epoch(steps: int, tmp_path: Path) -> None:
    """Saved after epoch 3 of 10 steps, one of which did not count because its gradients overflowed."""
    net = network()
    opt = optimizer(net)
    opt.global_step.set_data(ms.Tensor([29], ms.int32))
    TrainingState(net, opt, CheckpointStore(tmp_path, 3), World(), 10, {}).save(Progress(3))
    state = TrainingState(net, optimizer(net), CheckpointStore(tmp_path, 3), World(), steps, {})
    checkpoint = state.find("auto")
    assert checkpoint is not None and state.restore(checkpoint, {}) == Progress(3)
    assert state.optimizer.global_step.asnumpy().tolist() == [29 if steps == 10 else 3 * steps]


class Ranks:
    """A world of two in which the other rank has so many bad parameters."""

    def __init__(self, others: int) -> None:
        self.others = others

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values + self.others


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weight", "moment", "another rank"])
def test_what_is_not_finite_is_never_saved(where: str, bad: float, tmp_path: Path) -> None:
    net = nn.Dense(2, 3)
    opt = optimizer(net)
    world = World(0, 2, _sum=Ranks(int(where == "another rank")))
    state = TrainingState(net, opt, CheckpointStore(tmp_path, 3), world, 10, {})
    if where != "another rank":
        parameter = net.weight if where == "weight" else opt.moments[0]
        values = parameter.asnumpy().copy()
        values[0, 1] = bad
        parameter.set_data(ms.Tensor(values))
    name = {"weight": "1 of them, first weight", "moment": "1 of them, first moments.weight"}.get(where, where)
    with pytest.raises(NonFiniteState, match=rf"^parameters are NaN or infinite after step 20 \(.*{name}\)"):
        state.save(Progress(2), 0.5, best=True)
    assert not list(tmp_path.iterdir())
