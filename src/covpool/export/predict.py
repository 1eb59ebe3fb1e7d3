"""Predictions for image files from an exported file, or a checkpoint, alone."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np

from covpool.build import build_model, image_transform, with_checkpoint
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.config import Config
from covpool.data import ImageTransform
from covpool.data.image_folder import EXTENSIONS, FolderSource
from covpool.errors import UserError
from covpool.export.run import ExportedModel, open_exported, transformed
from covpool.runtime.files import os_errors_as, whole_file, write_json


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, best first.

    Attributes:
        image: The image file.
        classes: Class names, or indices where the exported file holds no names.
        probabilities: Their softmax probabilities.
    """

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files among ``paths``: files as given, folders searched with all below them, in sorted order.

    UserError: a path that does not exist, or no image at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no image file or folder at {path}")
    if not found:
        raise UserError(f"no image ({', '.join(EXTENSIONS)}) in {', '.join(map(str, paths))}")
    return found


class CheckpointModel:
    """A checkpoint that knows its network, ready to run as an exported file is."""

    def __init__(self, path: Path) -> None:
        checkpoint = read_checkpoint(path).averaged()
        if not checkpoint.about.get("architecture"):
            raise UserError(
                f"{path} does not say which network it holds: export it, covpool export --config_path=FILE", 2
            )
        config = with_checkpoint(Config(), checkpoint)
        self._network = build_model(config).set_train(False)
        load_network(self._network, checkpoint)
        self._batch = 0
        self.about: dict[str, Any] = {"class_names": checkpoint.about.get("class_names", [])}
        if "transform" in checkpoint.about:
            self.about["transform"] = image_transform(config).to_dict()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        count = len(images)
        self._batch = max(self._batch, count)  # a smaller batch is filled up: one graph serves all
        filled = np.concatenate([images, np.zeros((self._batch - count, *images.shape[1:]), images.dtype)])
        return self._network(ms.Tensor(filled)).asnumpy()[:count]


def open_model(path: Path, device_target: str = "CPU") -> ExportedModel:
    """Open an exported file, or a checkpoint (``.ckpt``); UserError if it is missing, damaged, or of no format."""
    return CheckpointModel(path) if path.suffix == ".ckpt" else open_exported(path, device_target)


@dataclass(frozen=True)
class _Images(FolderSource):
    """Image files of any place; one that cannot be read is noted, and black."""

    problems: dict[int, str] = field(default_factory=dict)

    def pixels(self, index: int) -> np.ndarray:
        try:
            return super().pixels(index)
        except UserError as error:
            self.problems[index] = str(error)
            return np.zeros((64, 64, 3), np.uint8)


def predict(
    model: ExportedModel,
    images: Sequence[Path],
    top: int = 5,
    batch_size: int = 16,
    problems: Optional[dict[Path, str]] = None,
) -> Iterator[Prediction]:
    """Predict the classes of image files.

    Args:
        model: The network; its transform and class names are used.
        images: Image files.
        top: Classes to name for each image.
        batch_size: Images computed at once.
        problems: Receives what is wrong with images that cannot be read, which are then passed over.

    Raises:
        UserError: An image that cannot be read, unless there is ``problems``; or a file without an image transform.
    """
    if "transform" not in model.about:
        raise UserError("the exported file does not say how images are prepared: export it with export.py")
    transform = ImageTransform.from_dict(model.about["transform"])
    source = _Images(
        name="images",
        split="val",
        class_names=(),
        labels=np.zeros(len(images), np.int32),
        root=Path("/"),
        files=np.asarray([os.fsencode(path.absolute()).lstrip(b"/") for path in images], dtype=bytes),
    )
    names = model.about.get("class_names", [])
    done = 0
    for batch in transformed(source, transform, batch_size):
        for image, logits in zip(images[done:], model(batch).astype(np.float64)):
            done += 1
            problem = source.problems.get(done - 1)
            if problem is not None:
                if problems is None:
                    raise UserError(problem)
                problems[image] = problem
                continue
            probabilities = np.exp(logits - logits.max())
            probabilities /= probabilities.sum()
            order = np.argsort(-logits, kind="stable")[:top]
            classes = tuple(names[i] if i < len(names) else str(i) for i in order)
            yield Prediction(image, classes, tuple(float(probabilities[i]) for i in order))


def write_predictions(path: Path, predictions: Iterable[Prediction], problems: Mapping[Path, str]) -> None:
    """Write predictions as they come, whole or not at all.

    A CSV file has the columns ``file``, ``class_1``, ``probability_1``, ``class_2`` and so on. A JSON file holds
    ``predictions`` (``file``, ``classes``, ``probabilities``) and ``damaged`` (``file``, ``problem``).

    Args:
        path: Ends in ``.csv`` or ``.json``.
        predictions: From :func:`predict`.
        problems: What :func:`predict` noted; read once the predictions have ended.

    Raises:
        UserError: The file cannot be written, or what the predictions raise.
    """
    with os_errors_as(f"cannot write {path}"):
        if path.suffix == ".json":
            found = [
                {"file": str(p.image), "classes": list(p.classes), "probabilities": list(p.probabilities)}
                for p in predictions
            ]
            damaged = [{"file": str(image), "problem": problem} for image, problem in problems.items()]
            write_json(path, {"predictions": found, "damaged": damaged})
            return
        with whole_file(path) as new, new.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            for number, p in enumerate(predictions):
                if not number:
                    pairs = ([f"class_{i}", f"probability_{i}"] for i in range(1, len(p.classes) + 1))
                    rows.writerow(["file", *(name for pair in pairs for name in pair)])
                rows.writerow([p.image, *(value for pair in zip(p.classes, p.probabilities) for value in pair)])
