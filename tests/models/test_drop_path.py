"""Stochastic depth and dropout before the classifier: rates of timm, draws, resume; activations computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.build import build_model
from covpool.checkpoints.format import load_network, read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.models import create_model, recompute
from covpool.pooling.counter_random import CounterUniform, DropPath
from covpool.runtime.distributed import World
from tests.models.agreement import images

TOKENS = {"image_size": 16, "embed_dim": 8, "num_heads": 2, "patch_size": 8}
SMALL: dict[str, dict[str, Any]] = {
    "resnet10": {"base_width": 4},
    "mobilenet_v2_100": {"width_mult": 0.1},
    "shufflenet_v2_x0_5": {},
    "deit_tiny_patch16_224": {**TOKENS, "depth": 3},
    "deit_small_dropcov": {"image_size": 16, "embed_dim": 8, "num_heads": 2, "depth": 3},
    "swin_tiny_patch4_window7_224": {
        **{"image_size": 16, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)},
        **{"window_size": 2, "patch_size": 4},
    },
}
PEERS = {
    "resnet10": lambda rate: timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (1, 1, 1, 1), drop_path_rate=rate
    ),
    "deit_tiny_patch16_224": lambda rate: timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=8, num_heads=2, depth=3, drop_path_rate=rate
    ),
    "swin_tiny_patch4_window7_224": lambda rate: timm.models.swin_transformer.SwinTransformer(
        img_size=16, patch_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=2, drop_path_rate=rate
    ),
}


def small(name: str, **args: Any) -> nn.Cell:
    ms.set_seed(1)
    return create_model(name, **{"pooling": "gap", "num_classes": 3, **SMALL[name], **args})


def paths(network: nn.Cell) -> dict[str, DropPath]:
    return {name: cell for name, cell in network.cells_and_names() if isinstance(cell, DropPath)}


def rates(network: nn.Cell) -> list[float]:
    return [cell.rate for cell in paths(network).values()]


@pytest.mark.parametrize("name", PEERS)
def test_rates_are_timms(name):
    modules = [module for module in PEERS[name](0.3).modules() if isinstance(module, timm.layers.DropPath)]
    theirs = [module.drop_prob for module in modules]
    expected = theirs if name == "resnet10" else theirs[::2]  # two of a block there, two draws of one cell here
    assert expected[-1] == pytest.approx(0.3)
    assert rates(small(name, drop_path_rate=0.3)) == pytest.approx(expected)


def test_only_shortcuts_of_mobilenet_drop():
    found = paths(small("mobilenet_v2_100", drop_path_rate=0.32))
    assert list(found) == [f"features.{i}.drop_path" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert [cell.rate for cell in found.values()] == pytest.approx([0.02 * (int(n.split(".")[1]) - 1) for n in found])


@pytest.mark.parametrize("name", SMALL)
def test_what_is_off_is_not_there(name):
    plain, off = small(name), small(name, drop_path_rate=0.0, drop_rate=None if name.startswith("mobile") else 0.0)
    assert [p.name for p in off.get_parameters()] == [p.name for p in plain.get_parameters()]
    assert [kind for _, kind in off.cells_and_names()] != [] and not paths(off)
    assert sum(isinstance(cell, CounterUniform) for _, cell in off.cells_and_names()) == int(name[:3] == "mob")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("shufflenet_v2_x0_5", {"drop_path_rate": 0.1}, "no blocks beside a shortcut"),
        ("resnet10", {"drop_path_rate": 1.0}, r"rate must be >= 0 and < 1, not 1\.0"),
        ("resnet10", {"drop_rate": -0.1}, "rate must be"),
        ("mobilenet_v2_100", {"drop_rate": 0.1, "dropout": 0.3}, "drop_rate and dropout"),
        ("deit_small_dropcov", {"drop_rate": 0.1, "pooling": "dropcov"}, "its own dropout"),
    ],
)
def test_what_cannot_be(name, args, message):
    with pytest.raises(ValueError, match=message):
        small(name, **args)


def test_dropout_before_the_classifier(pynative_mode):
    assert small("mobilenet_v2_100").dropout.rate == 0.2 and small("mobilenet_v2_100", drop_rate=0.0).dropout.rate == 0
    for name in ("resnet10", "deit_tiny_patch16_224"):
        cell = small(name, pooling="gcp", reduction_dim=4, drop_rate=0.5)
        x = ms.Tensor(images(32 if name == "resnet10" else 16, 4))
        assert cell.set_train(True)(x).shape == (4, 3)
        drawn = 1 if name == "resnet10" else 2  # token and vector
        assert int(cell.dropout.counter.asnumpy()) == drawn
        plain = small(name, pooling="gcp", reduction_dim=4).set_train(False)
        load_from(plain, cell)
        np.testing.assert_array_equal(cell.set_train(False)(x).asnumpy(), plain(x).asnumpy())
        cell.reset_classifier(0)
        assert cell.set_train(True)(x).shape[0] == 4 and int(cell.dropout.counter.asnumpy()) == drawn


def load_from(network: nn.Cell, other: nn.Cell) -> None:
    """Give a network the values that it shares with another one."""
    values = {p.name: p.asnumpy() for p in other.get_parameters()}
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(values[parameter.name]))


@pytest.mark.parametrize("length", [1, 5])
def test_whole_images_are_left_out(length, mode):
    cell = DropPath(0.2, seed=3).set_train()
    x = np.random.default_rng(0).standard_normal((600 * length, 7)).astype(np.float32)
    calls = []
    for _ in range(3):
        found = cell(ms.Tensor(x), length).asnumpy().reshape(600, -1)
        own = x.reshape(600, -1)
        there = (found != 0).all(1)
        assert ((found == 0).all(1) | there).all()
        np.testing.assert_allclose(found[there], own[there] / 0.8, rtol=1e-6)
        calls.append(there)
    assert (calls[0] != calls[1]).any() and (calls[1] != calls[2]).any()
    assert np.mean(calls) == pytest.approx(0.8, abs=0.03)  # three deviations
    np.testing.assert_array_equal(cell.set_train(False)(ms.Tensor(x), length).asnumpy(), x)
    assert int(cell.counter.asnumpy()) == 3


@pytest.mark.parametrize("name", ["resnet10", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_evaluation_is_that_of_the_network_without(name, pynative_mode):
    cell, plain = small(name, drop_path_rate=0.9), small(name)
    load_from(plain, cell)
    x = ms.Tensor(images(32 if name == "resnet10" else 16, 4))
    expected = plain.set_train(False)(x).asnumpy()
    np.testing.assert_array_equal(cell.set_train(False)(x).asnumpy(), expected)
    first, second = (cell.set_train(True)(x).asnumpy() for _ in range(2))
    assert (first != second).any() and all(int(path.counter.asnumpy()) > 0 for path in paths(cell).values())


CONFIG = Config(
    net_name="deit_tiny_patch16_224",
    pooling="gap",
    class_num=3,
    train_image_size=16,
    eval_image_size=16,
    model_args={key: value for key, value in SMALL["deit_tiny_patch16_224"].items() if key != "image_size"},
    drop_path_rate=0.6,
    drop_rate=0.3,
)


def test_draws_go_on_after_a_checkpoint(tmp_path: Path, mode):
    first, second = build_model(CONFIG), build_model(CONFIG)
    x = ms.Tensor(images(16, 8))
    outputs = [first.set_train(True)(x).asnumpy() for _ in range(2)]
    assert (outputs[0] != outputs[1]).any()
    save_checkpoint(tmp_path / "x.ckpt", first)
    load_network(second, read_checkpoint(tmp_path / "x.ckpt"))
    np.testing.assert_array_equal(second.set_train(True)(x).asnumpy(), first(x).asnumpy())


def test_a_checkpoint_of_another_rate_loads(tmp_path: Path):
    on, off = build_model(CONFIG), build_model(CONFIG.replace(drop_path_rate=0.0, drop_rate=None))
    for source, target in ((on, off), (off, on)):
        save_checkpoint(tmp_path / "x.ckpt", source)
        load_network(target, read_checkpoint(tmp_path / "x.ckpt"))
    np.testing.assert_array_equal(off.head.weight.asnumpy(), on.head.weight.asnumpy())
    saved = read_checkpoint(tmp_path / "x.ckpt")
    del saved.network["blocks.0.norm1.gamma"]
    with pytest.raises(UserError, match=r"missing in the checkpoint \(1\): blocks.0.norm1.gamma$"):
        load_network(on, saved)


def test_every_block_and_rank_draws_its_own():
    seeds = [
        [cell.seed for _, cell in build_model(CONFIG, World(rank, 2)).cells_and_names() if hasattr(cell, "seed")]
        for rank in (0, 1)
    ]
    assert len(seeds[0]) == 3 and len({*seeds[0], *seeds[1]}) == 6
    plain = small("resnet10", drop_path_rate=0.5)  # without a configuration, too
    assert len({cell.seed for cell in paths(plain).values()}) == len(paths(plain)) == 3


@pytest.mark.parametrize(
    "name",
    ["resnet10", "deit_tiny_patch16_224", pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.only_with_all)],
)
def test_recomputed_blocks_change_no_bit(name, graph_mode):
    """Losses, weights, statistics and draws of three steps."""
    args = {} if name[0] == "s" else {"drop_path_rate": 0.5}
    results = []
    for again in (False, True):
        cell = small(name, **args)
        if again:
            recompute(cell)
        optimizer = nn.Momentum(cell.trainable_params(), learning_rate=0.01, momentum=0.9)
        step = nn.TrainOneStepCell(nn.WithLossCell(cell, nn.CrossEntropyLoss()), optimizer).set_train()
        size = 16 if name[0] == "d" else 32
        losses = [step(ms.Tensor(images(size, 4, i)), ms.Tensor([0, 1, 2, 0], ms.int32)).asnumpy() for i in range(3)]
        results.append({"losses": np.array(losses), **{p.name: p.asnumpy() for p in cell.get_parameters()}})
    assert results[0].keys() == results[1].keys()
    assert [key for key, value in results[0].items() if (value != results[1][key]).any()] == []


def test_networks_that_cannot():
    with pytest.raises(ValueError, match="no blocks whose activations"):
        recompute(nn.Dense(2, 2))
    with pytest.raises(UserError, match="drop_path_rate: this network has no blocks") as refused:
        build_model(Config(net_name="shufflenet_v2_x0_5", drop_path_rate=0.1))
    assert refused.value.exit_code == 2
    recomputed = build_model(CONFIG.replace(recompute=True))
    assert [name for name, cell in recomputed.cells_and_names() if cell.get_flags().get("output_no_recompute")] == [
        f"blocks.{index}" for index in range(3)
    ]
