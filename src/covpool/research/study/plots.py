"""Plots of studies: means over seeds with bands, legible without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covpool.research.study.runs import State
from covpool.research.study.spec import Run, Study
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


def plot_study(study: Study, states: Mapping[Run, State], path: Path) -> None:
    """Training loss and top-1 accuracy over epochs: mean of the finished seeds, band from the lowest to the highest.

    Nothing is written while no run is done.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 3.9)
    loss, accuracy = figure.subplots(1, 2)
    drawn = 0
    for index, group in enumerate(study.groups):
        runs = [state.epochs for run, state in states.items() if run.group == group and state.done]
        if not runs:
            continue
        drawn += 1
        band(loss, runs, "loss", index, f"{group.name} (n = {len(runs)})")
        band(accuracy, runs, "top_1_accuracy", index, f"{group.name} (n = {len(runs)})", 100)
    if not drawn:
        return
    for axes, label in ((loss, "training loss (cross entropy)"), (accuracy, "top-1 accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, drawn), frameon=False, handlelength=3.5)
    figure.suptitle(f"{study.title}: mean over seeds, band from lowest to highest")
    save(figure, path)


def plot_final(study: Study, states: Mapping[Run, State], path: Path) -> None:
    """Top-1 accuracy after the last epoch: a row per group, an open circle per finished seed, a mark at their mean.

    Nothing is written while no run is done.
    """
    groups = []
    for group in study.groups:
        runs = [state.epochs for run, state in states.items() if run.group == group and state.done]
        values = [100 * epochs[-1]["top_1_accuracy"] for epochs in runs if "top_1_accuracy" in epochs[-1]]
        if values:
            groups.append((group.name, values))
    if not groups:
        return
    figure = new_figure(7, 1.1 + 0.34 * len(groups))
    axes = figure.subplots()
    for row, (_, values) in enumerate(groups):
        axes.plot(values, [row] * len(values), "o", color=COLOURS[1], markerfacecolor="none", markersize=8)
        axes.plot([np.mean(values)], [row], "|", color=COLOURS[0], markersize=18, markeredgewidth=2)
    axes.set_yticks(range(len(groups)), [f"{name} (n = {len(values)})" for name, values in groups])
    axes.set(
        ylim=(len(groups) - 0.5, -0.5), xlabel="top-1 accuracy (%)", title=f"{study.title}: seeds (o) and mean (|)"
    )
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def band(
    axes: Any, runs: Sequence[Sequence[Mapping[str, Any]]], key: str, index: int, label: str, factor: float = 1.0
) -> None:
    """Draw one group's mean and range over the epochs at which every run has the value."""
    x = sorted(set.intersection(*({e["epoch"] for e in epochs if key in e} for epochs in runs)))
    values = factor * np.array([[e[key] for e in epochs if e["epoch"] in x] for epochs in runs])
    look = style(index)
    axes.fill_between(x, values.min(0), values.max(0), color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(x, values.mean(0), label=label, **look)
