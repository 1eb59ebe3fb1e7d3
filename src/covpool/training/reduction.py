"""How gradients are put together, and in which order, for their all-reduce over the ranks.

The dense layer after a covariance pooling holds much of a network (8 256 x 1000 of the 19.5 M parameters of ResNet-18
with d = 128), and its gradient is the first that the backward pass has. Reduced in a group of its own it travels while
the backbone is still computing. MindSpore by default makes one all-reduce per parameter, or with its fusion switched
on one of everything, which can start only when the last gradient is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mindspore as ms
from mindspore import nn, ops

# As PyTorch's DistributedDataParallel: large enough that the fixed cost of an all-reduce is small beside its transfer.
DEFAULT_GROUP_BYTES = 25 << 20
_FLOAT32_BYTES = 4  # gradients are cast to float32 before the all-reduce, whatever the precision level
_CLASSIFIER = "fc."


@dataclass(frozen=True)
class ReductionGroup:
    """Gradients that one all-reduce takes together.

    Attributes:
        names: The parameters, in the order in which the backward pass comes to their gradients.
        size: Bytes.
    """

    names: tuple[str, ...]
    size: int


def gradient_sizes(parameters: Iterable[ms.Parameter]) -> list[tuple[str, int]]:
    """Name and bytes of the gradient of every trainable parameter, in the given order."""
    return [(p.name, p.size * _FLOAT32_BYTES) for p in parameters if p.requires_grad]


def classifier_share(sizes: Sequence[tuple[str, int]]) -> float:
    """Part of the gradient's bytes that belongs to the classifier, 0 to 1."""
    total = sum(size for _, size in sizes)
    return sum(size for name, size in sizes if name.startswith(_CLASSIFIER)) / total


def reduction_groups(sizes: Sequence[tuple[str, int]], group_bytes: int = DEFAULT_GROUP_BYTES) -> list[ReductionGroup]:
    """Group gradients for their all-reduce.

    From the last parameter to the first, which is about the order in which the backward pass has them, a group is
    filled until it holds ``group_bytes`` or more. A large matrix thus ends its group at once, and only the last group,
    which nothing is left to overlap with, may be small.

    Args:
        sizes: Name and bytes per parameter, in the order of the network.
        group_bytes: Least size of a group, in bytes.

    Returns:
        The groups, in the order in which they become complete; together they hold every parameter once.

    Raises:
        ValueError: group_bytes is below 1.
    """
    if group_bytes < 1:
        raise ValueError(f"group_bytes must be at least 1, not {group_bytes}")
    groups: list[ReductionGroup] = []
    names: list[str] = []
    filled = 0
    for name, size in reversed(sizes):
        names.append(name)
        filled += size
        if filled >= group_bytes:
            groups.append(ReductionGroup(tuple(names), filled))
            names, filled = [], 0
    if names:
        groups.append(ReductionGroup(tuple(names), filled))
    return groups


def fuse_reductions(parameters: Sequence[ms.Parameter], group_bytes: int = DEFAULT_GROUP_BYTES) -> list[ReductionGroup]:
    """Tell MindSpore to reduce gradients by group. Call after ``init()`` and before the training step is built.

    The group stands in an attribute of the parameter, so the order of the optimiser's parameters does not matter.

    Args:
        parameters: Trainable parameters in the order of the network.
        group_bytes: See :func:`reduction_groups`.

    Returns:
        The groups.
    """
    groups = reduction_groups(gradient_sizes(parameters), group_bytes)
    number = {name: index for index, group in enumerate(groups, start=1) for name in group.names}
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.comm_fusion = number[parameter.name]
    # Without it the groups are ignored. "auto" leaves their choice to the attribute.
    ms.set_auto_parallel_context(comm_fusion={"allreduce": {"mode": "auto", "config": None}})
    return groups


class OrderedMean(nn.Cell):
    """Mean of every gradient over the ranks, one after the other, for devices whose all-reduces do not wait in line.

    MindSpore 2.8 on CPU starts an all-reduce as soon as its gradient is there, on whatever thread is free, and pairs
    the messages of two ranks by their order alone. Where two gradients become ready in another order on another rank,
    each rank adds the one to the other: wrong sums without a word if they have one size, memory read beyond the
    message's end if not. Here each all-reduce depends on the one before it, from the last parameter to the first as
    the backward pass has them.

    Args:
        ranks: Their number.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce()
        self.factor = 1.0 / ranks

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        """Tensors of any shape, their means in the same shapes and types; sums are taken in float32."""
        means: tuple[ms.Tensor, ...] = ()
        before = gradients[-1]
        for gradient in gradients[::-1]:
            before = self.all_reduce(ops.depend(gradient.astype(ms.float32), before))
            means = ((before * self.factor).astype(gradient.dtype), *means)
        return means


def reduce_in_order(step: nn.TrainOneStepCell, ranks: int) -> None:
    """Make a training step of CPU ranks reduce its gradients by :class:`OrderedMean`. Call before it is compiled."""
    step.grad_reducer = OrderedMean(ranks)
