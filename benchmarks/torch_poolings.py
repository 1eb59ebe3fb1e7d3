"""The poolings in PyTorch, eager mode, written to be fast: the peer that `benchmarks/pooling.py` compares with.

Every function maps `(N, d, M)` features to `(N, d(d+1)/2)`, float32, as `covpool.pooling` does for (N, d, H, W). What
eager mode gains from is used: fused multiply-adds (`baddbmm`), `index_select`, hand-written backward functions where
they save passes, and no host synchronisation.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, Optional

import numpy as np
import torch
from torch import Tensor

from benchmarks.torch_functions import Gram, ScaledGram, SpectralFunction, SymmetricVector


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


def seb(x: Tensor) -> Tensor:
    """Scaling eigen branch: the norm by autograd through eigenvalues, the root by its own derivative."""
    root = SpectralFunction.apply(centred(x), lambda lam, _: lam.sqrt(), lambda lam, _: _power_slope(lam, 0.5), None)
    a = centred(x).double()
    lam = torch.linalg.eigvalsh(torch.bmm(a, a.transpose(1, 2)) / x.shape[-1]).clamp(min=0)
    scale = (lam * torch.exp(-2 * lam)).sum(-1).sqrt().float()
    return SymmetricVector.apply(root * (1 + scale[:, None, None]), 1.0)


def mtp(x: Tensor) -> Tensor:
    """Taylor polynomial of 10 terms by Paterson and Stockmeyer, exact gradient."""
    d = x.shape[1]
    c = Gram.apply(centred(x))
    norm = torch.linalg.matrix_norm(c)[:, None, None]
    unit = identity(d, x.device)
    z = torch.addcdiv(unit, c, norm, value=-1)
    z2 = torch.bmm(z, z)
    z3 = torch.bmm(z2, z)
    k = [1.0]
    for n in range(1, 11):
        k.append(k[-1] * (n - 1.5) / n)
    root = k[9] * unit + k[10] * z
    for first in (6, 3, 0):
        root = torch.baddbmm(k[first] * unit + k[first + 1] * z + k[first + 2] * z2, root, z3)
    return SymmetricVector.apply(root * norm.sqrt(), x.shape[-1] ** -0.5)


def cholesky(x: Tensor) -> Tensor:
    """Log-Cholesky in float64, PyTorch's own gradient."""
    a = centred(x).double()
    c = torch.baddbmm(1e-6 * identity(x.shape[1], x.device).double(), a, a.transpose(1, 2), alpha=1 / x.shape[-1])
    factor = torch.linalg.cholesky(c)
    rows, cols = np.triu_indices(x.shape[1])
    v = factor.flatten(1).index_select(1, torch.from_numpy(cols * x.shape[1] + rows).to(x.device))
    return torch.where(torch.from_numpy(rows == cols).to(x.device), v.log(), v).float()


def bdc(x: Tensor, temperature: Tensor) -> Tensor:
    """DeepBDC with the centring by sums; the diagonal of the distances is 0 by its mask."""
    d = x.shape[1]
    gram = torch.bmm(x, x.transpose(1, 2))
    norms = gram.diagonal(dim1=1, dim2=2)
    a = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp(min=0) * (1 - identity(d, x.device))
    b = (a * (temperature.exp() / (2 * x.shape[-1])) + 1e-5).sqrt()
    means = b.mean(-1)
    half = 0.5 * means.mean(-1, keepdim=True)
    return SymmetricVector.apply(b - (means - half)[:, :, None] - (means - half)[:, None, :], 1.0)


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
        for f in (gap, gcp, fast_mpn, bcnn, sigme, logm, ilogm, mpn, apn, ibcnn, maxexp, seb, mtp, cholesky)
    }
    found["dropcov"] = lambda x, training: dropcov(x, kernel, training)
    temperature = torch.zeros(1, 1, device=device, requires_grad=True)
    found["bdc"] = lambda x, training: bdc(x, temperature)
    found["layernorm"] = lambda x, training: layernorm(x, gamma, beta)
    found["bcnn_lt"] = lambda x, training: torch.addcmul(beta, gamma, bcnn(x))
    found["ibcnn_lt"] = lambda x, training: torch.addcmul(beta, gamma, ibcnn(x))
    return found


def _without_training(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor, bool], Tensor]:
    return lambda x, training: f(x)
