"""Counting against a naive loop; every image once, whatever the batch."""

from __future__ import annotations

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
    others = np.array([[1.0, 2 * 5 + 0]])  # rank 0 has one, its image 5
    second = World(rank=1, size=2, _sum=lambda v: v, _gather=lambda row: np.concatenate([others, row[None]]))
    shared = evaluate(First(), batches, 4, 4, second)
    assert (shared.non_finite, shared.first_non_finite) == (3, 7)
    fine = evaluate(First(), [(images[:3], np.zeros(3, np.int32))], 4, 4, World())
    assert (fine.non_finite, fine.first_non_finite) == (0, None) and fine.to_dict()["loss"] is not None
