"""What keeps the ranks of a job one network."""

from __future__ import annotations

import zlib

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.errors import UserError
from covpool.runtime.distributed import World


def average_statistics(network: nn.Cell, world: World) -> None:
    """Give every rank the mean of all ranks' running statistics; weights are equal already, statistics are not."""
    if world.size == 1:
        return
    mean = world.sum(running_statistics(network).astype(np.float64)) / world.size
    set_running_statistics(network, mean.astype(np.float32))


def running_statistics(network: nn.Cell) -> np.ndarray:
    """All running means and variances of batch normalisation, float32 (n,)."""
    values = [p.asnumpy().reshape(-1) for p in _statistics(network)]
    return np.concatenate(values) if values else np.zeros(0, np.float32)


def set_running_statistics(network: nn.Cell, values: np.ndarray) -> None:
    """Set what :func:`running_statistics` gives."""
    parameters = _statistics(network)
    ends = np.cumsum([p.size for p in parameters])
    for parameter, end in zip(parameters, ends):
        part = values[end - parameter.size : end].reshape(parameter.shape)
        parameter.set_data(ms.Tensor(np.ascontiguousarray(part)))


def _statistics(network: nn.Cell) -> list[ms.Parameter]:
    return [p for p in network.get_parameters() if p.name.endswith((".moving_mean", ".moving_variance"))]


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
