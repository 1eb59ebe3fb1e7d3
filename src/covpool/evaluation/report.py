"""What an evaluation confused: a matrix as table and picture, and the mistakes that the network was surest of."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from covpool.data import Source
from covpool.data.decoding import printable
from covpool.evaluation.evaluate import Evaluation, all_names
from covpool.plots import plot_confusion, plot_mistakes
from covpool.runtime.files import whole_file


def write_report(folder: Path, result: Evaluation, source: Source) -> None:
    """Write ``confusion_matrix.csv``, ``confusion_matrix.png`` and ``mistakes.png`` into a folder.

    Rows of the matrix are true classes, columns predicted ones. Of more than ``MAX_CONFUSION_CLASSES`` classes
    there is none.

    Args:
        folder: Made if needed; earlier files of these names are replaced.
        result: The evaluation.
        source: What was evaluated: gives class names and the images of the mistakes.

    Raises:
        OSError: A file cannot be written.
        UserError: An image cannot be read any more.
    """
    names = [printable(name) for name in all_names(source.class_names, len(result.total))]
    if result.confusion is not None:
        with whole_file(folder / "confusion_matrix.csv") as temporary, temporary.open("w", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["true class", *names])
            rows.writerows([name, *row] for name, row in zip(names, result.confusion.tolist()))
        plot_confusion(result.confusion, names, folder / "confusion_matrix.png")
    shown = [
        (source.pixels(m.index), f"{names[m.label]}\npredicted {names[m.predicted]}, {m.probability:.0%}")
        for m in result.mistakes
    ]
    plot_mistakes(shown, folder / "mistakes.png")


def describe_mistakes(result: Evaluation, source: Source) -> list[dict[str, Any]]:
    """The most confident mistakes as plain values for JSON."""
    names = all_names(source.class_names, len(result.total))
    return [
        {
            "image": source.describe(m.index),
            "class": names[m.label],
            "predicted": names[m.predicted],
            "probability": m.probability,
        }
        for m in result.mistakes
    ]
