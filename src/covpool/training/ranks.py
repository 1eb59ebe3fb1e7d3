"""What keeps the ranks of a job one network: gradients and statistics are averaged, signals and weights agreed on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from covpool.checkpoints.state import running_statistics, set_running_statistics
from covpool.errors import UserError
from covpool.runtime.distributed import World
from covpool.runtime.signals import StopRequest

# As PyTorch's DistributedDataParallel: large enough that the fixed cost of an all-reduce is small beside its transfer.
DEFAULT_GROUP_BYTES = 25 << 20
_FLOAT32_BYTES = 4  # gradients are cast to float32 before the all-reduce, whatever the precision level


class ReductionGroup(NamedTuple):
    """Gradients that one all-reduce takes together: parameters, in the order of the backward pass, and their bytes."""

    names: tuple[str, ...]
    size: int


def gradient_sizes(parameters: Iterable[ms.Parameter]) -> list[tuple[str, int]]:
    """Name and bytes of the gradient of every trainable parameter, in the given order."""
    return [(p.name, p.size * _FLOAT32_BYTES) for p in parameters if p.requires_grad]


def classifier_share(sizes: Sequence[tuple[str, int]]) -> float:
    """Part of the gradient's bytes that belongs to the classifier, 0 to 1."""
    return sum(size for name, size in sizes if name.startswith("fc.")) / sum(size for _, size in sizes)


def reduction_groups(sizes: Sequence[tuple[str, int]], group_bytes: int = DEFAULT_GROUP_BYTES) -> list[ReductionGroup]:
    """Group gradients, given by name and bytes in the order of the network, for their all-reduce.

    From the last parameter to the first, which is about the order in which the backward pass has them, a group is
    filled until it holds ``group_bytes`` or more. So the dense layer after a covariance pooling (8 256 x 1000 of the
    19.5 M parameters of ResNet-18 with d = 128) ends its group and travels while the backbone is still computing;
    MindSpore by itself makes one all-reduce per parameter, or one of everything, which starts last.
    """
    if group_bytes < 1:
        raise ValueError(f"group_bytes must be at least 1, not {group_bytes}")
    groups: list[ReductionGroup] = []
    names: list[str] = []
    filled = 0
    for number, (name, size) in enumerate(reversed(sizes), start=1):
        names.append(name)
        filled += size
        if filled >= group_bytes or number == len(sizes):
            groups.append(ReductionGroup(tuple(names), filled))
            names, filled = [], 0
    return groups


def fuse_reductions(parameters: Sequence[ms.Parameter], group_bytes: int = DEFAULT_GROUP_BYTES) -> list[ReductionGroup]:
    """Tell MindSpore to reduce gradients by group. Call after ``init()`` and before the training step is built.

    The group stands in an attribute of the parameter, so the order of the optimiser's parameters does not matter.
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
    each rank adds the one to the other: wrong sums without any message if they have one size, memory read beyond the
    message's end if not. Here each all-reduce depends on the one before it, from the last parameter to the first as
    the backward pass has them. Shapes and types stay; sums are taken in float32.
    """

    def __init__(self, ranks: int) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce()
        self.factor = 1.0 / ranks

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        means: tuple[ms.Tensor, ...] = ()
        before = gradients[-1]
        for gradient in gradients[::-1]:
            before = self.all_reduce(ops.depend(gradient.astype(ms.float32), before))
            means = ((before * self.factor).astype(gradient.dtype), *means)
        return means


def reduce_in_order(step: nn.TrainOneStepCell, ranks: int) -> None:
    """Make a training step of CPU ranks reduce its gradients by :class:`OrderedMean`. Call before it is compiled."""
    step.grad_reducer = OrderedMean(ranks)


def agreed_signal(stop: StopRequest, world: World) -> int:
    """The signal that any rank has received, 0 for none; every rank calls it after the same step."""
    return int(world.gather(np.array([stop.received])).max())


def average_statistics(parameters: Sequence[ms.Parameter], world: World) -> None:
    """Give every rank the mean of all ranks' running statistics; weights are equal already, statistics are not."""
    if world.size > 1:
        mean = world.sum(running_statistics(parameters).astype(np.float64)) / world.size
        set_running_statistics(parameters, mean.astype(np.float32))


def check_ranks_agree(parameters: Iterable[ms.Parameter], world: World, epoch: int) -> None:
    """Compare a checksum of parameters over the ranks; a difference is a UserError."""
    if world.size == 1:
        return
    checksum = 0
    for parameter in parameters:
        checksum = zlib.crc32(parameter.asnumpy().tobytes(), checksum)
    checksums = world.gather(np.array([checksum]))[:, 0]
    if (checksums != checksums[0]).any():
        different = np.flatnonzero(checksums != checksums[0]).tolist()
        raise UserError(f"parameters differ between rank 0 and ranks {different} after epoch {epoch + 1}")
