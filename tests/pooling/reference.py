"""Independent float64 NumPy references of the poolings, written for clarity: loops over samples, no tricks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import mindspore as ms
import numpy as np
from mindspore import nn
from scipy.special import binom

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def load(name: str) -> Dict[str, np.ndarray]:
    """All arrays of a fixture; a large one keeps the poolings that compute eigenvalues or roots in a second file."""
    arrays: Dict[str, np.ndarray] = {}
    for path in sorted(FIXTURES.glob(f"pooling_{name}*.npz")):
        with np.load(path) as data:
            arrays.update(data)
    return arrays


def cotangent(data: Dict[str, np.ndarray], shape: Tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(int(data["cotangent_seed"]))).standard_normal(shape)


def features(shape: Tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Maps with channels of different size and correlation, as a network gives, in float32."""
    rng = np.random.default_rng(seed)
    n, d, h, w = shape
    mixing = 0.3 * rng.standard_normal((d, d)) / np.sqrt(d) + np.diag(rng.uniform(0.8, 1.8, d))
    x = np.einsum("ij,njp->nip", mixing, rng.standard_normal((n, d, h * w))) + rng.uniform(0, 2, (1, d, 1))
    return x.reshape(shape).astype(np.float32)


def covariance(x: np.ndarray) -> np.ndarray:
    a = x.astype(np.float64).reshape(x.shape[0], x.shape[1], -1)
    a = a - a.mean(-1, keepdims=True)
    return a @ a.transpose(0, 2, 1) / a.shape[-1]


def triu(c: np.ndarray) -> np.ndarray:
    d = c.shape[-1]
    return np.stack([np.concatenate([m[i, i:] for i in range(d)]) for m in c])


def gap(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64).mean((2, 3))


def gcp(x: np.ndarray) -> np.ndarray:
    return triu(covariance(x))


def newton_schulz_scalar(a: np.ndarray, iterations: int) -> np.ndarray:
    """The iteration on eigenvalues: every iterate is a polynomial of the matrix."""
    if iterations == 1:
        return a * (3 - a) / 2
    y, z = a * (3 - a) / 2, (3 - a) / 2
    for _ in range(iterations - 2):
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    return y * (3 - z * y) / 2


def spectral(c: np.ndarray, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """U f(lambda) U^T of each matrix; negative rounding errors of eigenvalues are cut."""
    out = np.zeros_like(c)
    for i, m in enumerate(c):
        lam, u = np.linalg.eigh(m)
        out[i] = (u * f(cut(lam))) @ u.T
    return out


def fast_mpn(x: np.ndarray, iterations: int = 5) -> np.ndarray:
    c = covariance(x)
    trace = np.trace(c, axis1=1, axis2=2)
    safe = np.where(trace > 0, trace, 1.0)[:, None, None]
    return triu(spectral(c / safe, lambda a: newton_schulz_scalar(a, iterations)) * np.sqrt(trace)[:, None, None])


def ssqrt(v: np.ndarray) -> np.ndarray:
    return np.sign(v) * np.sqrt(np.abs(v))


def l2(v: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(v, axis=1, keepdims=True)
    return v / np.where(norm > 0, norm, 1.0)


def bcnn(x: np.ndarray) -> np.ndarray:
    return l2(ssqrt(gcp(x)))


def sigme(x: np.ndarray, slope: float = 1.0) -> np.ndarray:
    return np.tanh(0.5 * slope * gcp(x))


def layernorm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    v = gcp(x)
    return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + eps)


def cut(lam: np.ndarray) -> np.ndarray:
    """Rounding errors of zero eigenvalues, removed."""
    return np.where(lam > 1e-12 * max(lam.max(), 0.0), lam, 0.0)


def logm(x: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    return triu(spectral(covariance(x), lambda lam: np.log(cut(lam) + eps)))


def ilogm(x: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    return triu(spectral(covariance(x), lambda lam: eps * np.log1p(cut(lam) / eps)))


def mpn(x: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    return triu(spectral(covariance(x), lambda lam: cut(lam) ** alpha))


def ibcnn(x: np.ndarray) -> np.ndarray:
    return l2(ssqrt(mpn(x)))


def maxexp(x: np.ndarray, eta: int = 20, eps: float = 1e-6) -> np.ndarray:
    """1 - (1 - a)^eta on the eigenvalues, in a form that keeps its digits near 0."""
    c = covariance(x)
    a = c / (np.trace(c, axis1=1, axis2=2) + eps)[:, None, None]
    return triu(spectral(a, lambda lam: -np.expm1(eta * np.log1p(-np.minimum(lam, 1 - 1e-16)))))


def apn_objective(lam: np.ndarray, alpha: np.ndarray, tau: float = 4.0, floor: float = 0.1) -> np.ndarray:
    """The objective at every alpha, for the eigenvalues of one sample."""
    lam = cut(lam)
    present = lam[lam > 0]
    if not present.size:
        present = np.ones(1)
    p = present[None, :] ** alpha[:, None]
    p /= p.sum(1, keepdims=True)
    entropy = -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(1)
    return alpha * (np.log(max(lam.max(), 1e-30)) - np.log(max(floor, lam.min()))) + tau * entropy


def apn_alpha(x: np.ndarray, tau: float = 4.0, sign: float = 1.0, alpha_min: float = 0.1) -> np.ndarray:
    """Brute force over 4001 values, one alpha per sample."""
    grid = np.linspace(alpha_min, 1, 4001)
    return np.array([grid[np.argmax(sign * apn_objective(np.linalg.eigvalsh(c), grid, tau))] for c in covariance(x)])


def apn_at(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([mpn(x[i : i + 1], alpha[i]) for i in range(len(x))])


def bdc(x: np.ndarray, eps: float = 1e-5, t: float = 0.0) -> np.ndarray:
    """Distances one channel after the other, and centring as products with H = I - 11^T / d.

    sqrt(a + eps) without its value at 0, which the centring removes: small features need the digits.
    """
    n, d = x.shape[:2]
    points = x.astype(np.float64).reshape(n, d, -1)
    a = np.stack([((points - points[:, i : i + 1]) ** 2).sum(-1) for i in range(d)], 1)
    a *= np.exp(t) / (2 * points.shape[-1])
    h = np.eye(d) - 1 / d
    return triu(h @ (a / (np.sqrt(a + eps) + np.sqrt(eps))) @ h)


def cholesky(x: np.ndarray, eps: float = 1e-6, shifted: bool = False) -> np.ndarray:
    """Column by column, with the squared diagonal as s + eps; ``shifted`` leaves log(eps) / 2 out of the logarithms.

    So covariances far below eps keep their digits.
    """
    c = covariance(x)
    d = c.shape[1]
    factor, out = np.zeros_like(c), np.zeros_like(c)
    for j in range(d):
        rest = c[:, j:, j] - np.einsum("nik,nk->ni", factor[:, j:, :j], factor[:, j, :j])
        factor[:, j:, j] = rest / np.sqrt(rest[:, :1] + eps)
        factor[:, j, j] = np.sqrt(rest[:, 0] + eps)
        out[:, j, j:] = factor[:, j:, j]
        out[:, j, j] = 0.5 * np.log1p(rest[:, 0] / eps) + (0 if shifted else 0.5 * np.log(eps))
    return triu(out)


def seb(x: np.ndarray) -> np.ndarray:
    """The norm from the matrices."""
    c = covariance(x)
    root = spectral(c, lambda lam: np.sqrt(cut(lam)))
    balance = spectral(c, lambda lam: np.exp(-lam))
    norm = np.linalg.norm(root @ balance, axis=(1, 2))
    return triu(root * (1 + norm[:, None, None]))


def taylor_scalar(a: np.ndarray, terms: int = 10) -> np.ndarray:
    """The polynomial on eigenvalues."""
    return sum((-1) ** k * binom(0.5, k) * (1 - a) ** k for k in range(terms + 1))


def mtp(x: np.ndarray, terms: int = 10) -> np.ndarray:
    """The polynomial of C / ||C||, times sqrt(||C||)."""
    c = covariance(x)
    norm = np.linalg.norm(c, axis=(1, 2))
    safe = np.where(norm > 0, norm, 1.0)[:, None, None]
    return triu(spectral(c / safe, lambda a: taylor_scalar(a, terms)) * np.sqrt(norm)[:, None, None])


# Every pooling as it starts and is evaluated.
REFERENCES: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gap": gap,
    "apn": lambda x: apn_at(x, apn_alpha(x)),
    "bdc": bdc,
    "cholesky": cholesky,
    "mtp": mtp,
    "seb": seb,
    "bcnn": bcnn,
    "bcnn_lt": bcnn,
    "ibcnn": ibcnn,
    "ibcnn_lt": ibcnn,
    "ilogm": ilogm,
    "layernorm": layernorm,
    "logm": logm,
    "maxexp": maxexp,
    "mpn": mpn,
    "sigme": sigme,
    "gcp": gcp,
    "dropcov": gcp,
    "fast_mpn": fast_mpn,
}
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-4


def relative_error(value: Any, reference: np.ndarray) -> float:
    """Largest difference relative to the largest entry of the reference."""
    value = value.asnumpy() if isinstance(value, ms.Tensor) else value
    assert value.shape == reference.shape
    return float(np.abs(value.astype(np.float64) - reference).max() / np.abs(reference).max())


class Weighted(nn.Cell):
    """sum(cell(x) * g), a scalar whose gradient the tests look at, and cell(x) beside it: one graph for both."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x: ms.Tensor, g: ms.Tensor) -> Tuple[ms.Tensor, ms.Tensor]:
        out = self.cell(x)
        return (out * g).sum(), out


def value_and_gradient(cell: nn.Cell, x: np.ndarray, g: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """cell(x), and the gradient of sum(cell(x) * g) with respect to x."""
    step = ms.value_and_grad(Weighted(cell), has_aux=True)
    (_, out), dx = step(ms.Tensor(x), ms.Tensor(g.astype(np.float32)))
    return out.asnumpy(), dx.asnumpy()


def gradient(cell: nn.Cell, x: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Gradient of sum(cell(x) * g) with respect to x."""
    return value_and_gradient(cell, x, g)[1]


def gradients(cell: nn.Cell, x: np.ndarray, g: np.ndarray) -> Tuple[np.ndarray, Dict[str, np.ndarray]]:
    """Gradients with respect to x and to every trainable parameter, by name."""
    params = list(cell.trainable_params())
    step = ms.value_and_grad(Weighted(cell), 0, ms.ParameterTuple(params), has_aux=True)
    _, (dx, dw) = step(ms.Tensor(x), ms.Tensor(g.astype(np.float32)))
    return dx.asnumpy(), {p.name.replace("cell.", "", 1): w.asnumpy() for p, w in zip(params, dw)}


def directional_derivative(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, g: np.ndarray, v: np.ndarray, step: float = 1e-8
) -> float:
    """d/dt sum(f(x + t v) * g) at t = 0 by central differences in float64."""
    x = x.astype(np.float64)
    return float(((f(x + step * v) - f(x - step * v)) * g).sum() / (2 * step))
