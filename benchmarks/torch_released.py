"""Plain pooling, DropCov and Fast-MPN in PyTorch, in the steps of the authors' released code.

Own code after the published algorithm: the covariance through a centring matrix of M x M, the triangle by the places of
non-zero entries, the hand-written backward of the iteration, DropCov's rate on the host and its row sums from a second
covariance.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor


class Covariance(torch.autograd.Function):
    """X I X^T with the centring matrix I."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`(N, d, M) -> (N, d, d)`."""
        n, _, m = x.shape
        centring = (-1.0 / m / m) * torch.ones(m, m) + (1.0 / m) * torch.eye(m)
        centring = centring.view(1, m, m).repeat(n, 1, 1)
        ctx.save_for_backward(x, centring)
        return x.bmm(centring).bmm(x.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """(G + G^T) X I."""
        x, centring = ctx.saved_tensors
        return (g + g.transpose(1, 2)).bmm(x).bmm(centring)


class Triangle(torch.autograd.Function):
    """The upper triangle as a vector."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """`(N, d, d) -> (N, d(d+1)/2, 1)`."""
        n, d, _ = x.shape
        index = torch.ones(d, d).triu().reshape(d * d).nonzero()
        ctx.save_for_backward(x, index)
        return x.reshape(n, d * d)[:, index]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Zeros below the diagonal."""
        x, index = ctx.saved_tensors
        n, d, _ = x.shape
        grad = torch.zeros(n, d * d)
        grad[:, index] = g
        return grad.reshape(n, d, d)


class Root(torch.autograd.Function):
    """Newton-Schulz with its hand-written backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int) -> Tensor:
        """`(N, d, d) -> (N, d, d)`; every iterate is kept."""
        n, d, _ = x.shape
        unit3 = 3.0 * torch.eye(d, d).view(1, d, d).repeat(n, 1, 1)
        norm = (1.0 / 3.0) * x.mul(unit3).sum(dim=1).sum(dim=1)
        a = x.div(norm.view(n, 1, 1).expand_as(x))
        ys, zs = torch.zeros(n, steps, d, d), torch.eye(d, d).view(1, d, d).repeat(n, steps, 1, 1)
        t = 0.5 * (unit3 - a)
        ys[:, 0], zs[:, 0] = a.bmm(t), t
        for i in range(1, steps - 1):
            t = 0.5 * (unit3 - zs[:, i - 1].bmm(ys[:, i - 1]))
            ys[:, i], zs[:, i] = ys[:, i - 1].bmm(t), t.bmm(zs[:, i - 1])
        last = 0.5 * ys[:, steps - 2].bmm(unit3 - zs[:, steps - 2].bmm(ys[:, steps - 2]))
        ctx.save_for_backward(x, a, last, norm, ys, zs)
        ctx.steps = steps
        return last * torch.sqrt(norm).view(n, 1, 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tuple[Tensor, None]:
        """The published formulas, with the loop over the batch for the trace."""
        x, a, last, norm, ys, zs = ctx.saved_tensors
        steps, (n, d, _) = ctx.steps, x.shape
        post = g * torch.sqrt(norm).view(n, 1, 1)
        aux = (g * last).sum(dim=1).sum(dim=1).div(2 * torch.sqrt(norm))
        unit3 = 3.0 * torch.eye(d, d).view(1, d, d).repeat(n, 1, 1)
        y, z = ys[:, steps - 2], zs[:, steps - 2]
        dy = 0.5 * (post.bmm(unit3 - y.bmm(z)) - z.bmm(y).bmm(post))
        dz = -0.5 * y.bmm(post).bmm(y)
        for i in range(steps - 3, -1, -1):
            y, z = ys[:, i], zs[:, i]
            yz, zy = unit3 - y.bmm(z), z.bmm(y)
            next_dy = 0.5 * (dy.bmm(yz) - z.bmm(dz).bmm(z) - zy.bmm(dy))
            dz = 0.5 * (yz.bmm(dz) - y.bmm(dy).bmm(y) - dz.bmm(zy))
            dy = next_dy
        da = 0.5 * (dy.bmm(unit3 - a) - dz - a.bmm(dy))
        da = da.transpose(1, 2)
        grad = da / norm.view(n, 1, 1)
        inner = (da.transpose(1, 2) * x).sum(dim=1).sum(dim=1)
        for i in range(n):
            grad[i] += (aux[i] - inner[i] / (norm[i] * norm[i])) * torch.eye(d)
        return grad, None


def gcp(x: Tensor) -> Tensor:
    """Plain covariance pooling."""
    return Triangle.apply(Covariance.apply(x)).squeeze(2)


def fast_mpn(x: Tensor) -> Tensor:
    """Fast-MPN, five steps."""
    return Triangle.apply(Root.apply(Covariance.apply(x), 5)).squeeze(2)


def dropcov(x: Tensor, kernel: Tensor, training: bool) -> Tensor:
    """DropCov: rescale, rate on the host, two-dimensional dropout, covariance."""
    if not training:
        return gcp(x)
    d = x.shape[1]
    y = torch.nn.functional.conv1d(x.mean(-1)[:, None], kernel, padding=1).transpose(1, 2).softmax(1)
    x = x * y.expand_as(x) + x
    rows = Covariance.apply(x).sum(-1)
    rate = 1 - 10 / math.log2(d) * torch.cosine_similarity(y.squeeze(-1), rows).mean().item()
    rate = min(max(rate, 0.0), 0.95)
    return gcp(torch.nn.functional.dropout2d(x[..., None], rate).squeeze(-1))


def poolings(d: int) -> Dict[str, Callable[[Tensor, bool], Tensor]]:
    """The three released poolings by name, `(features, training) -> vector`."""
    kernel = torch.tensor([[[0.3, -0.2, 0.5]]], requires_grad=True)
    return {
        "gcp": lambda x, training: gcp(x),
        "dropcov": lambda x, training: dropcov(x, kernel, training),
        "fast_mpn": lambda x, training: fast_mpn(x),
    }
