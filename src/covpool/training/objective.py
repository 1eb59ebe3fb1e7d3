"""What a training step minimises: the loss of a network on mixed batches, and how far it is from its teacher."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.train import Model

from covpool.build import batch_mixing
from covpool.config import Config
from covpool.training.losses import LabelSmoothingCrossEntropy, smoothing_of


class BatchMixer(nn.Cell):
    """Mixup and CutMix of a batch with itself reversed, and labels to match: timm's formulas in its mode 'batch'.

    Args:
        num_classes: K.
        label_smoothing: eps in [0, 1): before they are mixed, targets are ``(1 - eps) * onehot + eps / K``.
    """

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(auto_prefix=False)
        self.num_classes = num_classes
        self.low = label_smoothing / num_classes
        self.high = 1.0 - label_smoothing + self.low
        self.one_hot = ops.OneHot()

    def construct(self, image: ms.Tensor, label: ms.Tensor, mix: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """Images (N, C, H, W), labels (N,) and ``Mixing.draw``, float32 (5,), to images and distributions (N, K)."""
        n, _, height, width = image.shape
        kept, top, bottom, left, right = mix[0], mix[1], mix[2], mix[3], mix[4]
        y, x, reverse = _positions(height), _positions(width), _reverse(n)
        rows, columns = ops.logical_and(y >= top, y < bottom), ops.logical_and(x >= left, x < right)
        inside = ops.logical_and(rows.reshape(height, 1), columns.reshape(1, width))
        other = ops.gather(image, reverse, 0)  # several times faster than a flip on CPU
        image = ops.where(inside, other, image * kept + other * (1.0 - kept))
        share = kept * (1.0 - (bottom - top) * (right - left) / (height * width))
        high, low = ops.cast(self.high, ms.float32), ops.cast(self.low, ms.float32)
        target = self.one_hot(label, self.num_classes, high, low)
        return image, target * share + ops.gather(target, reverse, 0) * (1.0 - share)


@ops.constexpr
def _positions(count: int) -> ms.Tensor:
    """The numbers from 0 to count - 1 as a constant of the compiled graph."""
    return ms.Tensor(np.arange(count, dtype=np.float32))


@ops.constexpr
def _reverse(count: int) -> ms.Tensor:
    """The numbers from count - 1 down to 0 as a constant of the compiled graph."""
    return ms.Tensor(np.arange(count - 1, -1, -1, dtype=np.int32))


class Distillation(nn.Cell):
    """How far logits are from a teacher's, averaged over the batch, float32 (Touvron et al., ICML 2021, section 4).

    Args:
        kind: 'soft' for ``tau^2 KL(softmax(teacher / tau), softmax(student / tau))`` (equation 2), 'hard' for the cross
            entropy with the teacher's answer (equation 3).
        tau: Temperature of soft distillation, above 0.
    """

    def __init__(self, kind: str = "soft", tau: float = 1.0) -> None:
        super().__init__(auto_prefix=False)
        if kind not in ("soft", "hard"):
            raise ValueError(f"kind must be 'soft' or 'hard', not {kind!r}")
        self.hard, self.tau = kind == "hard", float(tau)
        self.answer = ops.Argmax(axis=1, output_type=ms.int32)
        self.cross_entropy = LabelSmoothingCrossEntropy()
        self.log_softmax = ops.LogSoftmax()

    def construct(self, logits: ms.Tensor, teacher: ms.Tensor) -> ms.Tensor:
        """Logits (N, K) of both to a scalar."""
        logits, teacher = ops.cast(logits, ms.float32), ops.cast(teacher, ms.float32)
        if self.hard:
            return self.cross_entropy(logits, self.answer(teacher))
        log_p, log_q = self.log_softmax(teacher / self.tau), self.log_softmax(logits / self.tau)
        return (ops.exp(log_p) * (log_p - log_q)).sum() * (self.tau * self.tau / logits.shape[0])


class Teacher(nn.Cell):
    """A network as in evaluation, also within a cell that trains: nothing of it changes.

    Its parameters are renamed, ``teacher.`` first: a student of the same kind has the same names.

    Args:
        network: (N, C, H, W) -> logits (N, K), with its weights.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__()
        self.teacher = network
        for parameter in network.get_parameters():
            parameter.requires_grad = False
        self.set_train(False)

    def add_flags_recursive(self, **flags: Any) -> nn.Cell:
        """Pass flags on to the network; it stays in evaluation."""
        return super().add_flags_recursive(**{**flags, "training": False})

    def construct(self, image: ms.Tensor) -> ms.Tensor:
        return ops.stop_gradient(self.teacher(image))


class Objective(nn.Cell):
    """The loss of a network that has one output or two, and may learn from a teacher: images and targets to a scalar.

    With a teacher ``(1 - alpha) * loss + alpha * distillation``. Of two logits the first are compared with the targets,
    the second with the teacher; one is compared with both. Without a teacher two logits are averaged, as in evaluation.

    Args:
        network: (N, C, H, W) -> logits (N, K), or a tuple of two.
        loss: Logits and targets -> scalar.
        teacher: See :class:`Teacher`.
        distillation: Logits and the teacher's -> scalar.
        alpha: Weight of the teacher, 0 to 1.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        teacher: Teacher | None = None,
        distillation: Distillation | None = None,
        alpha: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.loss = network, loss
        self.teacher, self.distillation, self.alpha = teacher, distillation, float(alpha)

    def construct(self, image: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        outputs = self.network(image)
        logits, student = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        if self.teacher is None or self.distillation is None:
            return self.loss((logits + student) * 0.5, targets)
        taught = self.distillation(student, self.teacher(image))
        return self.loss(logits, targets) * (1.0 - self.alpha) + taught * self.alpha


class MixedObjective(nn.Cell):
    """An objective on mixed batches: images, labels and draws to a scalar.

    Args:
        mixer: Images, labels and draws -> images and targets.
        objective: Images and targets -> scalar.
    """

    def __init__(self, mixer: BatchMixer, objective: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.mixer, self.objective = mixer, objective

    def construct(self, image: ms.Tensor, label: ms.Tensor, mix: ms.Tensor) -> ms.Tensor:
        image, targets = self.mixer(image, label, mix)
        return self.objective(image, targets)


def batch_mixer(config: Config) -> BatchMixer | None:
    """What mixes the batches of a configured training; None where they stay as they are."""
    return None if batch_mixing(config) is None else BatchMixer(config.num_classes, smoothing_of(config))


def set_objective(
    model: Model, config: Config, teacher: Teacher | None = None, mixer: BatchMixer | None = None
) -> None:
    """Make the step of a model learn from a teacher and mix its batches; otherwise it stays as MindSpore built it.

    Unless the network gives two logits, for two tokens, of which MindSpore's cell knows nothing.
    """
    step = model.train_network
    plain = step.network  # MindSpore's cell of network and loss, one of two kinds
    if teacher is not None:
        distillation = Distillation(config.distillation, config.distillation_tau)
        step.network = Objective(plain._backbone, plain._loss_fn, teacher, distillation, config.distillation_alpha)
    elif getattr(model._network, "class_tokens", 1) == 2:
        step.network = Objective(plain._backbone, plain._loss_fn)
    if mixer is not None:
        step.network = MixedObjective(mixer, step.network)
        model._loss_fn = None  # with it the model insists on two columns
    step.network.set_grad()
