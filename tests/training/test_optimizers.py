"""Which parameters decay, and the updates against formulas in float64, PyTorch and timm."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.checkpoints import load_into
from covpool.checkpoints.format import load_optimizer, read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.models import create_model
from covpool.training.optimizers import build_optimizer, parameter_groups
from covpool.training.recipe import recipe_optimizer

SHAPES = {"conv.weight": (5, 3, 3, 3), "conv.bias": (5,), "fc.weight": (40, 30)}
FACTORS = {"conv.weight": 0.5, "conv.bias": 0.5, "fc.weight": 3.0}


def test_beta_gamma_and_bias_do_not_decay() -> None:
    network = create_model("resnet10", base_width=8, num_classes=4)
    decayed, plain, _ = parameter_groups(list(network.trainable_params()), 1e-4)
    assert decayed["weight_decay"] == 1e-4 and plain["weight_decay"] == 0
    assert {p.name.rsplit(".", 1)[1] for p in plain["params"]} == {"gamma", "beta", "bias"}
    assert {p.name.rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}
    assert len(decayed["params"]) + len(plain["params"]) == len(network.trainable_params())
    every, _ = parameter_groups(list(network.trainable_params()), 1e-4, decay_all=True)
    assert every["weight_decay"] == 1e-4 and len(every["params"]) == len(network.trainable_params())


@pytest.mark.parametrize(
    ("kind", "nesterov", "made"),
    [("momentum", False, nn.Momentum), ("sgd", False, nn.SGD), ("momentum", True, nn.SGD), ("sgd", True, nn.SGD)],
)
def test_momentum_as_in_pytorch(graph_mode: None, kind: str, nesterov: bool, made: type) -> None:
    rng = np.random.default_rng(1)
    start, bias = rng.standard_normal((3, 4)), rng.standard_normal(3)
    rates = np.array([0.1, 0.05, 0.02, 0.01], np.float32)
    layer = nn.Dense(4, 3, weight_init=ms.Tensor(start, ms.float32), bias_init=ms.Tensor(bias, ms.float32))
    optimizer = build_optimizer(
        list(layer.trainable_params()), rates, kind=kind, momentum=0.9, nesterov=nesterov, weight_decay=0.01
    )
    assert type(optimizer) is made
    expected = [start, bias]
    velocity = [np.zeros_like(start), np.zeros_like(bias)]
    for rate in rates.astype(np.float64):
        gradients = [rng.standard_normal(start.shape), rng.standard_normal(bias.shape)]
        optimizer(tuple(ms.Tensor(g, ms.float32) for g in gradients))
        for i, decay in enumerate((0.01, 0.0)):
            gradient = gradients[i] + decay * expected[i]
            velocity[i] = 0.9 * velocity[i] + gradient
            step = gradient + 0.9 * velocity[i] if nesterov else velocity[i]
            expected[i] = expected[i] - rate * step
    np.testing.assert_allclose(layer.weight.asnumpy(), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.bias.asnumpy(), expected[1], rtol=1e-5, atol=1e-6)


class Weights(nn.Cell):
    """Parameters alone, of different shapes."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        rng = np.random.default_rng(0)
        for name, shape in SHAPES.items():
            value = ms.Tensor(0.3 * rng.standard_normal(shape), ms.float32)
            self.insert_param_to_cell(name.replace(".", "_"), ms.Parameter(value, name))


@pytest.mark.parametrize(
    ("kind", "peer", "arguments"),
    [
        ("momentum", torch.optim.SGD, {"momentum": 0.9}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("adamw", torch.optim.AdamW, {}),
        ("adamw", torch.optim.AdamW, {"betas": (0.0, 0.95), "eps": 1e-3}),
        ("lamb", timm.optim.Lamb, {}),
        ("lion", timm.optim.Lion, {}),
    ],
)
def test_steps_of_groups_as_in_pytorch_and_timm(graph_mode: None, kind: str, peer: type, arguments: dict) -> None:
    """20 steps, with gradients of a size from 1e-6 to 100, rates that change, three groups and a loss scale."""
    rates, scale = np.linspace(1e-3, 2e-2, 20).astype(np.float32), 1000.0
    cell = Weights()
    ours = list(cell.trainable_params())
    optimizer = build_optimizer(
        ours, rates, kind=kind, weight_decay=0.05, factors=FACTORS, loss_scale=scale, **arguments
    )
    theirs = [torch.nn.Parameter(torch.tensor(p.asnumpy())) for p in ours]
    decays = [0.05 if p.ndim > 1 else 0.0 for p in theirs]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(theirs, decays)]
    expected = peer(groups, lr=1e-3, **arguments)
    rng = np.random.default_rng(1)
    for rate in rates.tolist():
        gradients = [(rng.standard_normal(p.shape) * 10 ** rng.uniform(-6, 2)).astype(np.float32) for p in ours]
        for group, parameter, gradient, factor in zip(expected.param_groups, theirs, gradients, FACTORS.values()):
            group["lr"], parameter.grad = rate * factor, torch.tensor(gradient)
        expected.step()
        optimizer(tuple(ms.Tensor(gradient * np.float32(scale)) for gradient in gradients))
    for mine, other in zip(ours, theirs):
        other = other.detach().numpy()
        assert np.abs(mine.asnumpy() - other).max() <= 2e-6 * np.abs(other).max(), mine.name


def test_one_rate_for_all_needs_no_rates_of_groups() -> None:
    parameters, rates = list(Weights().trainable_params()), np.ones(2, np.float32)
    assert not any("lr" in group for group in parameter_groups(parameters, 0.1, False, rates))
    one = build_optimizer(parameters, rates)
    assert not one.is_group_lr and one.learning_rate.learning_rate.name == "learning_rate"
    several = parameter_groups(parameters, 0.1, False, rates, FACTORS)
    np.testing.assert_array_equal(several[0]["lr"].asnumpy(), rates * 3)
    assert [p.name for p in several[-1]["order_params"]] == list(SHAPES)


def network() -> nn.Cell:
    ms.set_seed(5)
    return nn.SequentialCell(nn.Dense(6, 8), nn.ReLU(), nn.Dense(8, 3))


def train(cell: nn.Cell, optimizer: nn.Optimizer, steps: range) -> None:
    step = nn.TrainOneStepCell(nn.WithLossCell(cell, nn.MSELoss()), optimizer).set_train()
    for index in steps:
        rng = np.random.default_rng(index)
        step(ms.Tensor(rng.standard_normal((4, 6)), ms.float32), ms.Tensor(rng.standard_normal((4, 3)), ms.float32))


def optimizer_of(cell: nn.Cell, kind: str, grouped: bool = True) -> nn.Optimizer:
    factors = {p.name: 5.0 if p.name.startswith("2.") else 1.0 for p in cell.get_parameters()} if grouped else None
    rates = np.linspace(0.01, 0.1, 6).astype(np.float32)
    return build_optimizer(list(cell.trainable_params()), rates, kind=kind, weight_decay=0.1, factors=factors)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_a_resumed_training_goes_on_to_the_same_bits(graph_mode: None, tmp_path: Path, kind: str) -> None:
    whole, resumed = network(), network()
    whole_optimizer, optimizer = optimizer_of(whole, kind), optimizer_of(resumed, kind)
    train(whole, whole_optimizer, range(3))
    save_checkpoint(tmp_path / "a.ckpt", whole, whole_optimizer)
    train(whole, whole_optimizer, range(3, 6))

    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert not any("rate" in name for name in checkpoint.optimizer)
    load_into(resumed, checkpoint.network)
    load_optimizer(optimizer, resumed, checkpoint)
    train(resumed, optimizer, range(3, 6))
    for one, two in ((whole, resumed), (whole_optimizer, optimizer)):
        mine, theirs = (sorted(cell.get_parameters(), key=lambda p: p.name) for cell in (one, two))
        assert [p.name for p in mine] == [p.name for p in theirs]
        assert all(a.asnumpy().tobytes() == b.asnumpy().tobytes() for a, b in zip(mine, theirs))
    assert int(optimizer.global_step.asnumpy()[0]) == 6

    load_optimizer(optimizer_of(resumed, kind, grouped=False), resumed, checkpoint)  # rates are settings
    other = {"adamw": "lamb", "lion": "momentum"}[kind]
    with pytest.raises(UserError, match="holds the state of another optimiser"):
        load_optimizer(optimizer_of(resumed, other), resumed, checkpoint)


def test_the_configured_optimizer(graph_mode: None) -> None:
    cell, rates = create_model("resnet10", base_width=2, num_classes=2), np.array([0.1, 0.05], np.float32)
    config = Config(net_name="resnet10", optimizer="adamw", betas=(0.8, 0.9), eps=1e-5, weight_decay=0.2)
    optimizer = recipe_optimizer(config.replace(layer_decay=0.5, head_lr_factor=10.0), cell, rates)
    assert (type(optimizer).__name__, optimizer.beta1, optimizer.beta2, optimizer.eps) == ("AdamW", 0.8, 0.9, 1e-5)
    assert set(optimizer.decays) == {0.0, 0.2}
    for parameter, factor in ((cell.conv1.weight, 0.5**5), (cell.layer4[0].bn2.beta, 0.5), (cell.fc.weight, 10)):
        np.testing.assert_allclose(optimizer.get_lr_parameter(parameter).asnumpy(), rates * factor, rtol=1e-6)
    assert not recipe_optimizer(config, cell, rates).is_group_lr


@pytest.mark.parametrize("key", ["layer_decay", "head_lr_factor"])
def test_a_network_of_unknown_names_has_one_rate(key: str) -> None:
    config = Config(net_name="own").replace(**{key: 0.5})
    with pytest.raises(UserError, match=f"own: {key} needs") as caught:
        recipe_optimizer(config, nn.Dense(2, 2), np.ones(2, np.float32))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "adam"}, "unknown optimiser 'adam'; one of momentum, sgd, adamw, lamb, lion"),
        ({"kind": "momentum", "betas": (0.9, 0.9)}, "momentum has no betas"),
        ({"kind": "lion", "eps": 1e-8}, "lion has no eps"),
    ],
)
def test_what_an_optimizer_does_not_know_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer([], np.ones(1, np.float32), **arguments)
