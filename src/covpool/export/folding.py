"""Batch normalisation folded into the convolution before it."""

from __future__ import annotations

import copy

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.errors import UserError


def fold_batch_norm(network: nn.Cell) -> nn.Cell:
    """A copy of a network for evaluation whose batch normalisations are part of the convolutions before them.

    With the running statistics, batch normalisation after a convolution is a convolution:

        gamma (W * x + b - mean) / s + beta = (W gamma / s) * x + (b - mean) gamma / s + beta,  s = sqrt(variance + eps)

    The new weights are computed in float64 and rounded once. The network that is given stays as it is.

    A normalisation belongs to the convolution that stands directly before it in the same cell: cells are defined in
    the order in which they are applied.

    Raises:
        UserError: A normalisation that has no convolution before it, or that uses the batch's own statistics.
    """
    folded = copy.deepcopy(network)
    folded.set_train(False)
    for path, parent in list(folded.cells_and_names()):
        # The copied names of compiled graphs are the original's: with them the copy would free those graphs at its end.
        parent.compile_cache.clear()
        previous = None
        for index, (name, cell) in enumerate(parent.name_cells().items()):
            if isinstance(cell, nn.BatchNorm2d):
                where = f"{path}.{name}".lstrip(".")
                if not isinstance(previous, nn.Conv2d) or previous.out_channels != cell.num_features:
                    raise UserError(f"cannot fold {where}: no convolution of its width stands before it")
                if cell.use_batch_statistics:
                    raise UserError(f"cannot fold {where}: it uses the statistics of the batch in evaluation too")
                _fold(previous, cell)
                if isinstance(parent, nn.SequentialCell):
                    parent[index] = nn.Identity()
                else:
                    setattr(parent, name, nn.Identity())
            previous = cell
    return folded


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    gamma, beta, mean, variance = (
        p.asnumpy().astype(np.float64) for p in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    factor = gamma / np.sqrt(variance + norm.eps)
    weight = convolution.weight
    bias = convolution.bias.asnumpy().astype(np.float64) if convolution.has_bias else 0.0
    weight.set_data(_float32(weight.asnumpy() * factor[:, None, None, None]))
    convolution.bias = ms.Parameter(
        _float32((bias - mean) * factor + beta), name=weight.name[: -len("weight")] + "bias", requires_grad=False
    )
    convolution.has_bias = True


def _float32(values: np.ndarray) -> ms.Tensor:
    return ms.Tensor(values.astype(np.float32))
