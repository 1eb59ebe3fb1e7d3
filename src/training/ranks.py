"""What keeps the ranks of a job one network."""

from __future__ import annotations

import zlib

import mindspore as ms
import numpy as np
from mindspore import nn

from src.errors import UserError
from src.runtime.distributed import World


def average_statistics(network: nn.Cell, world: World) -> None:
    """Give every rank the mean of all ranks' running statistics; weights are equal already, statistics are not."""
    if world.size == 1:
        return
    statistics = [p for p in network.get_parameters() if p.name.endswith((".moving_mean", ".moving_variance"))]
    if not statistics:
        return
    values = [p.asnumpy() for p in statistics]
    mean = world.sum(np.concatenate([v.reshape(-1) for v in values]).astype(np.float64)) / world.size
    for parameter, part in zip(statistics, np.split(mean, np.cumsum([v.size for v in values])[:-1])):
        parameter.set_data(ms.Tensor(part.reshape(parameter.shape).astype(np.float32)))


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
    mine = np.zeros(world.size)
    mine[world.rank] = checksum
    checksums = world.sum(mine)
    if (checksums != checksums[0]).any():
        different = np.flatnonzero(checksums != checksums[0]).tolist()
        raise UserError(f"parameters differ between rank 0 and ranks {different} after epoch {epoch + 1}")
