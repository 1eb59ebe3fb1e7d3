"""Counting against a naive loop; every image once, whatever the batch."""

from __future__ import annotations

import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.evaluation import count_batch, evaluate
from covpool.runtime.distributed import World


def naive(logits: np.ndarray, labels: np.ndarray, classes: int) -> tuple[list[int], list[int], float]:
    correct, correct_5, loss = [0] * classes, [0] * classes, 0.0
    for row, label in zip(logits.astype(np.float64), labels):
        order = sorted(range(classes), key=lambda k: (-row[k], k))
        correct[label] += order[0] == label
        correct_5[label] += label in order[:5]
        loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
    return correct, correct_5, loss


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_counts(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(-2, 3, (200, classes)).astype(np.float32)  # integers: many ties
    labels = rng.integers(0, classes, 200)
    sums = count_batch(logits, labels, classes)
    correct, correct_5, loss = naive(logits, labels, classes)
    assert sums[0].tolist() == correct and sums[1].tolist() == correct_5
    assert sums[2].tolist() == np.bincount(labels, minlength=classes).tolist()
    assert sums[3].sum() == pytest.approx(loss, rel=1e-12)


def test_confusion_and_most_confident_mistakes_on_any_number_of_ranks(graph_mode: None) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 50).astype(np.int32)
    images = rng.standard_normal((50, 1, 4, 4)).astype(np.float32)
    images[9, 0, 0, 0] = np.nan
    logits = images[:, 0, 0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    matrix, wrong = np.zeros((4, 4), np.int64), []
    for i, label in enumerate(labels):
        if i != 9:
            said = int(probabilities[i].argmax())
            matrix[label, said] += 1
            wrong += [(probabilities[i, said], i, label, said)] if said != label else []
    expected = [(i, label, said) for _, i, label, said in sorted(wrong, reverse=True)]
    for size in (1, 3):
        ranks = []
        for rank in range(size):  # each sees its part alone: what the others would add is left out
            mine = images[rank::size], labels[rank::size]
            batches = [(mine[0][i : i + 8], mine[1][i : i + 8]) for i in range(0, len(mine[0]), 8)]
            ranks.append(evaluate(First(), batches, 4, 8, World(rank, size)))
        assert sum(found.confusion for found in ranks).tolist() == matrix.tolist()
        assert sum(found.correct for found in ranks).tolist() == np.diag(matrix).tolist()
        mistakes = sorted((m for found in ranks for m in found.mistakes), key=lambda m: -m.probability)
        assert [(m.index, m.label, m.predicted) for m in mistakes[:10]] == expected[:10]
        assert mistakes[0].probability == pytest.approx(max(wrong)[0], rel=1e-6)


def test_no_mistakes_and_too_many_classes(graph_mode: None, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((3, 1, 4, 4), np.float32)
    images[:, 0, 0, 2] = 1
    batches = [(images, np.full(3, 2, np.int32))]
    assert evaluate(First(), batches, 4, 4, World()).mistakes == ()
    monkeypatch.setattr(sys.modules["covpool.evaluation.evaluate"], "MAX_CONFUSION_CLASSES", 3)
    result = evaluate(First(), batches, 4, 4, World())
    assert result.confusion is None and result.top_1 == 1 and "confusion_matrix" not in result.to_dict()


def test_nan_logits_are_wrong_not_right() -> None:
    logits = np.full((3, 4), np.nan, np.float32)
    assert count_batch(logits, np.array([0, 1, 2]), 4)[:2].sum() == 0


class First(nn.Cell):
    """Logits are the first pixels, so that the right answers can be planted."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x[:, 0, 0, :4]


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (7, 8), (8, 8), (103, 8), (103, 200)])
def test_every_image_once(graph_mode: None, n: int, batch_size: int) -> None:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, 4, n).astype(np.int32)
    images = rng.standard_normal((n, 1, 4, 4)).astype(np.float32)
    batches = [(images[i : i + batch_size], labels[i : i + batch_size]) for i in range(0, n, batch_size)]
    result = evaluate(First(), batches, 4, batch_size, World())
    correct, correct_5, loss = naive(images[:, 0, 0, :], labels, 4)
    assert result.num_samples == n and result.correct.tolist() == correct and result.correct_5.tolist() == correct_5
    assert result.loss == pytest.approx(loss / n, rel=1e-6)
    per_class = result.to_dict(["a", "b"])["per_class"]
    assert sum(entry["num_samples"] for entry in per_class.values()) == n
    assert set(per_class) <= {"a", "b", "2", "3"}


def test_network_returns_to_the_mode_it_was_in(graph_mode: None) -> None:
    network = First().set_train()
    batch = (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int32))
    evaluate(network, [batch], 4, 2, World())
    assert network.training


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(First(), [], 4, 2, World())


def test_images_without_finite_logits_are_counted_over_all_ranks(graph_mode: None) -> None:
    images = np.zeros((7, 1, 4, 4), np.float32)
    images[3, 0, 0, 2], images[5, 0, 0, 0] = np.inf, np.nan
    batches = [(images[i : i + 4], np.zeros(len(images[i : i + 4]), np.int32)) for i in (0, 4)]
    alone = evaluate(First(), batches, 4, 4, World())
    assert (alone.non_finite, alone.first_non_finite) == (2, 3) and alone.to_dict()["loss"] is None

    def gather(row: np.ndarray) -> np.ndarray:
        return np.stack([np.array([1.0, 2 * 5 + 0]) if len(row) == 2 else row, row])  # rank 0 has one, its image 5

    second = World(rank=1, size=2, _sum=lambda v: v, _gather=gather)
    shared = evaluate(First(), batches, 4, 4, second)
    assert (shared.non_finite, shared.first_non_finite) == (3, 7)
    fine = evaluate(First(), [(images[:3], np.zeros(3, np.int32))], 4, 4, World())
    assert (fine.non_finite, fine.first_non_finite) == (0, None) and fine.to_dict()["loss"] is not None
