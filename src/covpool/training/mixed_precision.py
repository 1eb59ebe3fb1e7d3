"""Mixed precision level O1 by cells: convolutions and dense layers in float16, everything else in float32.

MindSpore applies O1 by rewriting the source of a network's class. What a class inherits it does not see: in 2.8 a
network whose ``construct`` or whose methods come from a base class, as all networks here, stays in float32 throughout,
without a word. It also writes the new source into the working folder. So the cells are set here, with the same outcome
as documented for O1. The other levels work through flags on cells and are left to MindSpore.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import amp, nn, ops

from covpool.pooling.base import Float32Cell


class Float16Cell(nn.Cell):
    """A cell that computes in float16 between float32 inputs and outputs; its parameters stay as they are, float32."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep their names
        self.cell = cell.to_float(ms.float16)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """What the cell makes of x, in float32."""
        return ops.cast(self.cell(x), ms.float32)


def apply_amp_level(network: nn.Cell, amp_level: str) -> str:
    """Set a network to O1 in place; leave it alone at any other level.

    Args:
        network: Poolings and other cells that insist on float32 in it are left out.
        amp_level: 'O0', 'O1', 'O2', 'O3' or 'auto'.

    Returns:
        The level for ``mindspore.train.Model``: what is left to be done by it.
    """
    if amp_level != "O1":
        return amp_level
    _lower(network, tuple(kind for kind in amp.get_white_list() if issubclass(kind, nn.Cell)))
    return "O0"


def _lower(network: nn.Cell, kinds: tuple[type[nn.Cell], ...]) -> None:
    for name, cell in network.name_cells().items():
        if isinstance(cell, kinds):
            # Not by setattr, which would put another prefix before the names of the parameters.
            network._cells[name] = Float16Cell(cell)
        elif not isinstance(cell, (Float32Cell, Float16Cell)):
            _lower(cell, kinds)
    if isinstance(network, nn.SequentialCell):
        network.cell_list = list(network.cells())
