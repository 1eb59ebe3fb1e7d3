"""What follows the gradients of a step: they are accumulated, clipped and applied, and a moving average follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

Gradients = tuple[ms.Tensor, ...]
AVERAGE = "average."  # before the names of averaged parameters


class Clip(nn.Cell):
    """Gradients within a bound; shapes stay.

    Args:
        bound: Above 0.
        mode: 'norm' scales all gradients together, so that their joint Euclidean norm is at most the bound, as
            ``torch.nn.utils.clip_grad_norm_`` does; 'value' cuts every entry to [-bound, bound].
    """

    def __init__(self, bound: float, mode: str = "norm") -> None:
        super().__init__(auto_prefix=False)
        if mode not in ("norm", "value"):
            raise ValueError(f"mode must be 'norm' or 'value', not {mode!r}")
        self.bound, self.by_norm = float(bound), mode == "norm"

    def construct(self, gradients: Gradients) -> Gradients:
        if not self.by_norm:
            return tuple([ops.clamp(gradient, -self.bound, self.bound) for gradient in gradients])
        squares = [ops.square(gradient.astype(ms.float32)).sum() for gradient in gradients]
        norm = ops.sqrt(ops.addn(squares))
        factor = ops.minimum(self.bound / (norm + 1e-6), ops.ones_like(norm))  # the constant is PyTorch's
        return tuple([gradient * factor.astype(gradient.dtype) for gradient in gradients])


class WeightAverage(nn.Cell):
    """Exponential moving average of a network's parameters and running statistics, float32.

    ``average = d * average + (1 - d) * value`` after every step (Polyak and Juditsky, 1992). With ``warmup`` d is at
    most (1 + t) / (10 + t) at step t = 1, 2, ..., so that a short training does not remember its random start.

    Args:
        network: Its floating-point parameters are averaged.
        decay: d in (0, 1).
        warmup: Whether to begin with a smaller d.
    """

    def __init__(self, network: nn.Cell, decay: float, warmup: bool = True) -> None:
        super().__init__(auto_prefix=False)
        self.decay, self.warmup = float(decay), warmup
        values = [p for p in network.get_parameters() if p.dtype == ms.float32]
        self.values = ms.ParameterTuple(values)
        copies = [ms.Parameter(p.asnumpy().copy(), AVERAGE + p.name, requires_grad=False) for p in values]
        self.averages = ms.ParameterTuple(copies)

    def construct(self, step: ms.Tensor) -> ms.Tensor:
        """Bring the averages up to date after ``step`` steps, int32 of one element."""
        decay = ops.cast(self.decay, ms.float32)
        if self.warmup:
            t = ops.cast(step, ms.float32).reshape(())
            decay = ops.minimum(decay, (1.0 + t) / (10.0 + t))
        for average, value in zip(self.averages, self.values):
            ops.assign(average, average * decay + value * (1.0 - decay))
        return step

    def follow(self) -> None:
        """Begin anew with the network's present values."""
        _assign(self.averages, [value.asnumpy().copy() for value in self.values])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network with the averages as its values, within the block."""
        kept = [value.asnumpy().copy() for value in self.values]
        _assign(self.values, [average.asnumpy().copy() for average in self.averages])
        try:
            yield
        finally:
            _assign(self.values, kept)


def _assign(parameters: Iterable[ms.Parameter], values: Iterable[np.ndarray]) -> None:
    # Not by set_data: in MindSpore 2.8 on CPU the step after it loses its update, once the graph is compiled.
    for parameter, value in zip(parameters, values):
        ops.assign(parameter, ms.Tensor(value))


class Update(nn.Cell):
    """Gradients to new weights: clipped, given to the optimiser, followed by the average.

    Args:
        optimizer: Its ``global_step`` counts the steps.
        clip: What bounds the gradients, if anything.
        average: What follows the weights, if anything.
    """

    def __init__(
        self, optimizer: nn.Optimizer, clip: Optional[Clip] = None, average: Optional[WeightAverage] = None
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer, self.clip, self.average = optimizer, clip, average
        self.parameters = optimizer.parameters

    def construct(self, gradients: Gradients) -> Any:
        if self.clip is not None:
            gradients = self.clip(gradients)
        done = self.optimizer(gradients)
        if self.average is not None:
            done = ops.depend(done, self.average(self.optimizer.global_step))
        return done


class _Collect(nn.Cell):
    """Adds a part of the gradients to the sums instead of a step."""

    def __init__(self, sums: ms.ParameterTuple, parts: int) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.share = sums, 1.0 / parts

    def construct(self, gradients: Gradients) -> bool:
        for total, gradient in zip(self.sums, gradients):
            ops.assign_add(total, gradient.astype(ms.float32) * self.share)
        return True


class _Finish(nn.Cell):
    """The step that follows the last part: mean over ranks, update, sums back to 0."""

    def __init__(self, sums: ms.ParameterTuple, reducer: nn.Cell, update: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.reducer, self.update = sums, reducer, update

    def construct(self) -> Any:
        done = self.update(self.reducer(tuple([total * 1.0 for total in self.sums])))
        for total in self.sums:
            ops.assign(total, ops.zeros_like(total))
        return done


class AccumulatedStep(nn.Cell):
    """A training step that takes its batch in parts, one after the other: the memory of a part, the step of the whole.

    The gradients are those of the whole batch but for what depends on other images of a part: batch statistics.

    Args:
        step: The step for one part; it becomes this cell's, and no longer updates by itself.
        parts: Into how many parts a batch is cut; its size must be a multiple.
        mixer: What is done with the whole batch (images, labels, ...) -> (images, targets) before, if anything.
    """

    def __init__(self, step: nn.TrainOneStepCell, parts: int, mixer: Optional[Callable[..., Any]] = None) -> None:
        super().__init__(auto_prefix=False)
        zeros = [ms.Parameter(ms.ops.zeros(p.shape, ms.float32), f"sum.{p.name}") for p in step.weights]
        sums = ms.ParameterTuple(zeros)
        self.finish = _Finish(sums, step.grad_reducer, step.optimizer)
        step.optimizer, step.grad_reducer, step.reducer_flag = _Collect(sums, parts), nn.Identity(), False
        self.step, self.parts, self.mixer = step, parts, mixer

    def __call__(self, *batch: ms.Tensor) -> ms.Tensor:  # not compiled as a whole: that would hold all parts at once
        images, targets = batch if self.mixer is None else self.mixer(*batch)
        rows = images.shape[0] // self.parts
        losses = []
        for start in range(0, images.shape[0], rows):
            losses.append(self.step(images[start : start + rows], targets[start : start + rows]))
        self.finish()
        return ops.stack(losses).mean()
