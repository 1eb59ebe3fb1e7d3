"""Batch normalisation folded into the convolution beside it."""

from __future__ import annotations

import copy

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.errors import UserError


def fold_batch_norm(network: nn.Cell, whole: bool = True) -> nn.Cell:
    """A copy of a network for evaluation whose batch normalisations are part of the convolutions beside them.

    With the running statistics, batch normalisation after a convolution is a convolution:

        gamma (W * x + b - mean) / s + beta = (W gamma / s) * x + (b - mean) gamma / s + beta,  s = sqrt(variance + eps)

    So is batch normalisation before a 1x1 convolution, where nothing is padded between the two:

        W * (gamma (x - mean) / s + beta) + b = (W gamma / s) * x + W (beta - mean gamma / s) + b

    The new weights are computed in float64 and rounded once. The network that is given stays as it is.

    A normalisation belongs to the convolution that stands directly before it in the same cell, or else to the 1x1
    convolution directly after it: cells are defined in the order in which they are applied.

    Raises:
        UserError: A normalisation that has no convolution beside it, or that uses the batch's own statistics. Without
            ``whole`` such ones stay as they are.
    """
    folded = copy.deepcopy(network)
    folded.set_train(False)
    for path, parent in list(folded.cells_and_names()):
        # The copied names of compiled graphs are the original's: with them the copy would free those graphs at its end.
        parent.compile_cache.clear()
        previous, children = None, list(parent.name_cells().items())
        for index, (name, cell) in enumerate(children):
            if type(cell) is nn.BatchNorm2d:  # a subclass may compute something else
                following = children[index + 1][1] if index + 1 < len(children) else None
                before = type(previous) is nn.Conv2d and previous.out_channels == cell.num_features
                problem = ""
                if not before and not _takes_scaled(following, cell.num_features):
                    problem = "no convolution of its width stands before it"
                if cell.use_batch_statistics:
                    problem = "it uses the statistics of the batch in evaluation too"
                if problem and whole:
                    raise UserError(f"cannot fold {f'{path}.{name}'.lstrip('.')}: {problem}")
                if not problem:
                    _fold(previous if before else following, cell, before)
                    if isinstance(parent, nn.SequentialCell):
                        parent[index] = nn.Identity()
                    else:
                        setattr(parent, name, nn.Identity())
            previous = cell
    return folded


def _takes_scaled(cell: nn.Cell | None, channels: int) -> bool:
    return type(cell) is nn.Conv2d and (cell.in_channels, cell.kernel_size, cell.group) == (channels, (1, 1), 1)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, before: bool) -> None:
    gamma, beta, mean, variance = (
        p.asnumpy().astype(np.float64) for p in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    factor = gamma / np.sqrt(variance + norm.eps)
    weight = convolution.weight
    bias = convolution.bias.asnumpy().astype(np.float64) if convolution.has_bias else 0.0
    values = weight.asnumpy().astype(np.float64)
    bias = (bias - mean) * factor + beta if before else values[:, :, 0, 0] @ (beta - mean * factor) + bias
    weight.set_data(_float32(values * (factor[:, None, None, None] if before else factor[:, None, None])))
    name = weight.name[: -len("weight")] + "bias"
    convolution.bias = ms.Parameter(_float32(bias), name=name, requires_grad=False)
    convolution.has_bias = True


def _float32(values: np.ndarray) -> ms.Tensor:
    return ms.Tensor(values.astype(np.float32))
