"""Plots that are legible without colour; the pictures of a run: its curves, what it confuses, its worst mistakes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covpool.runtime.files import whole_file

# Okabe and Ito's colours, which differ for every kind of colour vision, from dark to light.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of the series with this number: each alone tells series apart."""
    pick = index % len(COLOURS)
    return {"color": COLOURS[pick], "linestyle": LINES[pick], "marker": MARKERS[pick], "markersize": 5}


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks shows as boxes
        figure.savefig(temporary, dpi=110)


def name_axes(axes: Any, ylabel: str, xlabel: str = "epoch") -> None:
    """Name the axes of curves over epochs and draw a grid."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_band(axes: Any, index: int, label: str, x: Sequence[float], mean: Any, low: Any, high: Any) -> None:
    """Draw the series with this number: its mean, with a band from ``low`` to ``high``."""
    look = style(index)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(x, mean, label=label, **look)


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend below all panels of a figure, of the series in one of them."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=4)


def plot_curves(epochs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the epoch records of ``metrics.jsonl``; without any, nothing is written."""
    if not epochs:
        return
    figure = new_figure(11, 3.4)
    loss, accuracy, rate = figure.subplots(1, 3)
    evaluated = [e for e in epochs if "eval_loss" in e]
    x, x_evaluated = [e["epoch"] for e in epochs], [e["epoch"] for e in evaluated]
    loss.plot(x, [e["loss"] for e in epochs], "-o", ms=3, label="training")
    if evaluated:
        loss.plot(x_evaluated, [e["eval_loss"] for e in evaluated], "--s", ms=3, label="evaluation")
        for key, style, name in (("top_1_accuracy", "-o", "top-1"), ("top_5_accuracy", "--s", "top-5")):
            accuracy.plot(x_evaluated, [100 * e[key] for e in evaluated], style, ms=3, label=name)
        accuracy.legend()
    loss.legend()
    rate.plot(x, [e["learning_rate"] for e in epochs], "-o", ms=3)
    for axes, name in ((loss, "loss (cross entropy)"), (accuracy, "accuracy (%)"), (rate, "learning rate")):
        name_axes(axes, name)
    save(figure, path)


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw the images by true class (row) and predicted class (column), (K, K), of the K names.

    Shades are parts of the true class; numbers count images, where there is room.
    """
    from matplotlib.colors import PowerNorm

    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2.5 + 0.42 * classes, 13)
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, 0, 1))  # a mistake of 2 % is seen, too
    figure.colorbar(drawn, ax=axes, label="part of the true class", shrink=0.7)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if classes <= 100:
        font = {"fontsize": 9 if classes <= 30 else 5, "parse_math": False}
        short = [_short(name) for name in names]
        axes.set_xticks(range(classes), short, rotation=45 if classes <= 30 else 90, ha="right", va="top", **font)
        axes.set_yticks(range(classes), short, **font)
    if classes <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                shade = "white" if shares[row, column] > 0.3 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=shade)
    save(figure, path)


def plot_mistakes(mistakes: Sequence[tuple[np.ndarray, str]], path: Path) -> None:
    """Draw images, uint8 (H, W, 1 or 3), with a text below each, five in a row; without any, a line that says so."""
    columns, rows = min(max(len(mistakes), 2), 5), max(-(-len(mistakes) // 5), 1)
    figure = new_figure(2.4 * columns, 3 * rows)
    axes = figure.subplots()
    for number, (image, text) in enumerate(mistakes):
        row, column = 1.25 * (number // 5), number % 5  # in widths of a picture
        height, width = image.shape[:2]
        half = 0.45 * np.array([width, height]) / max(width, height)
        left, right = column - half[0], column + half[0]
        shown = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        axes.imshow(shown, extent=(left, right, row + half[1], row - half[1]), interpolation="nearest")
        lines = "\n".join(_short(line, 26) for line in text.split("\n"))
        axes.text(column, row + 0.48, lines, ha="center", va="top", fontsize=9, parse_math=False)
    if not mistakes:
        axes.text(0.5, 0, "no mistakes", ha="center", va="center", fontsize=14)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(1.25 * rows - 0.5, -0.5))
    axes.set_axis_off()
    save(figure, path)


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}\u2026"
