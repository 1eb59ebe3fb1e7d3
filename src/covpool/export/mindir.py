"""MindIR files: writing them for any batch size, and running them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.errors import UserError
from covpool.export.contents import checked_mindir
from covpool.export.seal import read_sealed, seal

# Above it MindSpore writes a folder of several files in place of one.
LARGEST = 2**30


def write_mindir(network: nn.Cell, path: Path, shape: tuple[int, int, int], about: Mapping[str, Any]) -> None:
    """Write the evaluation graph of a network: images (n, *shape) of any n -> logits.

    Args:
        network: The network.
        path: File to write, ending in ``.mindir``.
        shape: Channels, height and width of the images.
        about: Facts that JSON can hold (class names, image transform); they travel inside the file.

    Raises:
        UserError: If the network is too large for one file, or the file cannot be written.
    """

    def add_about(model: Any) -> None:
        model.user_info.add(key="about", value=json.dumps(dict(about)))

    write_graph(network, ms.Tensor(shape=[None, *shape], dtype=ms.float32), path, custom_func=add_about)
    seal(path)


def write_graph(network: nn.Cell, images: ms.Tensor, path: Path, **options: Any) -> None:
    """Write the evaluation graph of a network for images of a shape, with ``options`` of ``mindspore.export``.

    Raises:
        UserError: If the network is too large for one file, or the file cannot be written.
    """
    size = sum(parameter.nbytes for parameter in network.get_parameters())
    if size > LARGEST:
        raise UserError(f"the network holds {size / 2**30:.1f} GiB; an exported file takes {LARGEST / 2**30:g} GiB")
    network.set_train(False)
    try:
        ms.export(network, images, file_name=str(path), file_format="MINDIR", **options)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class MindIRModel:
    """A MindIR file, ready to run: images (n, channels, height, width) float32 -> logits (n, K), NumPy arrays.

    Attributes:
        about: What travelled with the graph: ``class_names`` and the image ``transform``.

    Args:
        path: The file.
        device_target: Where it runs; MindSpore's context must be set to it.

    Raises:
        UserError: If the file is missing, damaged or not a MindIR, or could do more than compute.
    """

    def __init__(self, path: Path, device_target: str = "CPU") -> None:
        model = checked_mindir(read_sealed(path), path)
        try:
            information = {entry.key: entry.value for entry in model.user_info}
            self.about: dict[str, Any] = json.loads(information.get("about", "{}"))
            graph = ms.load(str(path))
        except Exception as error:  # whatever MindSpore's parsers met
            raise UserError(f"{path} is damaged or not a MindIR file of export.py: {first_line(error)}") from error
        self._network = nn.GraphCell(graph)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch."""
        return self._network(ms.Tensor(np.ascontiguousarray(images, np.float32))).asnumpy()


def first_line(error: BaseException) -> str:
    """The first line of an error's message; MindSpore appends pages of C++ calls."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
