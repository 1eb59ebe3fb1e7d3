"""The losses against their definition in float64, PyTorch and timm."""

from __future__ import annotations

from typing import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn
from torch.nn import functional as F

from benchmarks.torch_peers import timm
from covpool.config import Config
from covpool.errors import ConfigError
from covpool.training.losses import (
    BinaryCrossEntropy,
    CountedLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    recipe_loss,
)


def reference(logits: np.ndarray, labels: np.ndarray, eps: float) -> tuple[float, np.ndarray]:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    n, k = logits.shape
    target = np.full((n, k), eps / k)
    target[np.arange(n), labels] += 1 - eps
    return float(-(target * log_p).sum(1).mean()), (np.exp(log_p) - target) / n


def given(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels, distributions and weights; one logit is 0, where a kink would be."""
    rng = np.random.default_rng(classes)
    logits = (5 * rng.standard_normal((7, classes))).astype(np.float32)
    logits[0, 0] = 0.0
    labels = rng.integers(0, classes, 7).astype(np.int32)
    mixed = rng.dirichlet(np.ones(classes), 7).astype(np.float32)
    return logits, labels, mixed, rng.uniform(0.1, 2.0, classes).astype(np.float32)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_value_and_gradient(mode: str, eps: float, classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((7, classes))).astype(np.float32)
    labels = rng.integers(0, classes, 7).astype(np.int32)
    loss = LabelSmoothingCrossEntropy(eps)
    value, gradient = ms.value_and_grad(loss, 0)(ms.Tensor(logits), ms.Tensor(labels))
    expected, expected_gradient = reference(logits, labels, eps)
    np.testing.assert_allclose(value.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), expected_gradient, atol=2e-7)


def focal(logits: torch.Tensor, targets: torch.Tensor, gamma: float, eps: float) -> torch.Tensor:
    """The definition: of labels smoothed, of distributions summed over classes."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1]) * (1 - eps) + eps / logits.shape[1]
    p = logits.softmax(1)
    return -(targets * (1 - p) ** gamma * p.log()).sum(1).mean()


def agrees(loss: nn.Cell, expected: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], targets: np.ndarray) -> None:
    """Value and gradient are those of PyTorch in float64, within 1e-5 of the largest."""
    logits = given(targets.shape[1] if targets.ndim == 2 else 10)[0]
    precise = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = expected(precise, torch.tensor(targets.astype(np.float64 if targets.ndim == 2 else np.int64)))
    value.backward()
    found, gradient = ms.value_and_grad(loss, 0)(ms.Tensor(logits), ms.Tensor(targets))
    np.testing.assert_allclose(found.asnumpy(), value.item(), rtol=1e-5)
    largest = precise.grad.abs().max().item()
    np.testing.assert_allclose(gradient.asnumpy(), precise.grad.numpy(), atol=1e-5 * largest)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", ["labels", "mixed"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_losses_are_those_of_pytorch_and_timm(mode: str, eps: float, targets: str, weighted: bool) -> None:
    """Distributions come smoothed: neither PyTorch's nor timm's loss smooths them again here."""
    _, labels, mixed, weights = given(10)
    known = labels if targets == "labels" else mixed
    own = weights if weighted else None
    theirs = torch.tensor(weights, dtype=torch.float64) if weighted else None
    entropy = torch.nn.CrossEntropyLoss(weight=theirs, label_smoothing=eps if targets == "labels" else 0.0)
    agrees(LabelSmoothingCrossEntropy(eps, own), entropy, known)
    agrees(FocalLoss(0.0, eps, own), entropy, known)
    agrees(BinaryCrossEntropy(eps, own), timm.loss.BinaryCrossEntropy(eps, weight=theirs), known)
    if targets == "mixed" and not weighted:
        agrees(LabelSmoothingCrossEntropy(eps), timm.loss.SoftTargetCrossEntropy(), known)


@pytest.mark.parametrize("targets", ["labels", "mixed"])
@pytest.mark.parametrize(("gamma", "eps"), [(0.5, 0.0), (2.0, 0.0), (2.0, 0.1), (5.0, 0.0)])
def test_focal_loss_is_its_definition(mode: str, gamma: float, eps: float, targets: str) -> None:
    known = given(10)[1 if targets == "labels" else 2]
    agrees(FocalLoss(gamma, eps), lambda logits, t: focal(logits, t, gamma, eps), known)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 100.0])
def test_focal_loss_of_certain_answers_is_finite(mode: str, gamma: float) -> None:
    """1 - p is exactly 0 or 1 there; a right answer costs nothing, a wrong one its logit."""
    logits = ms.Tensor(np.array([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]], np.float32))
    value, gradient = ms.value_and_grad(FocalLoss(gamma), 0)(logits, ms.Tensor([0, 0], ms.int32))
    np.testing.assert_allclose(value.asnumpy(), 50.0)
    np.testing.assert_allclose(gradient.asnumpy(), [[0.0, 0.0, 0.0], [-0.5, 0.5, 0.0]], atol=1e-12)


@pytest.mark.parametrize("loss", [LabelSmoothingCrossEntropy(0.1), BinaryCrossEntropy(0.1), FocalLoss(2.0, 0.1)])
def test_half_precision_logits_are_summed_in_float32(graph_mode: None, loss: nn.Cell) -> None:
    logits, labels = np.array([[30000.0, -30000.0, 0.0]], np.float16), ms.Tensor([0], ms.int32)
    value = loss(ms.Tensor(logits), labels)
    assert value.dtype == ms.float32
    assert value.asnumpy() == loss(ms.Tensor(logits.astype(np.float32)), labels).asnumpy()
    if isinstance(loss, LabelSmoothingCrossEntropy):
        np.testing.assert_allclose(value.asnumpy(), reference(logits, np.array([0]), 0.1)[0], rtol=1e-5)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), not 1"):
        LabelSmoothingCrossEntropy(1.0)
    with pytest.raises(ValueError, match="gamma must be 0 or more, not -1"):
        FocalLoss(-1.0)


@pytest.mark.parametrize(
    ("keys", "kind", "smoothing"),
    [
        ({}, LabelSmoothingCrossEntropy, 0.1),
        ({"use_label_smooth": False}, LabelSmoothingCrossEntropy, 0.0),
        ({"loss": "bce", "label_smooth_factor": 0.2}, BinaryCrossEntropy, 0.2),
        ({"loss": "focal", "focal_gamma": 1.5, "class_weights": [1.0, 3.0], "class_num": 2}, FocalLoss, 0.1),
    ],
)
def test_the_configured_loss(keys: dict, kind: type[nn.Cell], smoothing: float) -> None:
    loss = recipe_loss(Config(**keys))
    assert type(loss) is kind and loss.label_smoothing == smoothing
    assert loss.weighted == ("class_weights" in keys)
    if kind is FocalLoss:
        assert loss.gamma == 1.5 and loss.class_weights.asnumpy().tolist() == [1.0, 3.0]


def test_weights_are_counted_once_the_classes_are_known() -> None:
    counted = Config(class_weights=[1.0, 2.0], class_num="auto")
    assert counted.replace(class_num=2).class_weights == (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"class_weights: 2 numbers for class_num = 10 classes"):
        counted.replace(class_num=10)


def test_right_answers_are_counted_and_the_loss_stays_as_it_is(graph_mode: None) -> None:
    """Once a step, though a step has the loss and its gradient."""
    random = np.random.default_rng(5)
    layer, plain, counted = (
        nn.Dense(6, 3),
        LabelSmoothingCrossEntropy(0.1),
        CountedLoss(LabelSmoothingCrossEntropy(0.1)),
    )
    optimizer = nn.SGD(layer.trainable_params(), 0.0)
    step = nn.TrainOneStepCell(nn.WithLossCell(layer, counted), optimizer).set_train()
    expected = 0
    for _ in range(3):
        x = ms.Tensor(random.standard_normal((20, 6), np.float32))
        labels = random.integers(0, 3, 20).astype(np.int32)
        logits = layer(x)
        expected += int((logits.asnumpy().argmax(1) == labels).sum())
        assert step(x, ms.Tensor(labels)).asnumpy() == plain(logits, ms.Tensor(labels)).asnumpy()
        assert counted.hits.asnumpy() == expected
    assert 0 < expected < 60
