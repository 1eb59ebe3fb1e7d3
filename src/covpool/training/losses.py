"""Training losses."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class LabelSmoothingCrossEntropy(nn.Cell):
    """Softmax cross entropy with label smoothing, averaged over the batch, in float32 at every precision level.

    The target distribution is ``(1 - eps) * onehot + eps / K`` on all K classes (Szegedy et al., CVPR 2016, section 7;
    also PyTorch's form). The public MindSpore ports spread eps over the K - 1 wrong classes instead.

    Args:
        label_smoothing: eps in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
        self.label_smoothing = float(label_smoothing)
        self.one_hot = ops.OneHot()
        self.cross_entropy = ops.SoftmaxCrossEntropyWithLogits()

    def construct(self, logits: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        """Logits (N, K) and integer labels (N,) to the mean loss, a float32 scalar."""
        logits = ops.cast(logits, ms.float32)
        classes = logits.shape[1]
        low = self.label_smoothing / classes
        on = ops.cast(1.0 - self.label_smoothing + low, ms.float32)
        off = ops.cast(low, ms.float32)
        loss, _ = self.cross_entropy(logits, self.one_hot(labels, classes, on, off))
        return ops.mean(loss)
