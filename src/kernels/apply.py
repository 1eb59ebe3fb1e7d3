"""The one place where a network is given kernels of the CPU."""

from __future__ import annotations

import logging
from pathlib import Path

from mindspore import nn

from src.kernels.batch_norm import CompiledBatchNorm2d, batch_norm_operator
from src.kernels.convolution import WinogradConv2d, takes_winograd, winograd_operator
from src.kernels.covariance import CompiledCentre, CompiledSymmetricVector
from src.kernels.library import available_threads, compile_kernels, set_threads
from src.pooling.covariance import Centre, SymmetricVector

logger = logging.getLogger(__name__)

CPU_KERNELS = ("mindspore", "compiled")


def apply_cpu_kernels(network: nn.Cell, choice: str, threads: int | None = None) -> int:
    """Let a network that is trained on CPU in float32 use other kernels, in place.

    Parameters, their names and their order stay; results differ by rounding. The network that is exported is another
    one: the operators are files of this machine.

    Args:
        network: Any network.
        choice: 'mindspore' to leave it alone, or 'compiled' for the kernels of this package: 3x3 convolutions of stride
            1 with multiples of 32 channels, batch normalisation in training, centring and triangle of a covariance.
        threads: Threads of the compiled kernels; None for OMP_NUM_THREADS or else all cores of the process.

    Returns:
        The number of cells that were replaced.

    Raises:
        ValueError: No such choice.
        UserError: The kernels cannot be compiled.
    """
    if choice not in CPU_KERNELS:
        raise ValueError(f"CPU kernels must be one of {', '.join(CPU_KERNELS)}, not {choice!r}")
    if choice == "mindspore":
        return 0
    library = compile_kernels()
    set_threads(library, threads or available_threads())
    operators = {nn.Conv2d: winograd_operator(library), nn.BatchNorm2d: batch_norm_operator(library)}
    count = _replace(network, library, operators)
    logger.info("compiled CPU kernels in %d cells, %d threads", count, threads or available_threads())
    return count


def _replace(network: nn.Cell, library: Path, operators: dict[type[nn.Cell], object]) -> int:
    count = 0
    for name, cell in network.name_cells().items():
        new: nn.Cell | None = None
        if isinstance(cell, nn.Conv2d) and takes_winograd(cell):
            new = WinogradConv2d(cell, operators[nn.Conv2d])
        elif isinstance(cell, nn.BatchNorm2d):
            new = CompiledBatchNorm2d(cell, operators[nn.BatchNorm2d])
        elif type(cell) is Centre:
            new = CompiledCentre(library)
        elif type(cell) is SymmetricVector:
            new = CompiledSymmetricVector(cell.channels, library)
        if new is None:
            if not isinstance(cell, CompiledBatchNorm2d):  # it holds MindSpore's, for evaluation
                count += _replace(cell, library, operators)
        else:
            # Not by setattr, which would put another prefix before the names of the parameters.
            network._cells[name] = new
            count += 1
    if isinstance(network, nn.SequentialCell):
        network.cell_list = list(network.cells())
    return count
