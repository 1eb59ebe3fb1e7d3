"""Plots that are legible without colour; the picture of a run: loss, accuracy and rate over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def plot_curves(epochs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the epoch records of ``metrics.jsonl``; without any, nothing is written.

    Args:
        epochs: Records with ``epoch``, ``loss``, ``learning_rate`` and, where it was evaluated, ``eval_loss``,
            ``top_1_accuracy`` and ``top_5_accuracy``.
        path: PNG file.
    """
    if not epochs:
        return
    from matplotlib.ticker import MaxNLocator

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
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)
