"""Parts of a network that do not train."""

from __future__ import annotations

from mindspore import nn

_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def freeze(network: nn.Cell, upto: str) -> None:
    """Keep the first part of a network as it is in training: its parameters, and the statistics of its normalisations.

    Its batch normalisations compute with their running statistics, as in evaluation. Make the optimiser afterwards,
    from ``network.trainable_params()``.

    Args:
        network: Any cell whose children are in the order of computation.
        upto: The last cell to freeze, by its name in the network: "layer2", "layer3.0", "backbone". A ResNet also
            knows "stem".

    Raises:
        ValueError: No cell of this name.
    """
    last = "bn1" if upto == "stem" and upto in getattr(network, "stages", ()) else upto
    cells = dict(network.cells_and_names())
    if not last or last not in cells:
        parts = dict.fromkeys([*getattr(network, "stages", ()), *network.name_cells()])
        raise ValueError(f"no part {upto!r} to freeze up to; there are {', '.join(parts)}, and the parts of these")
    names = list(cells)
    end = max(i for i, name in enumerate(names) if name == last or name.startswith(f"{last}."))
    for name in names[: end + 1]:  # cells before their children: a cell around the last one has its own parameters here
        for parameter in cells[name].get_parameters(expand=False):
            parameter.requires_grad = False
        if isinstance(cells[name], _NORMALISATIONS):
            cells[name].use_batch_statistics = False
    for cell in cells.values():
        cell.compile_cache.clear()
