"""Predictions for image files from an exported file alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covpool.data import ImageTransform
from covpool.data.image_folder import EXTENSIONS, FolderSource
from covpool.errors import UserError
from covpool.export.formats import ExportedModel
from covpool.export.run import transformed


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

    Raises:
        UserError: A path that does not exist, or no image at all.
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


def predict(model: ExportedModel, images: Sequence[Path], top: int = 5, batch_size: int = 16) -> Iterator[Prediction]:
    """Predict the classes of image files.

    Args:
        model: The exported network; its transform and class names are used.
        images: Image files.
        top: Classes to name for each image.
        batch_size: Images computed at once.

    Raises:
        UserError: An image that cannot be read, or an exported file without an image transform.
    """
    if "transform" not in model.about:
        raise UserError("the exported file does not say how images are prepared: export it with export.py")
    transform = ImageTransform.from_dict(model.about["transform"])
    source = FolderSource(
        name="images",
        split="val",
        class_names=(),
        labels=np.zeros(len(images), np.int32),
        mean=transform.mean,
        std=transform.std,
        root=Path("/"),
        files=np.asarray([os.fsencode(path.absolute()).lstrip(b"/") for path in images], dtype=bytes),
    )
    names = model.about.get("class_names", [])
    done = 0
    for batch in transformed(source, transform, batch_size):
        for logits in model(batch).astype(np.float64):
            probabilities = np.exp(logits - logits.max())
            probabilities /= probabilities.sum()
            order = np.argsort(-logits, kind="stable")[:top]
            classes = tuple(names[i] if i < len(names) else str(i) for i in order)
            yield Prediction(images[done], classes, tuple(float(probabilities[i]) for i in order))
            done += 1
