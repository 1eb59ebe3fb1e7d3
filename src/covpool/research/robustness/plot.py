"""Bar charts of robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from covpool.plots import COLOURS, new_figure, save

_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


def plot_bars(values: Mapping[str, float], path: Path, title: str) -> None:
    """One network's percentages as horizontal bars, each with its number.

    Args:
        values: Percent by name, from top to bottom.
        path: PNG file.
        title: What they are of.
    """
    figure = new_figure(7, 0.8 + 0.26 * len(values))
    axes = figure.subplots()
    places = np.arange(len(values))[::-1]
    axes.barh(places, list(values.values()), color=COLOURS[1])
    for place, value in zip(places, values.values()):
        axes.annotate(f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, list(values), fontsize=8)
    axes.set(xlabel="percent", xlim=(0, max(1.0, 1.12 * max(values.values()))), title=title)
    save(figure, path)


def plot_groups(
    groups: Mapping[str, Mapping[str, Sequence[float]]], path: Path, ylabel: str, title: str, line: float | None = None
) -> None:
    """Several networks side by side: mean over seeds as bars, lowest to highest as whiskers, legible without colour.

    Args:
        groups: Network: name of the bar: one value a seed. All networks have the same names.
        path: PNG file.
        ylabel: What the values are, with their unit.
        title: Title.
        line: Where to draw a horizontal line, such as the reference.
    """
    names = list(next(iter(groups.values())))
    figure = new_figure(10, 3.9)
    axes = figure.subplots()
    places, width = np.arange(len(names)), 0.8 / len(groups)
    for index, (group, bars) in enumerate(groups.items()):
        values = [np.asarray(bars[name], np.float64) for name in names]
        means = np.array([v.mean() for v in values])
        reach = np.array([[m - v.min(), v.max() - m] for m, v in zip(means, values)]).T
        axes.bar(
            places + (index - (len(groups) - 1) / 2) * width,
            means,
            width,
            yerr=reach,
            label=f"{group} (n = {len(values[0])})",
            color=COLOURS[index % len(COLOURS)],
            hatch=_HATCHES[index % len(_HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"elinewidth": 0.8, "ecolor": "#666666"},
        )
    if line is not None:
        axes.axhline(line, color="#666666", linewidth=0.9, linestyle="--")
    axes.set_xticks(places, [name.replace("_", " ") for name in names], rotation=35, ha="right", fontsize=8)
    axes.set(ylabel=ylabel, title=title, xlim=(-0.6, len(names) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(5, len(groups)), frameon=False)
    save(figure, path)
