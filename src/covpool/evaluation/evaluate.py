"""Accuracy and loss over a dataset, every image counted once on any number of ranks, and what was confused."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.data import Source, pipeline_errors
from covpool.data.decoding import printable
from covpool.plots import plot_confusion, plot_mistakes
from covpool.runtime.distributed import World
from covpool.runtime.files import whole_file

MAX_CONFUSION_CLASSES = 2000  # of more, a matrix is neither kept (32 MB) nor read by anybody
NUM_MISTAKES = 10


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class."""

    index: int  # its number in the data set
    label: int  # its class
    predicted: int  # the class that was ranked first
    probability: float  # what softmax gave that class


@dataclass(frozen=True)
class Evaluation:
    """Result over all images of all ranks."""

    correct: np.ndarray  # images whose class was ranked first, per true class, int64 (K,)
    correct_5: np.ndarray  # the same for the first five (all classes, where there are fewer)
    total: np.ndarray  # images per true class, int64 (K,)
    loss: float  # mean cross entropy per image, without label smoothing; NaN or infinite where a logit is
    non_finite: int = 0  # images with a logit that is NaN or infinite
    first_non_finite: int | None = None  # number of the first of them in the data set
    # images by true class (row) and class ranked first (column), int64 (K, K); an image with a logit that is NaN is in
    # no column. None for more than ``MAX_CONFUSION_CLASSES`` classes
    confusion: np.ndarray | None = None
    mistakes: tuple[Mistake, ...] = ()  # the ``NUM_MISTAKES`` of the highest probability, in falling order

    @property
    def num_samples(self) -> int:
        return int(self.total.sum())

    @property
    def top_1(self) -> float:
        """Fraction of images whose class was ranked first."""
        return float(self.correct.sum() / self.total.sum())

    @property
    def top_5(self) -> float:
        """Fraction of images whose class was among the first five."""
        return float(self.correct_5.sum() / self.total.sum())

    def to_dict(self, class_names: Sequence[str] = ()) -> dict[str, Any]:
        """Plain values for JSON: accuracy by class, and the confusion matrix, where there is one, by ``classes``."""
        names = all_names(class_names, len(self.total))
        matrix = {} if self.confusion is None else {"classes": names, "confusion_matrix": self.confusion.tolist()}
        found = [(name, hit, n) for name, hit, n in zip(names, self.correct, self.total) if n]
        return {
            "top_1_accuracy": self.top_1,
            "top_5_accuracy": self.top_5,
            "loss": self.loss if np.isfinite(self.loss) else None,
            "num_samples": self.num_samples,
            "per_class": {name: {"top_1_accuracy": float(hit / n), "num_samples": int(n)} for name, hit, n in found},
            **matrix,
        }


def all_names(class_names: Sequence[str], count: int) -> list[str]:
    """A name for each of ``count`` classes; those without one are called by their number."""
    return [*class_names, *(str(i) for i in range(len(class_names), count))]


def count_batch(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Sums of one batch: rows correct, correct among five, total and loss, per true class; float64 (4, classes).

    An image counts as correct within k if fewer than k classes have a higher logit and, on equal logits, a lower
    index: the class that ``argmax`` names first. A NaN among the logits is never correct.
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    ahead = (logits > own).sum(1) + ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(1)
    finite = ~np.isnan(logits).any(1)
    highest = logits.max(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinity less infinity: the caller counts such images
        losses = (highest + np.log(np.exp(logits - highest).sum(1, keepdims=True)) - own)[:, 0]
    sums = [finite & (ahead < 1), finite & (ahead < 5), np.ones(len(labels)), losses]
    return np.stack([np.bincount(labels, weights=np.asarray(s, np.float64), minlength=classes) for s in sums])


def evaluate(
    network: nn.Cell, batches: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, batch_size: int, world: World
) -> Evaluation:
    """Evaluate a network; every rank calls it with its own part of the images, all get the result of the whole.

    Args:
        network: (N, 3, H, W) -> (N, num_classes); put into evaluation mode, and back into the mode it was in.
        batches: Images (n, 3, H, W) and labels (n,) as NumPy arrays, n <= batch_size; may be empty on some ranks.
        num_classes: K.
        batch_size: Incomplete batches are filled up to it with zeros, which are not counted: one graph serves all.
        world: Ranks over which counts (never averages) are summed.
    """
    was_training = network.training
    network.set_train(False)
    counts = _Counts(num_classes)
    before: list[tuple[ms.Tensor, np.ndarray]] = []
    for images, labels in batches:
        count = len(labels)
        if count < batch_size:
            images = np.concatenate([images, np.zeros((batch_size - count, *images.shape[1:]), images.dtype)])
        running = network(ms.Tensor(images)), labels
        # Reading logits waits for the device: those of the last batch are read while this one is computed.
        counts.add(before)
        before = [running]
    counts.add(before)
    network.set_train(was_training)
    sums = world.sum(counts.sums)
    correct, correct_5, total = sums[:3].round().astype(np.int64)
    confusion = sums[4:].round().astype(np.int64) if len(sums) > 4 else None
    if not total.sum():
        raise ValueError("nothing to evaluate: no rank has an image")
    first_here = min(counts.non_finite, default=0) * world.size + world.rank
    ranks = world.gather(np.array([len(counts.non_finite), first_here]))
    found = ranks[ranks[:, 0] > 0]
    first = int(found[:, 1].min()) if len(found) else None
    loss = float(sums[3].sum() / total.sum())
    mistakes = _most_confident(world.gather(counts.mistakes(world)).reshape(-1, 4))
    return Evaluation(correct, correct_5, total, loss, int(found[:, 0].sum()), first, confusion, mistakes)


def outputs(network: nn.Cell, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Outputs (n, ...) of images (n, C, H, W), computed in batches of one size: zeros fill the last one up."""
    filled = np.zeros((-(-len(images) // batch_size) * batch_size, *images.shape[1:]), images.dtype)
    filled[: len(images)] = images
    parts = [network(ms.Tensor(part)).asnumpy() for part in np.split(filled, len(filled) // batch_size)]
    return np.concatenate(parts)[: len(images)]


def _most_confident(rows: np.ndarray) -> tuple[Mistake, ...]:
    """The first of rows (n, 4) of probability, number, class and predicted class; a number below 0 stands for none."""
    order = np.lexsort((rows[:, 1], -rows[:, 0]))
    chosen = rows[order][rows[order, 1] >= 0][:NUM_MISTAKES]
    return tuple(Mistake(int(i), int(label), int(predicted), float(p)) for p, i, label, predicted in chosen)


class _Counts:
    """What a rank has counted so far."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        # The rows of count_batch, then those of the confusion matrix: all are summed over ranks at once.
        self.sums = np.zeros((4 + (classes if classes <= MAX_CONFUSION_CLASSES else 0), classes), np.float64)
        self.non_finite: list[int] = []  # by number among the images of this rank
        self._mistakes = np.empty((0, 4))  # probability, number among the images of this rank, class, predicted class
        self._seen = 0

    def add(self, batches: Sequence[tuple[ms.Tensor, np.ndarray]]) -> None:
        for computed, labels in batches:
            logits = computed.asnumpy()[: len(labels)]
            self.sums[:4] += count_batch(logits, labels, self._classes)
            predicted, known = logits.argmax(1), ~np.isnan(logits).any(1)
            if len(self.sums) > 4:
                np.add.at(self.sums[4:], (labels[known], predicted[known]), 1)
            finite = np.isfinite(logits).all(1)
            self.non_finite += (self._seen + np.flatnonzero(~finite)).tolist()
            wrong = np.flatnonzero(finite & (predicted != labels))
            rows = logits[wrong].astype(np.float64)
            sure = 1 / np.exp(rows - rows.max(1, keepdims=True)).sum(1)
            found = np.stack([sure, self._seen + wrong, labels[wrong], predicted[wrong]], 1)
            mistakes = np.concatenate([self._mistakes, found])
            self._mistakes = mistakes[np.argsort(-mistakes[:, 0], kind="stable")[:NUM_MISTAKES]]
            self._seen += len(labels)

    def mistakes(self, world: World) -> np.ndarray:
        """The most confident mistakes of this rank by their numbers in the data set, filled up by -1, for all ranks."""
        rows = np.full((NUM_MISTAKES, 4), -1.0)
        rows[: len(self._mistakes)] = self._mistakes
        rows[: len(self._mistakes), 1] = rows[: len(self._mistakes), 1] * world.size + world.rank
        return rows.reshape(-1)


def describe_overflow(network: nn.Cell, result: Evaluation, source: Source) -> str:
    """Which images and parameters are NaN or infinite, on one line; empty where every logit and parameter is finite.

    A parameter that is NaN need not show in the logits: on CPU a ReLU makes 0 of it.
    """
    values = {p.name: float(np.abs(p.asnumpy()).max()) for p in network.get_parameters()}
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    parts = []
    if result.first_non_finite is not None:
        first = source.describe(result.first_non_finite)
        parts = [f"{result.non_finite} of {result.num_samples} images give NaN or infinite logits, first {first}"]
    if bad:
        parts.append(f"{len(bad)} parameters or running statistics are NaN or infinite, first {bad[0]}")
    elif parts:
        statistics = [(v, name) for name, v in values.items() if name.endswith((".moving_mean", ".moving_variance"))]
        value, name = max(statistics, default=(0.0, "there is none"))
        parts.append(f"every parameter is finite, the largest running statistic is {value:.2g} ({name})")
    return "; ".join(parts)


def numpy_batches(dataset: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of a MindSpore dataset as NumPy arrays; nothing for None (a rank without images)."""
    if dataset is not None:
        with pipeline_errors():
            yield from dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)


def write_report(folder: Path, result: Evaluation, source: Source, title: str = "") -> None:
    """Write ``confusion_matrix.csv``, ``confusion_matrix.png`` (with a title) and ``mistakes.png`` into a folder.

    Rows of the matrix are true classes, columns predicted ones. Of more than ``MAX_CONFUSION_CLASSES`` classes
    there is none. OSError: a file cannot be written. UserError: an image cannot be read any more.
    """
    names = [printable(name) for name in all_names(source.class_names, len(result.total))]
    if result.confusion is not None:
        with whole_file(folder / "confusion_matrix.csv") as temporary, temporary.open("w", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["true class", *names])
            rows.writerows([name, *row] for name, row in zip(names, result.confusion.tolist()))
        plot_confusion(result.confusion, names, folder / "confusion_matrix.png", title)
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
