"""Losses of logits and targets, averaged over the batch, in float32 at every precision level."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from covpool.config import Config

# Below it 1 - p is no longer resolved in float32; its power has a finite derivative here.
_SMALLEST = 1e-12


def recipe_loss(config: Config) -> nn.Cell:
    """The configured loss of logits (N, K) and targets: labels (N,), or distributions (N, K) as mixing makes them."""
    smoothing, weights = smoothing_of(config), config.class_weights
    if config.loss == "bce":
        return BinaryCrossEntropy(smoothing, weights)
    if config.loss == "focal":
        return FocalLoss(config.focal_gamma, smoothing, weights)
    return LabelSmoothingCrossEntropy(smoothing, weights)


class CountedLoss(nn.Cell):
    """A loss of logits (N, K) and labels (N,) that counts right answers on the way.

    Attributes:
        hits: int32 parameter, how many there were so far; it wraps around.

    Args:
        loss: The loss, which stays as it is.
    """

    def __init__(self, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.hits = ms.Parameter(ms.Tensor(0, ms.int32), name="hits", requires_grad=False)
        self.answer = ops.Argmax(axis=1, output_type=ms.int32)

    def construct(self, logits: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        right = ops.cast(ops.equal(self.answer(logits), labels), ms.float32).sum()
        ops.assign_add(self.hits, ops.cast(right, ms.int32))
        return self.loss(logits, labels)


def smoothing_of(config: Config) -> float:
    """The configured label smoothing; 0 for none."""
    return config.label_smooth_factor if config.use_label_smooth else 0.0


class _Loss(nn.Cell):
    """What the losses share: targets as distributions, and weights of classes."""

    def __init__(self, label_smoothing: float, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        self.label_smoothing = float(label_smoothing)
        self.weighted = class_weights is not None
        self.class_weights = ms.Tensor(np.asarray([1.0] if class_weights is None else class_weights, np.float32))
        self.one_hot = ops.OneHot()
        self.log_softmax = ops.LogSoftmax()

    def distribution(self, targets: ms.Tensor, classes: int) -> ms.Tensor:
        """Labels (N,), smoothed, or distributions (N, K), as they are, to float32 (N, K)."""
        if targets.ndim == 2:
            return ops.cast(targets, ms.float32)
        low = self.label_smoothing / classes
        on = ops.cast(1.0 - self.label_smoothing + low, ms.float32)
        return self.one_hot(targets, classes, on, ops.cast(low, ms.float32))

    def mean(self, losses: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        """Losses of every class (N, K), and the targets, to PyTorch's mean: with labels by the weights of theirs."""
        if not self.weighted:
            return losses.sum() / losses.shape[0]
        total = (losses * self.class_weights).sum()
        if targets.ndim == 2:
            return total / losses.shape[0]
        return total / ops.maximum(ops.gather(self.class_weights, targets, 0).sum(), _SMALLEST)  # weights may be 0


class LabelSmoothingCrossEntropy(_Loss):
    """Softmax cross entropy with label smoothing, of labels (N,) or distributions (N, K).

    The target distribution of a label is ``(1 - eps) * onehot + eps / K`` on all K classes (Szegedy et al., CVPR 2016,
    section 7; also PyTorch's form). The public MindSpore ports spread eps over the K - 1 wrong classes instead.
    Distributions are taken as they are.

    Args:
        label_smoothing: eps in [0, 1).
        class_weights: Weight of each class, as in PyTorch: the mean over labels is divided by the weights of theirs,
            that over distributions by N.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing, class_weights)
        self.cross_entropy = ops.SoftmaxCrossEntropyWithLogits()

    def construct(self, logits: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        """Logits (N, K) and targets to the mean loss, a float32 scalar."""
        logits = ops.cast(logits, ms.float32)
        distribution = self.distribution(targets, logits.shape[1])
        if targets.ndim == 2 or self.weighted:
            return self.mean(-distribution * self.log_softmax(logits), targets)
        loss, _ = self.cross_entropy(logits, distribution)
        return ops.mean(loss)


class BinaryCrossEntropy(_Loss):
    """The sigmoid of every class against its target, averaged over images and classes, as timm has it.

    Args:
        label_smoothing: eps in [0, 1): the target of a label is ``(1 - eps) * onehot + eps / K``.
        class_weights: Factor of each class.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing, class_weights)
        self.cross_entropy = ops.SigmoidCrossEntropyWithLogits()

    def construct(self, logits: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        """Logits (N, K) and targets to the mean loss, a float32 scalar."""
        logits = ops.cast(logits, ms.float32)
        losses = self.cross_entropy(logits, self.distribution(targets, logits.shape[1]))
        if self.weighted:
            losses = losses * self.class_weights
        return losses.sum() / losses.size


class FocalLoss(_Loss):
    """``-t (1 - p)^gamma log p``, summed over classes, of the softmax p (Lin et al., ICCV 2017, equation 4).

    With gamma 0 it is the cross entropy.

    Args:
        gamma: 0 or more.
        label_smoothing: eps in [0, 1): the target of a label is ``(1 - eps) * onehot + eps / K``.
        class_weights: Weight of each class, as in the cross entropy.
    """

    def __init__(
        self, gamma: float = 2.0, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(label_smoothing, class_weights)
        if gamma < 0:
            raise ValueError(f"gamma must be 0 or more, not {gamma}")
        self.gamma = float(gamma)

    def construct(self, logits: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        """Logits (N, K) and targets to the mean loss, a float32 scalar."""
        logits = ops.cast(logits, ms.float32)
        log_p = self.log_softmax(logits)
        losses = -self.distribution(targets, logits.shape[1]) * log_p
        if self.gamma != 0:
            losses = losses * ops.pow(ops.maximum(1.0 - ops.exp(log_p), _SMALLEST), self.gamma)
        return self.mean(losses, targets)
