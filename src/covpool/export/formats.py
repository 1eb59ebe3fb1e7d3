"""The formats of exported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Protocol

import numpy as np

from covpool.errors import UserError
from covpool.export.mindir import MindIRModel, write_mindir
from covpool.export.onnx_file import OnnxModel, write_onnx


class ExportedModel(Protocol):
    """An exported file, ready to run."""

    about: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (n, channels, height, width) float32 -> logits (n, K)."""


@dataclass(frozen=True)
class Format:
    """How files of a format are written and run.

    Attributes:
        ending: Of the file's name.
        write: (network, path, image shape, about).
        load: (path, device target).
    """

    ending: str
    write: Callable[[Any, Path, tuple[int, int, int], Mapping[str, Any]], None]
    load: Callable[[Path, str], ExportedModel]


FORMATS = {
    "MINDIR": Format(".mindir", write_mindir, MindIRModel),
    "ONNX": Format(".onnx", write_onnx, OnnxModel),
}


def open_exported(path: str | Path, device_target: str = "CPU") -> ExportedModel:
    """Open an exported file of any format, recognised by its ending.

    Raises:
        UserError: If the file is missing or damaged, or its ending is of no known format.
    """
    path = Path(path)
    for entry in FORMATS.values():
        if path.suffix == entry.ending:
            return entry.load(path, device_target)
    endings = " or ".join(entry.ending for entry in FORMATS.values())
    raise UserError(f"{path} is no exported file: its name must end in {endings}", exit_code=2)
