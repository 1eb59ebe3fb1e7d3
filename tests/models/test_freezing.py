"""Parts that do not train, by name: what they hold, what a training leaves as it is, checkpoints and weights."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.build import build_model
from covpool.checkpoints import load_into
from covpool.checkpoints.format import load_network, load_optimizer, read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.models import create_model, freeze_parts
from covpool.training.recipe import recipe_optimizer
from tests.models.agreement import images

CONFIG = Config(net_name="resnet10", pooling="gcp", reduction_dim=8, class_num=3, base_width=4, drop_path_rate=0.5)
TOKENS = {"image_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 8}
STATE = ("moving_mean", "moving_variance", "counter")


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in network.get_parameters()}


def train(network: nn.Cell, optimizer: nn.Optimizer, steps: int = 2) -> None:
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), optimizer).set_train()
    for index in range(steps):
        step(ms.Tensor(images(32, 4, index)), ms.Tensor([0, 1, 2, 0], ms.int32))


@pytest.mark.parametrize(
    ("name", "args", "parts", "frozen"),
    [
        ("resnet10", {"base_width": 4}, ["stem"], ("conv1.", "bn1.")),
        ("resnet10", {"base_width": 4}, ["layer1", "layer3.0.conv1"], ("layer1.", "layer3.0.conv1.")),
        (
            "resnet10",
            {"base_width": 4},
            ["backbone", "pooling"],
            ("conv1.", "bn1.", "layer1", "layer2", "layer3", "layer4"),
        ),
        ("mobilenet_v2_100", {"width_mult": 0.1}, ["features.3"], ("features.3.",)),
        ("mobilenet_v2_100", {"width_mult": 0.1}, ["backbone"], ("features.",)),
        ("deit_tiny_patch16_224", TOKENS, ["blocks.0", "norm"], ("blocks.0.", "norm.")),
        (
            "deit_tiny_distilled_patch16_224",
            TOKENS,
            ["backbone"],
            ("cls_", "dist_", "pos_", "patch_", "blocks.", "norm."),
        ),
    ],
)
def test_parts_by_name(name, args, parts, frozen):
    cell = create_model(name, pooling="gcp", reduction_dim=4, num_classes=3, **args)
    before = [p.name for p in cell.trainable_params()]
    freeze_parts(cell, parts)
    assert [p.name for p in cell.trainable_params()] == [n for n in before if not n.startswith(frozen)] != before


@pytest.mark.parametrize("kind", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_a_training_leaves_them_to_the_bit(kind, tmp_path: Path):
    ms.set_context(mode=kind)
    cell = build_model(CONFIG.replace(freeze=["stem", "layer2"]))
    optimizer = recipe_optimizer(CONFIG, cell, np.full(8, 0.1, np.float32))
    assert not {p.name for p in optimizer.parameters if p.name.startswith(("conv1.", "bn1.", "layer2."))}
    before = values(cell)
    train(cell, optimizer)
    after = values(cell)
    still = {name for name in before if (before[name] == after[name]).all()}
    assert still == {name for name in before if name.startswith(("conv1.", "bn1.", "layer2."))}
    assert int(after["layer4.0.drop_path.counter"]) == 2 and int(after["layer2.0.drop_path.counter"]) == 0
    # A checkpoint holds all of it, and the training goes on from there.
    save_checkpoint(tmp_path / "x.ckpt", cell, optimizer)
    saved = read_checkpoint(tmp_path / "x.ckpt")
    assert saved.network.keys() == before.keys()
    again = build_model(CONFIG.replace(freeze=["stem", "layer2"]))
    other = recipe_optimizer(CONFIG, again, np.full(8, 0.1, np.float32))
    load_network(again, saved)
    load_optimizer(other, again, saved)
    train(cell, optimizer, 1)
    train(again, other, 1)
    first, second = values(cell), values(again)
    assert [name for name in first if (first[name] != second[name]).any()] == []


def test_weights_that_are_loaded_later_stay_frozen():
    cell = build_model(CONFIG.replace(freeze=["backbone"]))
    source = build_model(CONFIG.replace(seed=3))
    load_into(cell, {p.name: p for p in source.get_parameters()})
    assert (cell.conv1.weight.asnumpy() == source.conv1.weight.asnumpy()).all()
    assert {p.name.split(".")[0] for p in cell.trainable_params()} == {"layer_reduce", "layer_reduce_bn", "fc"}
    assert cell.bn1.use_batch_statistics is False and cell.layer_reduce_bn.use_batch_statistics is not False


def test_names_that_are_not_there():
    with pytest.raises(
        UserError, match=r"no part 'layer9' to freeze; there are stem, layer1, .*fc, backbone"
    ) as refused:
        build_model(CONFIG.replace(freeze=["layer1", "layer9"]))
    assert refused.value.exit_code == 2
    everything = ["backbone", "layer_reduce", "layer_reduce_bn", "fc"]
    with pytest.raises(UserError, match=r"with backbone, layer_reduce, .* frozen there is nothing left to train"):
        build_model(CONFIG.replace(freeze=everything))
    with pytest.raises(UserError, match="no part 'stem' to freeze"):
        build_model(Config(net_name="mobilenet_v2_100", freeze=["stem"]))
