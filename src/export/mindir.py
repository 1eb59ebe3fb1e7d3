"""MindIR files: writing them for any batch size, and running them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from src.errors import UserError
from src.runtime.files import whole_file


def write_mindir(
    network: nn.Cell, path: Path, channels: int, height: int, width: int, about: Mapping[str, Any]
) -> None:
    """Write the evaluation graph of a network: images (n, channels, height, width) of any n -> logits.

    ``about`` (class names, image transform) travels inside the file.

    Raises:
        UserError: If the file cannot be written.
    """

    def add_about(model: Any) -> None:
        model.user_info.add(key="about", value=json.dumps(dict(about)))

    network.set_train(False)
    images = ms.Tensor(shape=[None, channels, height, width], dtype=ms.float32)
    try:
        with whole_file(path) as temporary:
            ms.export(network, images, file_name=str(temporary), file_format="MINDIR", custom_func=add_about)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class MindIRModel:
    """An exported file, ready to run: images (n, channels, height, width) float32 -> logits (n, K), NumPy arrays.

    Attributes:
        about: What travelled with the graph: ``class_names`` and the image ``transform``.

    Raises:
        UserError: If the file is missing, damaged or not a MindIR.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"no exported file at {path}")
        try:
            graph = ms.load(str(path))
            about = {entry.key: entry.value for entry in ms.load_mindir(str(path)).user_info}
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is damaged or not a MindIR file: {first}") from error
        self._network = nn.GraphCell(graph)
        self.about: dict[str, Any] = json.loads(about["about"]) if "about" in about else {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch."""
        return self._network(ms.Tensor(np.ascontiguousarray(images, np.float32))).asnumpy()
