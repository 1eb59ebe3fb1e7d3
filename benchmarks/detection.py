"""Clothes found on a canvas: a small detector on the features of a classifier, scored by mAP. See docs/detection.md."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from PIL import Image

from benchmarks import measure
from covpool import create_model
from covpool.data.arrays import FASHION_MNIST_CLASSES, ArraySource, open_fashion_mnist
from covpool.plots import COLOURS, new_figure, save
from covpool.research.tables import spread, spread_text
from covpool.runtime.distributed import set_context

CANVAS, STRIDE, CLASSES = 112, 4, len(FASHION_MNIST_CLASSES)  # STRIDE: pixels of a cell of the map that layer3 gives


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes that begin with x0, y0, x1, y1: (n, 4) and (m, 4) -> (n, m)."""
    sides = np.minimum(a[:, None, 2:4], b[:, 2:4]) - np.maximum(a[:, None, :2], b[:, :2])
    both, areas = sides.clip(0).prod(-1), [(boxes[:, 2:4] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both)


def compose(source: ArraySource, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A canvas (1, 112, 112) of two to five garments, normalised; their boxes (in pixels) and classes, (n, 5)."""
    canvas, garments, count = np.zeros((1, CANVAS, CANVAS), np.uint8), np.zeros((0, 5)), rng.integers(2, 6)
    while len(garments) < count:
        index = rng.integers(len(source.labels))
        image = Image.fromarray(source.images[index, :, :, 0])
        image = image.crop(image.getbbox())
        scale = rng.uniform(20, 40) / max(image.size)  # the longer side gets 20 to 40 pixels
        width, height = (max(STRIDE, round(scale * side)) for side in image.size)
        x, y = rng.integers(CANVAS - width + 1), rng.integers(CANVAS - height + 1)
        garment = np.array([[x, y, x + width, y + height, source.labels[index]]], float)
        if not box_iou(garment, garments).any():
            canvas[0, y : y + height, x : x + width] = image.resize((width, height), Image.Resampling.BILINEAR)
            garments = np.concatenate([garments, garment])
    return (canvas / np.float32(255) - source.mean[0]) / source.std[0], garments


def target(garments: np.ndarray) -> np.ndarray:
    """(5, 28, 28): the class of each cell, 10 for none, and the logarithms of its distances to four sides, in cells."""
    y, x = (np.mgrid[: CANVAS // STRIDE, : CANVAS // STRIDE] + 0.5) * STRIDE
    cells = np.full((5, *x.shape), CLASSES, np.float32)
    for x0, y0, x1, y1, label in garments:  # each owns the cells of its middle, half as high and wide, or the nearest
        own = (abs(x - (x0 + x1) / 2) <= max((x1 - x0) / 4, 2)) & (abs(y - (y0 + y1) / 2) <= max((y1 - y0) / 4, 2))
        sides = np.stack([x - x0, y - y0, x1 - x, y1 - y])[:, own] / STRIDE
        cells[0, own], cells[1:, own] = label, np.log(sides.clip(0.1))
    return cells


class Detector(nn.Cell):
    """Canvases to logits of ten classes and none and logarithms of distances (N, 15, 28, 28), or to the loss."""

    def __init__(self, backbone: nn.Cell) -> None:
        super().__init__()
        self.backbone, inputs = backbone, backbone.feature_info.channels()[-1]
        layers = [nn.Conv2d(inputs, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64)]
        self.head = nn.SequentialCell(*layers, nn.ReLU(), nn.Conv2d(64, CLASSES + 5, 1, has_bias=True))

    def construct(self, images: ms.Tensor, targets: ms.Tensor | None = None) -> ms.Tensor:
        output = self.head(self.backbone(images)[-1])
        if targets is None:
            return output
        owner, errors = targets[:, 0].astype(ms.int32), ops.abs(output[:, -4:] - targets[:, 1:]).mean(1)
        owned = (owner < CLASSES).astype(ms.float32)
        return 10 * ops.cross_entropy(output[:, :-4], owner) + (errors * owned).sum() / owned.sum()


def detections(output: np.ndarray) -> np.ndarray:
    """What a canvas shows by its output (15, 28, 28): boxes, classes, scores (n, 6), best first, none twice."""
    scores = np.exp(output[:CLASSES] - np.logaddexp.reduce(output[:-4]))
    label, y, x = np.nonzero(scores > 0.05)
    centre, sides = np.stack([x, y]) + 0.5, np.exp(output[-4:, y, x])
    found = np.stack([*STRIDE * (centre - sides[:2]), *STRIDE * (centre + sides[2:]), label, scores[label, y, x]], 1)
    found = found[np.argsort(-found[:, 5], kind="stable")]
    repeats, kept = (box_iou(found, found) > 0.5) & (found[:, 4:5] == found[:, 4]), list[int]()
    for index in range(len(found)):
        kept += [] if repeats[index, kept].any() else [index]
    return found[kept]


def mean_average_precision(found: list[np.ndarray], true: list[np.ndarray]) -> float:
    """COCO's mAP at IoU 0.5, from (n, 6) found and (m, 5) there in each canvas; every class is there somewhere."""
    away = np.array([10.0 * CANVAS] * 4 + [0, 0])  # all canvases on one plane, so far apart that no boxes overlap
    mine = np.concatenate([boxes + number * away for number, boxes in enumerate(found)])
    there = np.concatenate([boxes + number * away[:5] for number, boxes in enumerate(true)])
    mine, values = mine[np.argsort(-mine[:, 5], kind="stable")], []
    for label in range(CLASSES):
        overlaps, hits = box_iou(mine[mine[:, 4] == label], there[there[:, 4] == label]), []
        for row in overlaps:
            hits.append(row.max(initial=0) >= 0.5)
            overlaps[:, row.argmax() if hits[-1] else []] = 0  # to find it again is wrong
        right = np.cumsum(hits)
        precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
        at = np.searchsorted(right / overlaps.shape[1], np.linspace(0, 1, 101))
        values.append(np.append(precision, 0)[at].mean())
    return float(np.mean(values))


def run(start: str, source: ArraySource, canvases: tuple[np.ndarray], steps: int, seed: int) -> list[np.ndarray]:
    """Train a detector whose backbone starts from a file of weights, or "random", and give what it finds."""
    ms.set_seed(seed)
    weights = None if start == "random" else start
    layers: dict = {"in_channels": 1, "stem": "small", "base_width": 16, "features_only": True, "out_indices": [3]}
    detector = Detector(create_model("resnet10", "fast_mpn", 64, pretrained=weights, **layers))
    optimizer = nn.Adam(detector.trainable_params(), nn.cosine_decay_lr(0.0, 2e-3, steps, steps, 1))
    step, rng = nn.TrainOneStepCell(detector, optimizer).set_train(), np.random.default_rng(seed)
    for _ in range(steps):
        images, garments = zip(*(compose(source, rng) for _ in range(16)))
        step(ms.Tensor(np.stack(images)), ms.Tensor(np.stack([target(each) for each in garments])))
    detector.set_train(False)
    return [detections(detector(ms.Tensor(canvas[None])).asnumpy()[0]) for canvas in canvases]


def main() -> None:
    """Train detectors from each start, report their mAP on 200 canvases of test pictures, draw what the last finds."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--data_path", type=Path, default=Path("data/fashion_mnist_raw"), help="Fashion-MNIST's files")
    parser.add_argument("--weights", nargs="+", default=[], metavar="CKPT", help="classifiers to start from")
    parser.add_argument("--steps", type=int, default=80, help="training steps, of 16 canvases each (default: 80)")
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3], help="one training each (default: 1 2 3)")
    arguments = parser.parse_args()
    set_context("GRAPH", "CPU")
    report: dict = {"about": measure.environment(("mindspore", "numpy"), steps=arguments.steps), "mAP": {}}
    source, test = (open_fashion_mnist(arguments.data_path, split) for split in ("train", "val"))
    canvases, true = zip(*(compose(test, rng) for rng in [np.random.default_rng(0)] for _ in range(200)))
    for start in ["random", *arguments.weights]:
        found = [run(start, source, canvases, arguments.steps, seed) for seed in arguments.seed]
        report["mAP"][start] = spread([mean_average_precision(each, true) for each in found])
        measure.say(f"{start}: mAP {report['mAP'][start]['values']}")
    rows = [[start, spread_text(values, 100, 1)] for start, values in report["mAP"].items()]
    lines = [*measure.table(["backbone starts from", "mAP at IoU 0.5 (%)"], rows), ""]
    measure.report(arguments.output, "detection", report, lambda r: "\n".join(measure.heading(r["about"]) + lines))
    figure = new_figure(8, 2.9)
    for axes, canvas, boxes in zip(figure.subplots(1, 3, subplot_kw={"xticks": [], "yticks": []}), canvases, found[0]):
        axes.imshow(canvas[0], cmap="gray")
        for x0, y0, x1, y1, label, score in boxes[boxes[:, 5] > 0.5]:
            axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=COLOURS[6])
            axes.text(x0, y0 - 1, f"{FASHION_MNIST_CLASSES[int(label)]} {score:.0%}", size=8, color=COLOURS[5])
    save(figure, (arguments.output or Path()) / "detection.png")


if __name__ == "__main__":
    main()
