"""Networks with poolings: one training step in both modes, export, the exported file against the network."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.export import export_network, open_exported
from covpool.models import create_model, list_models
from covpool.pooling import list_poolings

DEEP = ("resnet101", "resnet152")  # each of these takes half a minute
# Networks by the beginning of their names, and what makes them small. Widths and depths of the others are arguments.
SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"base_width": 4},
    "mobilenet_v2_100": {"width_mult": 0.1, "stem": "small"},
    "shufflenet_v2_x0_5": {"stem": "small"},
    "deit_tiny_patch16": {"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8},
    "deit_small_dropcov": {"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "heads": 2, "head_dim": 3},
    "swin_tiny_patch4": {"image_size": 32, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 2},
}
# What always runs; the other pairs with --all. tests/pooling has every pooling in both modes, tests/export every
# pooling as a file, test_reference_logits.py networks of full size.
ALWAYS = {
    *(("resnet10", pooling) for pooling in ("gap", "gcp", "dropcov", "fast_mpn")),
    *(("resnet50", "dropcov"), ("mobilenet_v2_100", "fast_mpn")),
    *(("shufflenet_v2_x0_5", "dropcov"), ("deit_tiny_patch16_224", "dropcov")),
}
# What a covariance or a normalisation after it takes away again, so that its gradient is rounding: a shift before a
# linear layer, a scale before ReLU and a depthwise convolution.
UNSEEN = (
    *("layer_reduce_norm.beta", "layer_reduce.bias"),
    *("conv.2.beta", "conv.3.beta", "conv.0.1.gamma", "branch1.1.beta", "branch2.4.beta", "branch2.1.gamma"),
)


def small(name: str) -> dict[str, Any] | None:
    return next((arguments for start, arguments in SMALL.items() if name.startswith(start)), None)


def pairs() -> list[Any]:
    marks = pytest.mark.only_with_all
    return [
        pair if pair in ALWAYS else pytest.param(*pair, marks=marks)
        for pair in product([name for name in list_models() if small(name) is not None], list_poolings())
    ]


def build(name: str, pooling: str) -> nn.Cell:
    ms.set_seed(1)
    network = create_model(name, pooling=pooling, reduction_dim=8, num_classes=3, **small(name))
    for parameter in network.get_parameters() if name in DEEP else ():
        if parameter.name.endswith("bn3.gamma"):  # a hundred branches at full size overflow in evaluation
            parameter.set_data(ms.Tensor(np.full(parameter.shape, 0.2, np.float32)))
    return network


def one_step(network: nn.Cell, images: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Loss, and what one step of SGD with momentum changes in the weights."""
    before = {p.name: p.asnumpy().copy() for p in network.trainable_params()}
    optimizer = nn.Momentum(network.trainable_params(), learning_rate=0.01, momentum=0.9)
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), optimizer)
    step.set_train()
    loss = step(ms.Tensor(images), ms.Tensor(np.arange(len(images)) % 3, ms.int32))
    return float(loss.asnumpy()), {p.name: p.asnumpy() - before[p.name] for p in network.trainable_params()}


@pytest.mark.parametrize("pooling", sorted(set(list_poolings()) - {pooling for _, pooling in ALWAYS}))
def test_a_step_moves_every_weight(pooling: str) -> None:
    """The poolings that the other test leaves to --all, in the mode that compiles nothing."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    loss, changes = one_step(build("resnet10", pooling), images)
    assert np.isfinite(loss)
    assert [key for key, change in changes.items() if not (np.isfinite(change).all() and change.any())] == []


@pytest.mark.parametrize(("name", "pooling"), pairs())
def test_train_export_reload(name: str, pooling: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    losses, changes = {}, {}
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE):
        ms.set_context(mode=mode)
        network = build(name, pooling)
        losses[mode], changes[mode] = one_step(network, images)
    # The signed root magnifies the rounding of entries near 0, and 152 layers of 4 channels more so on the way to the
    # stem: there only the classifier's gradient says something.
    rough = name == "resnet152" and pooling.startswith("ibcnn")
    assert losses[ms.GRAPH_MODE] == pytest.approx(losses[ms.PYNATIVE_MODE], rel=1e-4)
    for key, graph in changes[ms.GRAPH_MODE].items():
        if key.endswith(UNSEEN):
            continue
        pynative = changes[ms.PYNATIVE_MODE][key]
        assert np.isfinite(graph).all() and graph.any(), f"{key} did not move"
        if not rough or key.startswith("fc."):
            assert np.abs(graph - pynative).max() <= 0.05 * np.abs(pynative).max(), key
    network.set_train(False)
    exported = open_exported(export_network(network, tmp_path / "net", "MINDIR", images, {}).path)
    expected = network(ms.Tensor(images)).asnumpy()
    for size in (len(images), 1):
        assert np.abs(exported(images[:size]) - expected[:size]).max() < 1e-4 * np.abs(expected).max()
