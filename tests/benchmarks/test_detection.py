"""The parts of the worked example of detection: boxes, targets, and the mAP against pycocotools."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch

from benchmarks import detection
from covpool.data.arrays import FASHION_MNIST_CLASSES, array_source

# mAP at IoU 0.5 of boxes_of(seed) by pycocotools 2.0.11 (COCOeval, stats[1]).
PYCOCOTOOLS = {
    0: 0.6603052977362512,
    1: 0.6680212131857444,
    2: 0.6660221024526499,
    3: 0.5935424257788847,
    4: 0.6165887014349954,
}


def boxes_of(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Twenty canvases of four garments, and twelve detections of each: moved, some of a wrong class, equal scores."""
    rng = np.random.default_rng(seed)
    found, true = [], []
    for image in range(20):
        size, corner = rng.uniform(16, 40, (4, 2)), rng.uniform(0, 72, (4, 2))
        there = np.concatenate([corner, corner + size, (4 * image + np.arange(4))[:, None] % 10], 1)
        near = there[rng.integers(4, size=12)]
        near[:, :4] += rng.normal(0, 2.5, (12, 4)).clip(-7, 7)
        near[rng.random(12) < 0.2, 4] = rng.integers(10)
        true.append(there)
        found.append(np.concatenate([near, np.sort(rng.random((12, 1)).round(2), 0)[::-1]], 1))
    return found, true


@pytest.fixture(scope="module")
def source():
    """Ten pictures, one of each class: bright rectangles of all proportions."""
    images = np.zeros((10, 28, 28, 1), np.uint8)
    for label in range(10):
        images[label, : 28 - 2 * label, : 6 + 2 * label] = 20 * label + 60
    return array_source("rectangles", "train", FASHION_MNIST_CLASSES, images, np.arange(10), (0.25,), (0.5,))


def test_box_iou_counts_pixels() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 50, (30, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 40, (30, 2))], 1)
    masks = np.zeros((30, 90, 90), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    expected = [[(a & b).sum() / (a | b).sum() for b in masks[20:]] for a in masks[:20]]
    np.testing.assert_allclose(detection.box_iou(boxes[:20], boxes[20:]), expected, rtol=1e-12)
    assert np.min(expected) == 0 and np.max(expected) > 0.3


@pytest.mark.parametrize("seed", PYCOCOTOOLS)
def test_map_is_that_of_pycocotools(seed: int) -> None:
    assert detection.mean_average_precision(*boxes_of(seed)) == pytest.approx(PYCOCOTOOLS[seed], abs=1e-12)


def test_map_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two garments; found: one, the same again, nothing, the other. Precisions 1, 1/2, 1/3, 2/4 at recalls 1/2, 1."""
    monkeypatch.setattr(detection, "CLASSES", 1)
    true = [np.array([[0.0, 0, 10, 10, 0]]), np.array([[0.0, 0, 10, 10, 0]])]
    again = np.array([[0, 0, 10, 10, 0, 0.9], [0, 0, 10, 8, 0, 0.8], [40, 40, 50, 50, 0, 0.7]])
    found = [again, np.array([[0, 0, 5, 10, 0, 0.6]])]  # of IoU 0.5: just enough
    assert detection.mean_average_precision(found, true) == pytest.approx((51 * 1 + 50 * 0.5) / 101)
    assert detection.mean_average_precision(true_with_score(true), true) == 1
    assert detection.mean_average_precision([again[2:], again[:0]], true) == 0
    assert detection.mean_average_precision([again[:0], again[:0]], true) == 0


def true_with_score(true: list[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate([boxes, np.full((len(boxes), 1), 0.9)], 1) for boxes in true]


def test_a_canvas_shows_what_its_boxes_say(source) -> None:
    counts = set()
    for seed in range(20):
        canvas, garments = detection.compose(source, np.random.default_rng(seed))
        again, same = detection.compose(source, np.random.default_rng(seed))
        assert (canvas == again).all() and (garments == same).all()
        assert canvas.shape == (1, 112, 112) and canvas.dtype == np.float32
        counts.add(len(garments))
        left = np.round((canvas[0] * 0.5 + 0.25) * 255)  # the pixels, before they were normalised
        for x0, y0, x1, y1, label in garments.astype(int):
            assert 20 <= max(x1 - x0, y1 - y0) <= 40
            assert (left[y0:y1, x0:x1] == 20 * label + 60).all()
            left[y0:y1, x0:x1] = 0
        assert (left == 0).all()  # no pixel outside the boxes, and none in two
    assert counts == {2, 3, 4, 5}


def test_what_the_targets_say_is_what_is_found(source) -> None:
    """Outputs that agree with the targets give back classes and boxes, each once."""
    for seed in range(10):
        garments = detection.compose(source, np.random.default_rng(seed))[1]
        cells = detection.target(garments)
        logits = 8.0 * (np.arange(11)[:, None, None] == cells[0])
        logits += np.random.default_rng(seed).uniform(0, 0.1, logits.shape)  # some cells are surer than others
        found = detection.detections(np.concatenate([logits, cells[1:]]).astype(np.float32))
        assert (np.diff(found[:, 5]) <= 0).all()
        order = np.lexsort(found[:, :2].T), np.lexsort(garments[:, :2].T)
        np.testing.assert_allclose(found[order[0], :5], garments[order[1]], atol=1e-3)
        owned = (cells[0] < 10).sum()
        assert len(garments) < owned < 784 / 2


def test_what_repeats_a_better_one_goes_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    output = np.concatenate([rng.normal(0, 3, (11, 9, 9)), rng.normal(0.5, 0.3, (4, 9, 9))]).astype(np.float32)
    found = detection.detections(output)
    scores = torch.softmax(torch.tensor(output[:11]), 0)[:10].numpy()
    cells = np.argwhere(scores > 0.05)
    left, top, right, bottom = np.exp(output[11:, cells[:, 1], cells[:, 2]])
    x, y = cells[:, 2] + 0.5, cells[:, 1] + 0.5
    boxes = 4 * np.stack([x - left, y - top, x + right, y + bottom], 1)
    missing = 0
    for box, (label, row, column) in zip(boxes, cells):
        score = scores[label, row, column]
        overlaps = detection.box_iou(box[None], found)[0] * (found[:, 4] == label)
        better = overlaps[found[:, 5] > score + 1e-5]
        itself = overlaps[np.abs(found[:, 5] - score) <= 1e-5].max(initial=0) > 0.999
        assert itself != (better > 0.5).any()
        missing += not itself
    assert missing == len(cells) - len(found) > 10


def test_the_loss_is_that_of_pytorch_and_reaches_the_backbone(source) -> None:
    ms.set_seed(1)
    layers = {"in_channels": 1, "stem": "small", "base_width": 4, "features_only": True, "out_indices": [3]}
    detector = detection.Detector(detection.create_model("resnet10", "fast_mpn", **layers)).set_train()
    canvas, garments = detection.compose(source, np.random.default_rng(0))
    images, targets = ms.Tensor(canvas[None]), detection.target(garments)[None]
    output = torch.tensor(detector(images).asnumpy())
    wanted = torch.tensor(targets)
    own = wanted[:, 0] < 10
    expected = 10 * torch.nn.functional.cross_entropy(output[:, :11], wanted[:, 0].long())
    expected += (output[:, 11:] - wanted[:, 1:]).abs().mean(1)[own].mean()
    loss, gradients = ms.value_and_grad(detector, None, detector.trainable_params())(images, ms.Tensor(targets))
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert all(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients)
