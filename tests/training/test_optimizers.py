"""Which parameters decay, and the update against its formula in float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.models import create_model
from covpool.training.optimizers import build_optimizer, parameter_groups


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


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimiser 'adam'; one of momentum, sgd"):
        build_optimizer([], np.ones(1, np.float32), kind="adam")
