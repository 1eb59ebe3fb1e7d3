"""Runs side by side: Markdown tables, means with their spread, curves over epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covpool.errors import UserError
from covpool.metrics import read_records
from covpool.plots import name_axes, new_figure, save, style


def table_row(cells: Iterable[Any]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table_head(cells: Sequence[Any]) -> list[str]:
    """The two lines that begin a Markdown table."""
    return [table_row(cells), table_row(["---"] * len(cells))]


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return [*table_head(head), *map(table_row, rows)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation of the sample and number of values that are numbers; None where there is none."""
    values = [value for value in values if math.isfinite(value)]
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }


def spread_text(figure: Mapping[str, Any], factor: float, digits: int) -> str:
    """A :func:`spread` times a factor: mean ± standard deviation, the mean alone of one value, a dash of none."""
    if figure["mean"] is None:
        return "-"
    mean = f"{factor * figure['mean']:.{digits}f}"
    return mean if figure["std"] is None else f"{mean} ± {factor * figure['std']:.{digits}f}"


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The evaluated epochs of a run folder; UserError if it is none or there are none yet."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} is no run folder: it has no metrics.jsonl")
    epochs = [r for r in read_records(path, "epoch") if r.get("top_1_accuracy") is not None]
    if not epochs:
        raise UserError(f"{run}: no evaluated epoch yet")
    return epochs


def comparison_table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: last and best top-1, training loss and seconds of training per epoch (median) of each run."""
    head = ("run", "epochs", "top-1 (%)", "best top-1 (%)", "training loss", "seconds per epoch")
    rows = []
    for name, epochs in runs.items():
        seconds = sorted(e["train_s"] for e in epochs)[len(epochs) // 2]
        accuracies = [100 * e["top_1_accuracy"] for e in epochs]
        last = epochs[-1]
        figures = (f"{accuracies[-1]:.2f}", f"{max(accuracies):.2f}", f"{last['loss']:.3f}", f"{seconds:.0f}")
        rows.append((name, last["epoch"], *figures))
    return "\n".join(table(head, rows))


def plot_comparison(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str = "") -> None:
    """Draw training loss and top-1 accuracy over epochs, one line a run; legible without colour."""
    figure = new_figure(9, 3.4)
    loss, accuracy = figure.subplots(1, 2)
    for index, (name, epochs) in enumerate(runs.items()):
        x = [e["epoch"] for e in epochs]
        loss.plot(x, [e["loss"] for e in epochs], label=name, **style(index))
        accuracy.plot(x, [100 * e["top_1_accuracy"] for e in epochs], label=name, **style(index))
    name_axes(loss, "training loss (cross entropy)")
    name_axes(accuracy, "top-1 accuracy (%)")
    accuracy.legend()
    if title:
        figure.suptitle(title)
    save(figure, path)
