"""The poolings in PyTorch, eager mode, written to be fast: the peer that `benchmarks/pooling.py` compares with.

Every function maps `(N, d, M)` features to `(N, d(d+1)/2)`, float32, as `covpool.pooling` does for (N, d, H, W). What
eager mode gains from is used: fused multiply-adds (`baddbmm`), `index_select`, hand-written backward functions where
they save passes, and no host synchronisation.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, Optional, Tuple

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


def centred(x: Tensor) -> Tensor:
    """The map minus its mean; the mean needs no gradient."""
    return x - x.detach().mean(-1, keepdim=True)


def gap(x: Tensor) -> Tensor:
    """Mean over positions."""
    return x.mean(-1)


def gcp(x: Tensor) -> Tensor:
    """Plain covariance pooling."""
    return SymmetricVector.apply(Gram.apply(centred(x)), 1 / x.shape[-1])


def dropcov(x: Tensor, kernel: Tensor, training: bool) -> Tensor:
    """DropCov, released form, D = 10."""
    if not training:
        return gcp(x)
    n, d, m = x.shape
    mean = x.mean(-1)
    omega = torch.nn.functional.conv1d(mean[:, None], kernel, padding=1).squeeze(1).softmax(-1)
    a = x - mean.detach()[:, :, None]
    with torch.no_grad():
        scaled = (1 + omega)[:, :, None]
        # Row sums of the covariance without the covariance.
        pi = scaled * torch.bmm(a, torch.bmm(a.transpose(1, 2), scaled))
        rho = (1 - 10 / math.log2(d) * torch.cosine_similarity(omega, pi.squeeze(-1)).mean()).clamp(0.0, 0.95)
        keep = (torch.rand(n, d, device=x.device) >= rho) / (1 - rho)
    return SymmetricVector.apply(ScaledGram.apply(a, (1 + omega) * keep), 1 / m)


@functools.cache
def identity(d: int, device: torch.device) -> Tensor:
    """`(1, d, d)`."""
    return torch.eye(d, device=device)[None]


def fast_mpn(x: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz on -Y/2: a step is three products, one of them with the addition fused."""
    d = x.shape[1]
    c = Gram.apply(centred(x))
    trace = c.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    unit = 1.5 * identity(d, x.device)
    y = c * (-0.5 / trace)
    t = unit + y
    y, z = torch.bmm(y, t), t
    for _ in range(iterations - 2):
        t = torch.baddbmm(unit, z, y)
        y, z = torch.bmm(y, t), torch.bmm(t, z)
    y = torch.bmm(y, torch.baddbmm(unit, z, y))
    return SymmetricVector.apply(y * trace.sqrt(), -2 * x.shape[-1] ** -0.5)


def maxexp(x: Tensor) -> Tensor:
    """MaxExp with eta = 20."""
    c = Gram.apply(centred(x))
    a = c / (c.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None] + 1e-6 * x.shape[-1])
    e = a
    for bit in (False, True, False, False):  # 10100 in binary
        e = torch.baddbmm(e, e, e, beta=2, alpha=-1)
        if bit:
            e = torch.baddbmm(e + a, e, a, alpha=-1)
    return SymmetricVector.apply(e, 1.0)


def signed_root_l2(v: Tensor) -> Tensor:
    """Signed root with unit length."""
    size = v.abs()
    return v.sign() * (size / size.sum(-1, keepdim=True)).sqrt()


def bcnn(x: Tensor) -> Tensor:
    """B-CNN."""
    return signed_root_l2(gcp(x))


def sigme(x: Tensor) -> Tensor:
    """SigmE as a hyperbolic tangent."""
    return torch.tanh(0.5 * gcp(x))


def layernorm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Layer normalisation of the covariance vector."""
    return torch.nn.functional.layer_norm(gcp(x), gamma.shape, gamma, beta)


def _spectral(x: Tensor, f: Callable, slope: Callable, parameter: Optional[Callable] = None) -> Tensor:
    return SymmetricVector.apply(SpectralFunction.apply(centred(x), f, slope, parameter), 1.0)


def logm(x: Tensor) -> Tensor:
    """DeepO2P."""
    return _spectral(x, lambda lam, _: (lam + 1e-3).log(), lambda lam, _: 1 / (lam + 1e-3))


def ilogm(x: Tensor) -> Tensor:
    """I-LogM."""
    return _spectral(x, lambda lam, _: 1e-3 * (lam / 1e-3).log1p(), lambda lam, _: 1e-3 / (lam + 1e-3))


def _power(lam: Tensor, alpha: Any) -> Tensor:
    return torch.where(lam > 0, lam**alpha, 0.0)


def _power_slope(lam: Tensor, alpha: Any) -> Tensor:
    return torch.where(lam > 0, alpha * lam ** (alpha - 1), 0.0)


def mpn(x: Tensor) -> Tensor:
    """MPN-COV, the square root."""
    return _spectral(x, lambda lam, _: lam.sqrt(), lambda lam, _: _power_slope(lam, 0.5))


def ibcnn(x: Tensor) -> Tensor:
    """IB-CNN."""
    return signed_root_l2(mpn(x))


def apn(x: Tensor) -> Tensor:
    """APN with tau = 4 and c = 0.1."""

    def alpha(lam: Tensor) -> Tensor:
        s = lam.clamp(min=1e-30).log()[:, None, :]
        slope = lam.amax(-1, keepdim=True).log() - lam.amin(-1, keepdim=True).clamp(min=0.1).log()
        grid = torch.linspace(0.1, 1, 48, device=lam.device)[None]
        p = (s * grid[:, :, None]).softmax(-1)
        best = (grid * slope - 4 * torch.xlogy(p, p).sum(-1)).argmax(-1, keepdim=True)
        reach = 0.9 / 47
        points = (best * reach + 0.1 + torch.linspace(-reach, reach, 48, device=lam.device)).clamp(0.1, 1)
        p = (s * points[:, :, None]).softmax(-1)
        variance = (p * (s - (p * s).sum(-1, keepdim=True)) ** 2).sum(-1)
        rising = (slope - 4 * points * variance > 0).sum(-1, keepdim=True)
        return ((best - 1) * reach + (rising - 0.5) * 2 * reach / 47 + 0.1).clamp(0.1, 1)

    return _spectral(x, _power, _power_slope, alpha)


def poolings(d: int, device: str = "cpu") -> Dict[str, Callable[[Tensor, bool], Tensor]]:
    """Every pooling for d channels by name, `(features, training) -> vector`, with its parameters."""
    k = d * (d + 1) // 2
    kernel = torch.tensor([[[0.3, -0.2, 0.5]]], device=device, requires_grad=True)
    gamma = torch.ones(k, device=device, requires_grad=True)
    beta = torch.zeros(k, device=device, requires_grad=True)
    found: Dict[str, Callable[[Tensor, bool], Tensor]] = {
        f.__name__: _without_training(f)
        for f in (gap, gcp, fast_mpn, bcnn, sigme, logm, ilogm, mpn, apn, ibcnn, maxexp)
    }
    found["dropcov"] = lambda x, training: dropcov(x, kernel, training)
    found["layernorm"] = lambda x, training: layernorm(x, gamma, beta)
    found["bcnn_lt"] = lambda x, training: torch.addcmul(beta, gamma, bcnn(x))
    found["ibcnn_lt"] = lambda x, training: torch.addcmul(beta, gamma, ibcnn(x))
    return found


def _without_training(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    return lambda x, training: f(x)
