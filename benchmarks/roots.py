"""MTP against Fast-MPN: how close the root and its gradient come to the exact ones, by terms and by iterations.

Features as in benchmarks/pooling.py, one image, 14x14 positions (full rank up to d = 128, deficient at 256). References
are float64: U lambda^(1/2) U^T and its derivative. Errors are Frobenius norms relative to those of the reference. The
gradient is that of V with a random cotangent with respect to the features. Writes roots.md, roots.json and roots.png.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import CORES, arguments_of, environment, heading, report, say, table
from benchmarks.pooling import data, gradient_step

CASES: list[tuple[str, dict[str, Any]]] = [("fast_mpn", {"iterations": n}) for n in (1, 2, 3, 5, 7, 10)]
CASES += [("mtp", {"terms": n, "gradient": g}) for n in (3, 5, 10, 20, 30) for g in ("exact", "lyapunov")]


def products(name: str, args: dict[str, Any]) -> tuple[int, int]:
    """Products of two d x d matrices in the value and in its gradient."""
    if name == "fast_mpn":
        n = 3 * args["iterations"] - 3 if args["iterations"] > 1 else 1
        return n, 2 * n
    block = int(args["terms"] ** 0.5)
    n = block - 1 + (args["terms"] - 1) // block
    return n, 2 * n if args["gradient"] == "exact" else n + 8 * 5


def exact(x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """V of the root of one image's covariance in float64, and the gradient of sum(V * g)."""
    d = x.shape[1]
    a = x.reshape(d, -1).astype(np.float64)
    a -= a.mean(1, keepdims=True)
    lam, u = np.linalg.eigh(a @ a.T / a.shape[1])
    root = np.where(lam > 1e-12 * lam[-1], np.sqrt(np.maximum(lam, 0)), 0)
    rows, cols = np.triu_indices(d)
    full = np.zeros((d, d))
    full[rows, cols] = g[0]
    sums = root[:, None] + root
    k = np.divide(1, sums, out=np.zeros((d, d)), where=sums > 0)
    dc = u @ (k * (u.T @ (full + full.T) @ u) / 2) @ u.T
    return ((u * root) @ u.T)[rows, cols], (2 / a.shape[1] * dc @ a).reshape(x.shape)


def weighted(v: np.ndarray, d: int) -> np.ndarray:
    """V with the off-diagonal entries times sqrt(2): its norm is the Frobenius norm of the matrix."""
    rows, cols = np.triu_indices(d)
    return v * np.where(rows == cols, 1, 2**0.5)


def relative(value: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference, relative."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors, products and milliseconds of a training step of every case."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from covpool.pooling import create_pooling

    ms.set_context(mode=ms.GRAPH_MODE, runtime_num_threads=args.threads)
    found = []
    for d in args.channels:
        x, g = data(args.batch, d)
        root, slope = exact(x[:1], g[:1])
        for name, own in CASES:
            step = gradient_step(create_pooling(name, d, **own))
            features, cotangent = ms.Tensor(x), ms.Tensor(g.astype(np.float32))
            times = []
            for _ in range(args.rounds + 1):
                start = time.perf_counter()
                out, grad = (t.asnumpy() for t in step(features, cotangent)[:2])
                times.append(time.perf_counter() - start)
            value = relative(weighted(out[0], d), weighted(root, d))
            forward, backward = products(name, own)
            found.append({"d": d, "pooling": name, **own, "value": value, "gradient_error": relative(grad[:1], slope)})
            found[-1] |= {"forward": forward, "backward": backward}
            found[-1]["ms"] = 1e3 * statistics.median(times[1:]) / args.batch
            say(f"d={d} {name} {own}: value {value:.1e}, gradient {found[-1]['gradient_error']:.1e}")
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as tables."""
    rows = []
    for c in found["cases"]:
        steps = c.get("iterations", c.get("terms"))
        errors = [f"{c['value']:.1e}", f"{c['gradient_error']:.1e}"]
        rows.append([c["d"], c["pooling"], steps, c.get("gradient", "exact"), c["forward"], c["backward"], *errors])
        rows[-1].append(f"{c['ms']:.2f}")
    titles = ["d", "pooling", "iterations / terms", "gradient", "products forward", "backward"]
    titles += ["error of the root", "error of the gradient", "ms an image, training"]
    return "\n".join(["# Roots by products", "", *heading(found["about"]), *table(titles, rows)]) + "\n"


def chart(cases: list[dict[str, Any]], path: Path) -> None:
    """Error of root and gradient over the number of products, a column for each d."""
    from covpool.plots import COLOURS, new_figure, save

    widths = sorted({c["d"] for c in cases})
    figure = new_figure(4 * len(widths), 6)
    axes = figure.subplots(2, len(widths), squeeze=False, sharey="row")
    lines = (("fast_mpn", None, "Fast-MPN"), ("mtp", "exact", "MTP, exact"), ("mtp", "lyapunov", "MTP, Lyapunov"))
    for column, d in enumerate(widths):
        for row, (error, cost) in enumerate((("value", "forward"), ("gradient_error", "backward"))):
            axis = axes[row][column]
            for number, (name, gradient, label) in enumerate(lines):
                own = [c for c in cases if (c["d"], c["pooling"], c.get("gradient")) == (d, name, gradient)]
                if row or gradient != "lyapunov":  # the value is the same
                    points = sorted((c[cost], c[error]) for c in own)
                    axis.plot(*zip(*points), marker="o", label=label, color=COLOURS[number + 1])
            axis.set_yscale("log")
            axis.set_xlabel(f"products, {cost}")
            axis.set_title(f"d = {d}, {'gradient' if row else 'root'}")
            axis.grid(alpha=0.3)
        axes[0][column].set_ylabel("relative error")
    axes[1][0].legend()
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    """Measure, write the three files."""
    parser = arguments_of(__doc__)
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=CORES)
    args = parser.parse_args(argv)
    settings = {key: getattr(args, key) for key in ("threads", "batch", "rounds")}
    found: dict[str, Any] = {"about": environment(("mindspore", "numpy"), positions=196, **settings)}
    found["cases"] = measure(args)
    report(args.output, "roots", found, markdown)
    if args.output:
        chart(found["cases"], args.output / "roots.png")


if __name__ == "__main__":
    main()
