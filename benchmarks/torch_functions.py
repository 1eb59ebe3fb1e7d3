"""What the PyTorch poolings are made of: functions with a backward pass of their own where it saves passes."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, Tuple

import numpy as np
import torch
from torch import Tensor


@functools.cache
def tables(d: int, device: torch.device) -> Tuple[Tensor, ...]:
    """Places of V in the flattened matrix, places of the matrix in V, and what halves the off-diagonal entries."""
    rows, cols = np.triu_indices(d)
    places = np.zeros((d, d), np.int64)
    places[rows, cols] = places[cols, rows] = np.arange(rows.size)
    weight = np.where(rows == cols, 1.0, 0.5).astype(np.float32)
    return tuple(torch.from_numpy(values).to(device) for values in (rows * d + cols, places.reshape(-1), weight))


class SymmetricVector(torch.autograd.Function):
    """V of symmetric matrices, with the symmetrised gradient."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, scale: float) -> Tensor:
        """`(N, d, d) -> (N, d(d+1)/2)`."""
        ctx.d, ctx.scale = c.shape[1], scale
        return c.flatten(1).index_select(1, tables(ctx.d, c.device)[0]).mul_(scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tuple[Tensor, None]:
        """(G + G^T) / 2."""
        _, places, weight = tables(ctx.d, g.device)
        return (g * (weight * ctx.scale)).index_select(1, places).view(-1, ctx.d, ctx.d), None


class Gram(torch.autograd.Function):
    """A A^T with the gradient 2 G A of a symmetric cotangent."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        """`(N, d, M) -> (N, d, d)`."""
        ctx.save_for_backward(a)
        return torch.bmm(a, a.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """One product."""
        (a,) = ctx.saved_tensors
        return torch.baddbmm(a, g, a, beta=0, alpha=2)


class ScaledGram(torch.autograd.Function):
    """diag(s) A A^T diag(s), with gradients for A and s."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, s: Tensor) -> Tensor:
        """`(N, d, M), (N, d) -> (N, d, d)`."""
        c = torch.bmm(a, a.transpose(1, 2))
        ctx.save_for_backward(a, s, c)
        return c * (s[:, :, None] * s[:, None, :])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tuple[Tensor, Tensor]:
        """One product for A, one matrix-vector product for s."""
        a, s, c = ctx.saved_tensors
        ds = torch.bmm(g * c, s[:, :, None]).squeeze(-1).mul_(2)
        return torch.baddbmm(a, g * (s[:, :, None] * s[:, None, :]), a, beta=0, alpha=2), ds


class SpectralFunction(torch.autograd.Function):
    """U f(lambda) U^T of A A^T / M with the Loewner matrix as derivative."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, f: Callable, slope: Callable, parameter: Optional[Callable]) -> Tensor:
        """Eigenvalues in float64, as the other side does."""
        a64 = a.double()
        lam64, u64 = torch.linalg.eigh(torch.bmm(a64, a64.transpose(1, 2)) / a.shape[-1])
        lam64 = torch.where(lam64 > 1e-10 * lam64[:, -1:], lam64, 0.0)
        lam, u = lam64.float(), u64.float()
        p = parameter(lam) if parameter is not None else None
        value = f(lam, p)
        ctx.slope, ctx.p = slope, p
        ctx.save_for_backward(a, lam, u, value)
        return torch.bmm(u * value[:, None, :], u.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tuple[Tensor, None, None, None]:
        """Divided differences, f' where eigenvalues meet."""
        a, lam, u, value = ctx.saved_tensors
        slope = ctx.slope(lam, ctx.p)
        x, y = lam[:, :, None], lam[:, None, :]
        difference = x - y
        near = difference.abs() <= 1e-2 * torch.maximum(x, y)
        k = (value[:, :, None] - value[:, None, :]) / difference.masked_fill(near, 1.0)
        k = torch.where(near, 0.5 * (slope[:, :, None] + slope[:, None, :]), k)
        inner = torch.bmm(u.transpose(1, 2), torch.bmm(g, u)).mul_(k)
        dc = torch.bmm(torch.bmm(u, inner), u.transpose(1, 2))
        return torch.baddbmm(a, dc, a, beta=0, alpha=2 / a.shape[-1]), None, None, None
