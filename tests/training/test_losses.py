"""The loss against its definition in float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from covpool.training.losses import LabelSmoothingCrossEntropy


def reference(logits: np.ndarray, labels: np.ndarray, eps: float) -> tuple[float, np.ndarray]:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    n, k = logits.shape
    target = np.full((n, k), eps / k)
    target[np.arange(n), labels] += 1 - eps
    return float(-(target * log_p).sum(1).mean()), (np.exp(log_p) - target) / n


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


def test_half_precision_logits_are_summed_in_float32(graph_mode: None) -> None:
    logits = np.array([[30000.0, -30000.0, 0.0]], np.float16)
    value = LabelSmoothingCrossEntropy(0.1)(ms.Tensor(logits), ms.Tensor([0], ms.int32))
    assert value.dtype == ms.float32
    np.testing.assert_allclose(value.asnumpy(), reference(logits, np.array([0]), 0.1)[0], rtol=1e-5)


def test_smoothing_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), not 1"):
        LabelSmoothingCrossEntropy(1.0)
