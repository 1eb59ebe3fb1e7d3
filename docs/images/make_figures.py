"""Draws the figures of the README, of docs/how-it-works.md and the textures of docs/tutorial.md.

    python docs/images/make_figures.py [--output DIR]

The image is one of data/fashion_mnist_sample. Sixteen oriented filters and a ReLU stand in for a trained network. All
that follows is computed: roots by the project's pooling, covariances and rates by the formulas of the text.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Optional

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import ConnectionPatch
from PIL import Image

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "data/fashion_mnist_sample/train/ankle_boot/00317.png"
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"  # of Okabe and Ito: told apart by everybody
DIVERGING, FEATURES = "RdBu_r", "viridis"
D = 10.0  # DropCov's D


def features(image: np.ndarray) -> np.ndarray:
    """Responses of 16 oriented filters after a ReLU, float64 (16, H, W)."""
    border = 14  # so that responses do not wrap around
    padded = np.pad(image, border)
    fy, fx = np.meshgrid(*(np.fft.fftfreq(n) for n in padded.shape), indexing="ij")
    spectrum = np.fft.fft2(padded)
    maps = []
    for radius in (0.08, 0.2):
        for k in range(8):
            angle = math.pi * k / 4
            centre = radius * np.array([math.cos(angle), math.sin(angle)])
            window = np.exp(-((fx - centre[0]) ** 2 + (fy - centre[1]) ** 2) / (2 * (radius / 2) ** 2))
            response = np.fft.ifft2(spectrum * window)[border:-border, border:-border]
            maps.append(response.real if k < 4 else -response.imag)
    x = np.maximum(np.stack(maps), 0.0)
    return x / x.std()


def covariance(x: np.ndarray) -> np.ndarray:
    """C = (1/M) (X - mean) (X - mean)^T, `(d, H, W) -> (d, d)`."""
    flat = x.reshape(len(x), -1)
    centred = flat - flat.mean(1, keepdims=True)
    return centred @ centred.T / flat.shape[1]


def pooled(name: str, x: np.ndarray, **arguments: Any) -> np.ndarray:
    """The matrix that the project's pooling makes of a feature map, `(d, H, W) -> (d, d)`."""
    import mindspore as ms

    from covpool.pooling import create_pooling

    d = len(x)
    vector = create_pooling(name, channels=d, **arguments)(ms.Tensor(x[None].astype(np.float32))).asnumpy()[0]
    rows, columns = np.triu_indices(d)
    matrix = np.zeros((d, d))
    matrix[rows, columns] = matrix[columns, rows] = vector
    return matrix


def matrix_image(axes: Any, matrix: np.ndarray, title: str, limit: Optional[float] = None) -> None:
    """A symmetric matrix in colours, zero in white; `limit` is the darkest value."""
    limit = limit or float(np.abs(matrix).max())
    axes.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit)
    axes.set(xticks=[], yticks=[], title=title)


def blank(axes: Any, title: str) -> None:
    """Axes without a frame."""
    axes.axis("off")
    axes.set_box_aspect(1)
    axes.set(xlim=(0, 1), ylim=(0, 1), title=title)


def overview(folder: Path) -> None:
    """Image, features, covariance, normalisation, classifier in one row."""
    image = np.asarray(Image.open(IMAGE), float) / 255.0
    x = features(image)
    c, root = covariance(x), pooled("fast_mpn", x)
    figure, axes = plt.subplots(1, 5, figsize=(13, 3.1), gridspec_kw={"wspace": 0.5, "width_ratios": [1] * 5})
    axes[0].imshow(image, cmap="gray")
    axes[0].set(xticks=[], yticks=[], title="image")
    blank(axes[1], "features X")
    for k, channel in enumerate((1, 0, 3, 2)):
        tile = axes[1].inset_axes((0.17 * k, 0.51 - 0.17 * k, 0.49, 0.49))
        tile.imshow(x[channel], cmap=FEATURES)
        tile.set(xticks=[], yticks=[])
    matrix_image(axes[2], c, "covariance C")
    matrix_image(axes[3], root, "normalised, e.g. $C^{1/2}$")
    blank(axes[4], "vector, classifier")
    vector = root[np.triu_indices(len(root))]
    strip = axes[4].inset_axes((0.1, 0.0, 0.14, 1.0))
    limit = np.abs(vector).max()
    strip.imshow(vector[:34, None], cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    strip.set(xticks=[], yticks=[])
    classes = np.linspace(0.15, 0.85, 4)
    for start in np.linspace(0.05, 0.95, 9):
        for end in classes:
            axes[4].plot([0.27, 0.82], [start, end], color=GRAY, linewidth=0.4)
    axes[4].scatter(np.full(4, 0.85), classes, s=80, color=BLUE, zorder=3)
    captions = ("", "$d$ channels,\n$M = H W$ positions", "$d \\times d$", "$d \\times d$", "$d(d+1)/2$ features")
    for box, caption in zip(axes, captions):
        box.text(0.5, -0.06, caption, transform=box.transAxes, ha="center", va="top", fontsize=10, color=GRAY)
    for left, right, label in zip(axes[:-1], axes[1:], ("network", "products", "root", "triangle")):
        style = {"coordsA": left.transAxes, "coordsB": right.transAxes, "arrowstyle": "-|>", "color": GRAY}
        patch = ConnectionPatch((1.06, 0.5), (-0.08, 0.5), mutation_scale=18, linewidth=1.6, **style)
        figure.add_artist(patch)
        a, b = left.get_position(), right.get_position()
        figure.text((a.x1 + b.x0) / 2, (a.y0 + a.y1) / 2 + 0.06, label, ha="center", fontsize=10, color=GRAY)
    save(figure, folder / "overview.png")


def dropcov(folder: Path) -> None:
    """Channel importance, row sums, the rate from their cosine, and a covariance after dropping."""
    x = features(np.asarray(Image.open(IMAGE), float) / 255.0)
    d = len(x)
    rng = np.random.default_rng(2)
    mean = x.mean((1, 2))
    kernel = np.array([0.3, 0.55, -0.2])  # three taps, within 1 / sqrt(3) as at the start of a training
    logits = np.convolve(np.pad(mean, 1), kernel[::-1], "valid")
    omega = np.exp(logits - logits.max())
    omega /= omega.sum()
    scaled = x * (1.0 + omega)[:, None, None]
    pi = covariance(scaled).sum(1)
    cosine = float(omega @ pi / np.linalg.norm(omega) / np.linalg.norm(pi))
    rho = 0.25  # what the figure drops with; at d = 16 the formula gives 0 above a cosine of 0.4
    keep = rng.random(d) >= rho
    dropped = scaled * (keep / (1.0 - rho))[:, None, None]

    figure, axes = plt.subplots(
        1, 4, figsize=(13, 3.3), gridspec_kw={"wspace": 0.35, "width_ratios": [1.25, 1.25, 1, 1]}
    )
    places = np.arange(d)
    axes[0].bar(places - 0.2, omega / np.linalg.norm(omega), 0.4, color=BLUE, label=r"importance $\omega$")
    axes[0].bar(places + 0.2, pi / np.linalg.norm(pi), 0.4, color=ORANGE, label=r"correlation $\pi$")
    axes[0].set(title=rf"1. channels: $\cos(\omega, \pi) = {cosine:.2f}$", xlabel="channel", xticks=places[::5])
    axes[0].set_ylim(0, 1.55 * max((omega / np.linalg.norm(omega)).max(), (pi / np.linalg.norm(pi)).max()))
    axes[0].legend(frameon=False, fontsize=9, loc="upper right")
    cosines = np.linspace(0, 1, 201)
    for channels, colour in ((64, BLUE), (128, ORANGE), (256, GREEN)):
        rate = np.clip(1.0 - D / math.log2(channels) * cosines, 0.0, 0.95)
        axes[1].plot(cosines, rate, color=colour, label=f"d = {channels}")
    axes[1].set(title=r"2. rate $\rho$", xlabel=r"mean $\cos(\omega, \pi)$", xlim=(0, 1), ylim=(0, 1))
    axes[1].legend(frameon=False, fontsize=9)
    limit = float(np.abs(covariance(dropped)).max())
    matrix_image(axes[2], covariance(scaled), "covariance of X", limit)
    matrix_image(axes[3], covariance(dropped), f"3. with {int((~keep).sum())} of {d} dropped", limit)
    for k in places[~keep]:
        axes[3].text(-1.1, k, "x", ha="center", va="center", fontsize=9, color=ORANGE)
    save(figure, folder / "dropcov.png")


def newton_schulz(value: np.ndarray, iterations: int) -> np.ndarray:
    """What the iteration does to an eigenvalue of A: the scalar form of Fast-MPN, counted as in the released code."""
    y, z = value, np.ones_like(value)
    for _ in range(iterations):
        t = 0.5 * (3.0 - z * y)
        y, z = y * t, z * t
    return y


def fast_mpn(folder: Path) -> None:
    """A covariance and its root, the spectrum of both, and the iteration on one eigenvalue."""
    x = features(np.asarray(Image.open(IMAGE), float) / 255.0)
    c, root = covariance(x), pooled("fast_mpn", x)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), gridspec_kw={"wspace": 0.35, "width_ratios": [1, 1, 1.3, 1.3]})
    matrix_image(axes[0], c, "covariance C")
    matrix_image(axes[1], root, "Fast-MPN, 5 iterations")
    places = np.arange(1, len(c) + 1)
    for matrix, colour, label in ((c, BLUE, "C"), (root, ORANGE, "Fast-MPN")):
        spectrum = np.linalg.eigvalsh(matrix)[::-1]
        axes[2].semilogy(places, spectrum / spectrum[0], ".-", color=colour, label=label)
    axes[2].set(title="eigenvalues, the largest = 1", xlabel="number", xticks=places[::5])
    axes[2].legend(frameon=False, fontsize=9)
    value = np.logspace(-4, 0, 200)
    for iterations, colour in ((1, BLUE), (3, ORANGE), (5, GREEN), (10, "#CC79A7")):
        axes[3].loglog(value, newton_schulz(value, iterations), color=colour, label=f"iterations = {iterations}")
    axes[3].loglog(value, np.sqrt(value), "--", color="black", linewidth=1, label="square root")
    axes[3].set(title="result for an eigenvalue of $A = C / \\mathrm{tr}(C)$", xlabel="eigenvalue", ylim=(2e-6, 1.5))
    axes[3].legend(frameon=False, fontsize=9)
    save(figure, folder / "fast_mpn.png")


def tutorial_textures(folder: Path) -> None:
    """A texture of each class of `covpool make-textures --strength 0.3`, above the correlations of its channels."""
    from covpool.data.textures import Textures

    textures = Textures(strength=0.3)
    figure, axes = plt.subplots(1, textures.classes, figsize=(13, 2.6), gridspec_kw={"wspace": 0.08})
    for label in range(textures.classes):
        correlation = textures.correlation(label)[np.triu_indices(3, 1)]
        red_green, red_blue, green_blue = (f"{value:+.2f}".replace("+0.00", "0") for value in correlation)
        axes[label].imshow(next(textures.images(label, 1, 0)))
        axes[label].set_title(f"texture_{label}\nRG {red_green}  RB {red_blue}  GB {green_blue}", fontsize=8)
        axes[label].axis("off")
    save(figure, folder / "tutorial_textures.png")


def save(figure: Any, path: Path) -> None:
    """Write a figure and forget it."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documents.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the PNG files")
    folder = parser.parse_args().output
    for draw in (overview, dropcov, fast_mpn, tutorial_textures):
        draw(folder)


if __name__ == "__main__":
    main()
