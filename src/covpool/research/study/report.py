"""The results of a study: mean, spread and number of runs of each group as Markdown, CSV, JSON and plots."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covpool.plots import COLOURS, legend_below, name_axes, new_figure, plot_band, save
from covpool.research.study.runner import State
from covpool.research.study.spec import Group, Run, Study
from covpool.research.tables import spread, spread_text, table
from covpool.runtime.files import write_json, write_text


def summarise(study: Study, states: Mapping[Run, State]) -> list[dict[str, Any]]:
    """One mapping a group: `group`, `n`, `failed`, and `mean`, `std`, `n` of each figure below.

    Figures: `final` and `best` top-1, `loss` (training, last epoch), `epochs_to_ACCURACY` (of the runs that reached it:
    `n`), `cpu_s` (CPU seconds of training per epoch, median over the epochs after the first, which compiles),
    `images_per_cpu_s` and `images_per_s` (by the clock: other work on the machine lowers it). Only runs with all their
    epochs count. The standard deviation is that of a sample (n - 1); None for one run.
    """
    return [_group(study, group, states) for group in study.groups]


def _group(study: Study, group: Group, states: Mapping[Run, State]) -> dict[str, Any]:
    mine = [state for run, state in states.items() if run.group == group]
    done = [state for state in mine if state.done]
    curves = [[e for e in state.epochs if "top_1_accuracy" in e] for state in done]
    values: dict[str, list[float]] = {
        "final": [curve[-1]["top_1_accuracy"] for curve in curves],
        "best": [max(e["top_1_accuracy"] for e in curve) for curve in curves],
        "loss": [state.epochs[-1]["loss"] for state in done],
    }
    for accuracy in study.accuracies:
        firsts = [[e["epoch"] for e in curve if e["top_1_accuracy"] >= accuracy] for curve in curves]
        values[f"epochs_to_{accuracy:g}"] = [float(first[0]) for first in firsts if first]
    for figure in ("train_cpu_s", "images_per_s"):
        values[figure] = [_typical(state.epochs, figure) for state in done]
    return {
        "group": group.name,
        "n": len(done),
        "failed": sum(bool(state.failure) for state in mine),
        "overrides": list(group.overrides),
        "failures": [state.failure for state in mine if state.failure],
        **{figure: spread(found) for figure, found in values.items()},
    }


def _typical(epochs: Sequence[Mapping[str, Any]], figure: str) -> float:
    """Median over the epochs after the first."""
    found = [e[figure] for e in epochs[min(1, len(epochs) - 1) :] if e.get(figure) is not None]
    return statistics.median(found) if found else math.nan


def markdown(study: Study, groups: Sequence[Mapping[str, Any]]) -> str:
    """The table, mean ± standard deviation."""
    heads = ["group", "n", "top-1 (%)", "best top-1 (%)", "training loss"]
    heads += [f"epochs to {100 * accuracy:g} %" for accuracy in study.accuracies]
    heads += ["CPU s per epoch", "images/s"]
    rows = []
    for group in groups:
        count = str(group["n"]) + (f" ({group['failed']} failed)" if group["failed"] else "")
        cells = [group["group"], count, spread_text(group["final"], 100, 2), spread_text(group["best"], 100, 2)]
        cells.append(spread_text(group["loss"], 1, 3))
        for accuracy in study.accuracies:
            reached = group[f"epochs_to_{accuracy:g}"]
            some = f" ({reached['n']} of {group['n']})" if 0 < reached["n"] < group["n"] else ""
            cells.append(spread_text(reached, 1, 1) + some)
        rows.append([*cells, spread_text(group["train_cpu_s"], 1, 1), spread_text(group["images_per_s"], 1, 0)])
    return "\n".join(table(heads, rows)) + "\n"


def write_summary(study: Study, states: Mapping[Run, State], output: Path) -> list[dict[str, Any]]:
    """Write `results.json` (with every run's epochs), `results.csv` and `results.md`."""
    groups = summarise(study, states)
    runs = [
        {
            "run": run.name,
            "group": run.group.name,
            "seed": run.seed,
            "done": s.done,
            "failure": s.failure,
            "epochs": s.epochs,
        }
        for run, s in states.items()
    ]
    write_json(output / "results.json", {"study": study.name, "groups": groups, "runs": runs})
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    figures = [name for name, value in groups[0].items() if isinstance(value, dict)]
    writer.writerow(["group", "runs", "failed", *(f"{f}_{part}" for f in figures for part in ("mean", "std", "n"))])
    for group in groups:
        cells = [group[f][part] for f in figures for part in ("mean", "std", "n")]
        writer.writerow([group["group"], group["n"], group["failed"], *cells])
    for name, text in (("results.csv", rows.getvalue()), ("results.md", markdown(study, groups))):
        write_text(output / name, text)
    return groups


def plot_study(study: Study, states: Mapping[Run, State], path: Path) -> None:
    """Training loss and top-1 accuracy over epochs: mean of the finished seeds, band from the lowest to the highest."""
    figure = new_figure(9, 3.9)
    loss, accuracy = figure.subplots(1, 2)
    drawn = 0
    for index, group in enumerate(study.groups):
        runs = [state.epochs for run, state in states.items() if run.group == group and state.done]
        if not runs:
            continue
        drawn += 1
        _band(loss, runs, "loss", index, f"{group.name} (n = {len(runs)})")
        _band(accuracy, runs, "top_1_accuracy", index, f"{group.name} (n = {len(runs)})", 100)
    if not drawn:
        return
    name_axes(loss, "training loss (cross entropy)")
    name_axes(accuracy, "top-1 accuracy (%)")
    legend_below(figure, accuracy, min(4, drawn))
    figure.suptitle(f"{study.title}: mean over seeds, band from lowest to highest")
    save(figure, path)


def plot_final(study: Study, states: Mapping[Run, State], path: Path) -> None:
    """Top-1 accuracy after the last epoch: a row per group, an open circle per finished seed, a mark at their mean."""
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
        axes.plot([statistics.fmean(values)], [row], "|", color=COLOURS[0], markersize=18, markeredgewidth=2)
    axes.set_yticks(range(len(groups)), [f"{name} (n = {len(values)})" for name, values in groups])
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel="top-1 accuracy (%)")
    figure.suptitle(f"{study.title}: seeds (o) and mean (|)")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def _band(
    axes: Any, runs: Sequence[Sequence[Mapping[str, Any]]], key: str, index: int, label: str, factor: float = 1.0
) -> None:
    import numpy as np  # here: its threads must not start before a study receives signals

    x = sorted(set.intersection(*({e["epoch"] for e in epochs if key in e} for epochs in runs)))
    values = factor * np.array([[e[key] for e in epochs if e["epoch"] in x] for epochs in runs])
    plot_band(axes, index, label, x, values.mean(0), values.min(0), values.max(0))
