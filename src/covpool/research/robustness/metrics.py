"""What errors on corrupted and perturbed images come to, as figures and as bar charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covpool.plots import COLOURS, new_figure, save
from covpool.research.robustness.corruptions import CORRUPTIONS, SEVERITIES

# AlexNet's top-1 error on ImageNet-C, mean over severities, as the released code of Hendrycks & Dietterich has it.
_ALEXNET = """
    0.886428 0.894468 0.922640 0.819880 0.826268 0.785948 0.798360 0.866816
    0.826572 0.819324 0.564592 0.853204 0.646056 0.717840 0.606500
"""
ALEXNET_ERRORS = dict(zip(CORRUPTIONS, map(float, _ALEXNET.split())))
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")


def corruption_summary(errors: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Summarise top-1 errors in [0, 1] by corruption and severity; ValueError where there is none.

    Returns:
        `mean_error`, over the corruptions of the benchmark that are there, each a mean over its severities; `mce`, the
        mean over all 15 of 100 error / AlexNet's error, None unless all 15 are there with all 5 severities; `missing`,
        what keeps it from being one; `corruptions`: by name `error`, `errors` and `ce`. Corruptions beyond the 15
        (ImageNet-C's `extra`) are listed without counting.
    """
    if not errors:
        raise ValueError("no corruption to summarise")
    listed: dict[str, dict[str, Any]] = {}
    for name, by_severity in errors.items():
        mean = float(np.mean(list(by_severity.values())))
        whole = set(by_severity) == set(SEVERITIES)
        ce = 100 * mean / ALEXNET_ERRORS[name] if name in ALEXNET_ERRORS and whole else None
        listed[name] = {"error": mean, "ce": ce, "errors": {str(s): by_severity[s] for s in sorted(by_severity)}}
    counted = [name for name in CORRUPTIONS if name in errors] or list(errors)
    missing = [name for name in CORRUPTIONS if name not in listed or listed[name]["ce"] is None]
    return {
        "mean_error": float(np.mean([listed[name]["error"] for name in counted])),
        "mce": None if missing else float(np.mean([listed[name]["ce"] for name in CORRUPTIONS])),
        "missing": missing,
        "corruptions": listed,
    }


def relative_errors(errors: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Corruption errors in percent of a reference network's, by corruption (the benchmark's CE with another divisor).

    ValueError: the two are not over the same corruptions.
    """
    if set(errors) != set(reference):
        raise ValueError(f"different corruptions: {sorted(set(errors) ^ set(reference))}")
    return {name: 100 * error / reference[name] for name, error in errors.items()}


def flip_rate(predictions: Sequence[np.ndarray], against_first: bool) -> float:
    """Share of frames whose predicted class differs: from the first frame for noise, else from the frame before.

    Source: Hendrycks & Dietterich, ICLR 2019, section 3.2 (flip probability). ``predictions`` holds the predicted
    classes of every sequence, (T,) each; ValueError where there is no sequence, or one of a single frame.
    """
    if not predictions or any(len(frames) < 2 for frames in predictions):
        raise ValueError("flips need at least one sequence, and two frames in each")
    flips = [np.mean(frames[1:] != (frames[0] if against_first else frames[:-1])) for frames in predictions]
    return float(np.mean(flips))


def plot_bars(values: Mapping[str, float], path: Path, title: str) -> None:
    """One network's percentages by name as horizontal bars from top to bottom, each with its number."""
    figure = new_figure(7, 0.8 + 0.26 * len(values))
    axes = figure.subplots()
    places = np.arange(len(values))[::-1]
    axes.barh(places, list(values.values()), color=COLOURS[1])
    for place, value in zip(places, values.values()):
        axes.annotate(f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, list(values), fontsize=8)
    axes.set(xlabel="percent", xlim=(0, max(1.0, 1.12 * max(values.values()))), title=title)
    save(figure, path)


def plot_groups(groups: Mapping[str, Mapping[str, Sequence[float]]], path: Path, ylabel: str, title: str) -> None:
    """Several networks side by side: mean over seeds as bars, lowest to highest as whiskers, legible without colour.

    ``groups`` is network: name of the bar: one value a seed, with the same names for all networks.
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
    axes.set_xticks(places, [name.replace("_", " ") for name in names], rotation=35, ha="right", fontsize=8)
    axes.set(ylabel=ylabel, title=title, xlim=(-0.6, len(names) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(5, len(groups)), frameon=False)
    save(figure, path)
