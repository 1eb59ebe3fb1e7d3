"""What keeps the ranks of a job one network."""

from __future__ import annotations

import zlib

import numpy as np
from mindspore import nn

from covpool.checkpoints.state import running_statistics, set_running_statistics
from covpool.errors import UserError
from covpool.runtime.distributed import World
from covpool.runtime.signals import StopRequest


def agreed_signal(stop: StopRequest, world: World) -> int:
    """The signal that any rank has received, 0 for none; every rank calls it after the same step."""
    if world.size == 1:
        return stop.received
    return int(world.gather(np.array([stop.received])).max())


def average_statistics(network: nn.Cell, world: World) -> None:
    """Give every rank the mean of all ranks' running statistics; weights are equal already, statistics are not."""
    if world.size == 1:
        return
    mean = world.sum(running_statistics(network).astype(np.float64)) / world.size
    set_running_statistics(network, mean.astype(np.float32))


def check_ranks_agree(network: nn.Cell, world: World, epoch: int) -> None:
    """Compare a checksum of all parameters over the ranks.

    Raises:
        UserError: If they differ: the ranks no longer train one network.
    """
    if world.size == 1:
        return
    checksum = 0
    for parameter in network.get_parameters():
        checksum = zlib.crc32(parameter.asnumpy().tobytes(), checksum)
    checksums = world.gather(np.array([checksum]))[:, 0]
    if (checksums != checksums[0]).any():
        different = np.flatnonzero(checksums != checksums[0]).tolist()
        raise UserError(f"parameters differ between rank 0 and ranks {different} after epoch {epoch + 1}")
