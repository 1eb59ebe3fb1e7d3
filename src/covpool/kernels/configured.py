"""What a configuration says of computing on CPU: whose kernels, and whether compiled graphs are kept."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Callable

from mindspore import nn

from covpool.config import Config
from covpool.config.schema import options
from covpool.kernels.apply import apply_cpu_kernels, find_kernels
from covpool.kernels.library import threads_of_process
from covpool.models import fold_batch_norm
from covpool.runtime.distributed import World
from covpool.runtime.graph_cache import kept_graphs

logger = logging.getLogger(__name__)


def cpu_kernels(config: Config) -> Path | None:
    """The compiled kernels that a configuration computes with; None for those of MindSpore or of another device."""
    possible = config.device_target == "CPU" and config.amp_level == "O0" and not config.recompute
    if config.recompute and config.cpu_kernels == "auto":
        logger.info("recompute works with MindSpore's own CPU kernels alone: they are used")
    return find_kernels(config.cpu_kernels) if possible else None


def for_evaluation(config: Config, network: nn.Cell, world: World) -> nn.Cell:
    """What evaluates a network: with compiled kernels a copy of one of this project, batch normalisations folded.

    Its logits differ by rounding from those of the network itself, which is what is evaluated without such kernels. Of
    other networks nobody knows in which order they apply their layers: they get the kernels as they are.
    """
    kernels = cpu_kernels(config)
    if kernels is None:
        return network
    known = all(type(cell).__module__.startswith(("covpool.", "mindspore.")) for _, cell in network.cells_and_names())
    if known:
        network = fold_batch_norm(network, whole=False)
    apply_cpu_kernels(network, kernels, threads_of_process(world.local_size))
    return network


def kept(
    config: Config, cell: nn.Cell, count: int, world: World
) -> AbstractContextManager[Callable[[], AbstractContextManager[None]]]:
    """Where ``count`` graphs of a cell are compiled that an earlier run may have left; see ``kept_graphs``."""
    if not config.keep_graphs or config.device_target != "CPU":
        return nullcontext(nullcontext)
    of_images = ("mean", "std")  # found in the checkpoint that a training goes on from
    settings = {key: x for key, x in config.to_dict().items() if not options()[key].path and key not in of_images}
    return kept_graphs(cell, count, settings, world.rank, world.size)
