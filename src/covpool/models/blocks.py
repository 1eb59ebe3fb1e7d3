"""What the blocks of all networks share: stochastic depth, and activations that are computed again."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from covpool.pooling.counter_random import DropPath


class NetworkBlock(nn.Cell):
    """Base of the blocks that a network repeats. A subclass passes what it adds to its shortcut through :meth:`path`.

    Attributes:
        has_shortcut: Whether the network stays a network without this block's path.
        drops_path: Whether the path is left out for some images.
    """

    has_shortcut: bool = True
    drops_path: bool = False

    def path(self, x: ms.Tensor, length: int = 1) -> ms.Tensor:
        """What a path gives, (N * length, ...), but in training with stochastic depth 0 for some of the N images."""
        if self.drops_path:
            x = self.drop_path(x, length)
        return x


def add_drop_path(network: nn.Cell, rate: float) -> None:
    """Give a network stochastic depth (Huang et al., ECCV 2016); without it, no block has a cell of that kind.

    The rate rises linearly from 0 at the first block to ``rate`` at the last one, as in timm. Blocks without a shortcut
    count, but are never left out.

    Raises:
        ValueError: A rate outside [0, 1), or no block with a shortcut.
    """
    blocks = _blocks(network)
    if not any(block.has_shortcut for block in blocks.values()):
        raise ValueError("drop_path_rate: this network has no blocks beside a shortcut that could be left out")
    DropPath(rate)  # says what is wrong with it
    for index, (name, block) in enumerate(blocks.items()):
        own = rate * index / max(1, len(blocks) - 1)
        if block.has_shortcut and own:
            block.drop_path = DropPath(own, seed=index)
            block.drop_path.update_parameters_name(f"{name}.drop_path.")
            block.drops_path = True


def recompute(network: nn.Cell) -> None:
    """Keep only the ends of blocks for the backward pass of a graph, which computes what is between them again.

    Less memory for more time; results are the same to the bit. In PyNative mode nothing changes.

    Raises:
        ValueError: A network without blocks that are known here.
    """
    blocks = _blocks(network)
    if not blocks:
        raise ValueError("recompute: this network has no blocks whose activations could be computed again")
    for block in blocks.values():
        block.recompute()
        block._recompute_cell = None  # for PyNative mode, where a state would move twice; it cannot be copied
        for _, cell in block.cells_and_names():
            # What moves a state, the running statistics or a counter, is done once.
            if isinstance(cell, nn.BatchNorm2d):
                cell.bn_train.recompute(False)
            if isinstance(cell, DropPath):
                cell.at_least.recompute(False)


def _blocks(network: nn.Cell) -> dict[str, NetworkBlock]:
    """In the order of computation, by name."""
    return {name: cell for name, cell in network.cells_and_names() if isinstance(cell, NetworkBlock)}
