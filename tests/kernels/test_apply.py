"""A network with compiled kernels: same parameters, same training; and what is said when that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.errors import UserError
from covpool.kernels import apply_cpu_kernels, find_kernels
from covpool.models import create_model
from covpool.training.optimizers import build_optimizer


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """The user's cache folder is one where the kernels lie compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(library.parent.parent))


def train(choice: str) -> tuple[list[float], nn.Cell]:
    ms.set_seed(0)
    network = create_model("resnet10", pooling="gcp", reduction_dim=32, num_classes=4, stem="small", base_width=32)
    apply_cpu_kernels(network, find_kernels(choice))
    optimizer = build_optimizer(list(network.trainable_params()), np.full(3, 0.05, np.float32))
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), optimizer)
    step.set_train()
    rng = np.random.default_rng(0)
    x, y = ms.Tensor(rng.standard_normal((4, 3, 16, 16)).astype(np.float32)), ms.Tensor(np.arange(4, dtype=np.int32))
    return [float(step(x, y).asnumpy()) for _ in range(3)], network


def test_trains_alike(cache: None, graph_mode: None) -> None:
    (own, network), (compiled, other) = train("mindspore"), train("compiled")
    np.testing.assert_allclose(compiled, own, rtol=2e-3)
    assert [p.name for p in network.get_parameters()] == [p.name for p in other.get_parameters()]
    assert [p.name for p in network.trainable_params()] == [p.name for p in other.trainable_params()]
    for a, b in zip(network.get_parameters(), other.get_parameters()):
        np.testing.assert_allclose(b.asnumpy(), a.asnumpy(), rtol=0.02, atol=0.02, err_msg=a.name)


def test_what_is_replaced(cache: None) -> None:
    network = create_model("resnet18", pooling="dropcov", reduction_dim=32, num_classes=4, base_width=32)
    before = [p.name for p in network.get_parameters()]
    assert apply_cpu_kernels(network, None) == 0
    # The first, 3x3 of stride 1, norms, pooling.
    assert apply_cpu_kernels(network, find_kernels("compiled")) == 1 + 14 + 21 + 2
    assert [p.name for p in network.get_parameters()] == before
    assert apply_cpu_kernels(network, find_kernels("compiled")) == 0  # nothing is left to replace


@pytest.mark.parametrize(("name", "depthwise", "norms"), [("mobilenet_v2_100", 17, 52), ("shufflenet_v2_x1_0", 19, 56)])
def test_depthwise_convolutions_are_replaced(cache: None, name: str, depthwise: int, norms: int) -> None:
    network = create_model(name, pooling="gap", num_classes=4)
    before = [p.name for p in network.get_parameters()]
    assert apply_cpu_kernels(network, find_kernels("compiled")) == depthwise + norms
    assert [p.name for p in network.get_parameters()] == before
    assert not [c for _, c in network.cells_and_names() if isinstance(c, nn.Conv2d) and c.group > 1]


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="auto, compiled, mindspore, not 'fast'"):
        find_kernels("fast")


def test_without_a_compiler_auto_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert find_kernels("auto") is None
    assert "MindSpore's own CPU kernels are used" in caplog.text and "'no-such-compiler' does not run" in caplog.text
    with pytest.raises(UserError, match="need a C\\+\\+ compiler"):
        find_kernels("compiled")


def test_auto_is_compiled(cache: None) -> None:
    assert find_kernels("auto") == find_kernels("compiled") is not None


class Scaled(nn.Conv2d):
    """A convolution of another kind."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return 2 * super().construct(x)


def test_subclasses_are_left_alone_and_attributes_stay(cache: None) -> None:
    pair = nn.SequentialCell(
        Scaled(32, 32, 3, pad_mode="pad", padding=1), nn.Conv2d(32, 32, 3, pad_mode="pad", padding=1)
    )
    assert apply_cpu_kernels(pair, find_kernels("compiled")) == 1
    assert type(pair[0]) is Scaled and (pair[1].kernel_size, pair[1].out_channels) == ((3, 3), 32)


def test_a_library_that_cannot_be_loaded(cache: None, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """As on a file system without exec."""

    def refused(path: str) -> None:
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr("ctypes.CDLL", refused)
    assert find_kernels("auto") is None and "failed to map segment" in caplog.text
    with pytest.raises(UserError, match="set XDG_CACHE_HOME: failed to map segment"):
        find_kernels("compiled")
