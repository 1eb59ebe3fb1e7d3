"""The one place where a network is given kernels of the CPU."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

from mindspore import nn

from covpool.errors import UserError
from covpool.kernels.cells import (
    CompiledAffine,
    CompiledBatchNorm2d,
    CompiledCentre,
    CompiledConv2d,
    CompiledCovarianceEigen,
    CompiledSignedRootL2,
    CompiledSymmetricVector,
    batch_norm_operator,
    depthwise_operator,
    stem_operator,
    takes_depthwise,
    takes_stem,
    takes_winograd,
    winograd_operator,
)
from covpool.kernels.library import compile_kernels, set_threads, threads_of_process
from covpool.pooling.covariance import Centre, SymmetricVector
from covpool.pooling.element_wise import Affine, SignedRootL2
from covpool.pooling.spectral import CovarianceEigen
from covpool.runtime.files import os_errors_as

logger = logging.getLogger(__name__)

CPU_KERNELS = ("auto", "compiled", "mindspore")


def find_kernels(choice: str) -> Path | None:
    """The library of compiled kernels, for :func:`apply_cpu_kernels`; None for MindSpore's own.

    Args:
        choice: 'compiled'; 'mindspore'; or 'auto' for 'compiled' where a compiler makes them, else, with a warning,
            'mindspore'.

    Raises:
        UserError: 'compiled', and they cannot be made.
    """
    if choice not in CPU_KERNELS:
        raise ValueError(f"CPU kernels must be one of {', '.join(CPU_KERNELS)}, not {choice!r}")
    if choice == "mindspore":
        return None
    try:
        library = compile_kernels()
        with os_errors_as(f"cannot load {library}; on a file system without exec, set XDG_CACHE_HOME"):
            ctypes.CDLL(str(library))
        return library
    except UserError as error:
        if choice == "compiled":
            raise
        logger.warning("MindSpore's own CPU kernels are used, which take up to twice as long: %s", error)
        return None


def apply_cpu_kernels(network: nn.Cell, library: Path | None, threads: int | None = None) -> int:
    """Let a network that computes on CPU in float32 use compiled kernels, in place; the number of cells replaced.

    They compute 3x3 convolutions of stride 1 with multiples of 32 channels, depthwise ones of stride 1 and 2, a 7x7
    convolution of images, batch normalisation in training, centring, triangle and eigen-decomposition of a covariance,
    its signed root, scale and shift. Parameters, their names and their order stay; results differ by rounding. A
    network that is to be exported must not have them: they are a file of this machine.

    Args:
        network: Any network.
        library: What :func:`find_kernels` gives; None leaves the network alone.
        threads: Threads of the compiled kernels, in the whole process; None for those of a process that runs alone.
    """
    if library is None:
        return 0
    threads = threads or threads_of_process()
    set_threads(library, threads)
    count = _replace(network, library)
    logger.info("compiled CPU kernels compute %d layers, %d thread%s", count, threads, "" if threads == 1 else "s")
    return count


def _replace(network: nn.Cell, library: Path) -> int:
    count = 0
    for name, cell in network.name_cells().items():
        new = _replacement(cell, library)
        if new is not None:
            # Not by setattr, which would put another prefix before the names of the parameters.
            network._cells[name] = new
            count += 1
        elif not isinstance(cell, CompiledBatchNorm2d):  # it holds MindSpore's, for evaluation
            count += _replace(cell, library)
    if isinstance(network, nn.SequentialCell):
        network.cell_list = list(network.cells())
    return count


def _replacement(cell: nn.Cell, library: Path) -> nn.Cell | None:
    """What stands for a cell; None for itself."""
    if type(cell) is nn.Conv2d:  # a subclass may compute something else
        if takes_winograd(cell):
            return CompiledConv2d(cell, winograd_operator(library, cell.has_bias))
        if takes_stem(cell):
            return CompiledConv2d(cell, stem_operator(library, cell.out_channels, cell.has_bias))
        if takes_depthwise(cell):
            return CompiledConv2d(cell, depthwise_operator(library, cell.stride[0], cell.has_bias))
    if type(cell) is nn.BatchNorm2d:
        return CompiledBatchNorm2d(cell, batch_norm_operator(library))
    if type(cell) is Centre:
        return CompiledCentre(library)
    if type(cell) is SymmetricVector:
        return CompiledSymmetricVector(cell.channels, library)
    if type(cell) is SignedRootL2:
        return CompiledSignedRootL2(library)
    if type(cell) is CovarianceEigen and cell.solver == "eigh":
        return CompiledCovarianceEigen(library)
    if type(cell) is Affine:
        return CompiledAffine(cell, library)
    return None
