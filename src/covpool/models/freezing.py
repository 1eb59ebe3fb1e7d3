"""Parts of a network that do not train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mindspore import nn

from covpool.models.blocks import NetworkBlock
from covpool.models.layer_groups import in_head

_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_STEM = ("conv1", "bn1")  # of a ResNet, where it is no cell
_BACKBONE = "backbone"


def freeze(network: nn.Cell, upto: str) -> None:
    """Keep the first part of a network as it is in training: its parameters, and the statistics of its normalisations.

    Its batch normalisations compute with their running statistics, as in evaluation, and no path of its blocks is left
    out. Make the optimiser afterwards, from ``network.trainable_params()``.

    Args:
        network: Any cell whose children are in the order of computation.
        upto: The last cell to freeze, by its name in the network: "layer2", "layer3.0", "backbone". A ResNet also
            knows "stem".

    Raises:
        ValueError: No cell of this name.
    """
    names = [name for name, _ in network.cells_and_names()]
    last = _STEM[-1] if upto == "stem" and upto in getattr(network, "stages", ()) else upto
    if not last or last not in names:
        raise ValueError(f"no part {upto!r} to freeze up to; there are {_listed(network)}, and the parts of these")
    end = max(i for i, name in enumerate(names) if name == last or name.startswith(f"{last}."))
    _freeze(network, names[: end + 1])  # cells before their children: one around the last has its own parameters here


def freeze_parts(network: nn.Cell, parts: Sequence[str]) -> None:
    """Keep these parts of a network as they are in training, as :func:`freeze` does.

    Args:
        network: A cell of ``create_model``.
        parts: Cells with all that they hold, by their names in the network: "layer1", "blocks.3", "fc". A ResNet also
            knows "stem"; "backbone" is everything before reduction, pooling and classifier.

    Raises:
        ValueError: No part of this name, or nothing is left to train.
    """
    names = [name for name, _ in network.cells_and_names()]
    frozen: list[str] = []
    for part in parts:
        roots = _STEM if part == "stem" and part in getattr(network, "stages", ()) else (part,)
        if part == _BACKBONE and part not in names:
            frozen += [name for name in names if not in_head(f"{name}.")]
        elif part and all(root in names for root in roots):
            frozen += [name for name in names if f"{name}.".startswith(tuple(f"{root}." for root in roots))]
        else:
            raise ValueError(f"no part {part!r} to freeze; there are {_listed(network, _BACKBONE)}, and parts of these")
    _freeze(network, frozen)
    if frozen and not network.trainable_params():
        raise ValueError(f"with {', '.join(parts)} frozen there is nothing left to train")


def _freeze(network: nn.Cell, names: Iterable[str]) -> None:
    """Freeze the cells of these names, without their children."""
    cells = dict(network.cells_and_names())
    for name in names:
        for parameter in cells[name].get_parameters(expand=False):
            parameter.requires_grad = False
        if isinstance(cells[name], _NORMALISATIONS):
            cells[name].use_batch_statistics = False
        if isinstance(cells[name], NetworkBlock):
            cells[name].drops_path = False
    for cell in cells.values():
        cell.compile_cache.clear()


def _listed(network: nn.Cell, *besides: str) -> str:
    children = [name for name, cell in network.name_cells().items() if any(True for _ in cell.get_parameters())]
    return ", ".join(dict.fromkeys([*getattr(network, "stages", ()), *children, *besides]))
