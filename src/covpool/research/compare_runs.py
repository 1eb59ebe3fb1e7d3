"""Several runs side by side: a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covpool.errors import UserError
from covpool.metrics import read_records
from covpool.research.tables import table
from covpool.runtime.files import whole_file

_STYLES = ("-o", "--s", "-.^", ":D", "-v", "--P", "-.X", ":*")


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for index, (name, epochs) in enumerate(runs.items()):
        x, style = [e["epoch"] for e in epochs], _STYLES[index % len(_STYLES)]
        loss.plot(x, [e["loss"] for e in epochs], style, ms=5, label=name)
        accuracy.plot(x, [100 * e["top_1_accuracy"] for e in epochs], style, ms=5, label=name)
    for axes, label in ((loss, "training loss (cross entropy)"), (accuracy, "top-1 accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend()
    if title:
        figure.suptitle(title)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
