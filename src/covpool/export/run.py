"""Export of a network or checkpoint, and the check of the file that came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Protocol

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.build import architecture, build_model, image_transform, with_checkpoint
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.config import Config
from covpool.data import ImageTransform, Source, create_dataset, open_source
from covpool.errors import UserError, first_line
from covpool.evaluation import numpy_batches
from covpool.export.mindir import MindIRModel, write_mindir
from covpool.export.onnx_file import OnnxModel, write_onnx
from covpool.models import fold_batch_norm
from covpool.runtime.distributed import exact_convolutions
from covpool.runtime.files import os_errors_as, whole_file
from covpool.runtime.signals import StopRequest


class ExportedModel(Protocol):
    """An exported file, ready to run."""

    about: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (n, channels, height, width) float32 -> logits (n, K)."""


@dataclass(frozen=True)
class Format:
    """How files of a format are written and run."""

    ending: str  # of the file's name
    write: Callable[[Any, Path, tuple[int, int, int], Mapping[str, Any]], None]  # (network, path, image shape, about)
    load: Callable[[Path, str], ExportedModel]  # (path, device target)


FORMATS = {
    "MINDIR": Format(".mindir", write_mindir, MindIRModel),
    "ONNX": Format(".onnx", write_onnx, OnnxModel),
}


def open_exported(path: str | Path, device_target: str = "CPU") -> ExportedModel:
    """Open an exported file of any format by its ending; UserError if it is missing, damaged, or of none."""
    path = Path(path)
    for entry in FORMATS.values():
        if path.suffix == entry.ending:
            return entry.load(path, device_target)
    endings = " or ".join(entry.ending for entry in FORMATS.values())
    raise UserError(f"{path} is no exported file: its name must end in {endings}", exit_code=2)


# Largest allowed differences from the network: logits of the file, feature maps after folding.
FILE_TOLERANCE = 1e-4
FOLDING_TOLERANCE = 1e-5
BATCHES = (1, 5)
SAMPLE = Path(__file__).resolve().parents[3] / "data" / "fashion_mnist_sample"


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        path: The file.
        difference: Largest difference between file and network, relative to the largest logit.
        folding_difference: Norm of the difference that folding the batch normalisations makes to the feature maps,
            relative to their norm.
    """

    path: Path
    difference: float
    folding_difference: float


def export_network(
    network: nn.Cell,
    path: str | Path,
    file_format: str,
    images: np.ndarray,
    about: Mapping[str, Any],
    stop: StopRequest | None = None,
) -> Exported:
    """Fold the batch normalisations, write the graph, load the file and compare it with the network.

    A file that fails the comparison is removed; an earlier one of that name then stays.

    Args:
        network: The network; it stays as it is.
        path: File to write; the format's ending is added where it is missing.
        file_format: 'MINDIR' or 'ONNX'.
        images: Images for the comparison, (n, channels, height, width) float32, computed in two batches.
        about: Facts that travel with the file, class names and image transform for one.
        stop: Signals that end the export before the file is there.

    Raises:
        UserError: If the network cannot be written in this format, or the file computes something else.
    """
    chosen, stop = FORMATS[file_format], stop or StopRequest()
    _, channels, height, width = images.shape
    path = Path(path)
    path = path if path.suffix == chosen.ending else path.with_name(path.name + chosen.ending)
    features, expected = _features_and_logits(network, images)
    stop.check("before the file was written")
    if not np.isfinite(expected).all():
        raise UserError("the network's logits are not finite on the images of the comparison")
    folded = fold_batch_norm(network)
    # Compared before the pooling, which is the same in both and may magnify the rounding (a root at zero does).
    change = _features_and_logits(folded, images)[0] - features
    folding_difference = float(np.linalg.norm(change) / (np.linalg.norm(features) or 1.0))
    if not folding_difference <= FOLDING_TOLERANCE:
        raise UserError(
            f"folding the batch normalisations changes the features by {folding_difference:.2e} of their norm, "
            f"over {FOLDING_TOLERANCE}"
        )
    with os_errors_as(f"cannot write {path}"), whole_file(path) as temporary:
        chosen.write(folded, temporary, (channels, height, width), about)
        stop.check("before the file was compared")
        difference = _compare(chosen.load(temporary, "CPU"), images, expected)
        if not difference <= FILE_TOLERANCE:
            raise UserError(
                f"the exported file differs from the network by {difference:.2e} of the largest logit, over "
                f"{FILE_TOLERANCE}"
            )
    return Exported(path, difference, folding_difference)


def export_checkpoint(config: Config, stop: StopRequest | None = None) -> tuple[Exported, str]:
    """Export ``checkpoint_file_path`` and compare the file with the network on real images.

    What the configuration does not give of network and image transform the checkpoint says. The images are those of
    ``data_path``, or the sample in this repository where that is not at hand. A signal that ``stop`` receives ends the
    export before the file is there.

    Returns:
        What came out, and the name of the images' source.

    Raises:
        UserError: If the checkpoint does not fit, the file cannot be written, or it computes something else.
    """
    exact_convolutions()  # with those of a GPU's default the comparisons would see nothing but rounding
    checkpoint = read_checkpoint(config.checkpoint_file_path).averaged(config.use_ema)
    config = with_checkpoint(config, checkpoint)
    network = build_model(config)
    load_network(network, checkpoint)
    source = _source(config)
    transform = image_transform(config, source)
    transform = replace(transform, height=config.height or transform.height, width=config.width or transform.width)
    about = {
        "architecture": architecture(config),
        "class_names": checkpoint.about.get("class_names", []),
        "transform": transform.to_dict(),
    }
    images = np.concatenate(list(transformed(source, transform, sum(BATCHES))))
    return export_network(network, config.file_name, config.file_format, images, about, stop), source.name


def transformed(source: Source, transform: ImageTransform, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of a source's images as the exported network expects them, float32 (n, channels, height, width)."""
    for images, _ in numpy_batches(create_dataset(source, transform, batch_size)):
        yield images


def _source(config: Config) -> Source:
    if config.data_path and Path(config.data_path).is_dir():
        source = open_source(
            config.dataset, config.data_path, "val", max_pixels=config.max_pixels, val_fraction=config.val_fraction
        )
    elif config.dataset not in ("image_folder", "imagenet2012", "mindrecord") and not (config.mean and config.std):
        raise UserError("nothing says how images are normalised: give --mean=[...] and --std=[...], or --data_path", 2)
    elif SAMPLE.is_dir():
        source = open_source("image_folder", SAMPLE, "val")
    else:
        raise UserError("no images to check the exported file with: give --data_path=DIR", exit_code=2)
    wanted = min(sum(BATCHES), source.num_samples)
    return source.subset(np.linspace(0, source.num_samples - 1, wanted, dtype=np.int64).tolist())


class _FeaturesAndLogits(nn.Cell):
    """Both outputs of a network in one graph; the network's parameters keep their names."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        features = self.network.forward_features(x)
        return features, self.network.forward_head(features)


def _features_and_logits(network: nn.Cell, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    was_training = network.training
    features, logits = _FeaturesAndLogits(network).set_train(False)(ms.Tensor(images))
    network.set_train(was_training)
    return features.asnumpy(), logits.asnumpy()


def _compare(exported: Any, images: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of the file's logits, relative to the largest one, at two batch sizes if there are images."""
    parts = [part for part in np.split(images, [BATCHES[0]]) if len(part)]
    try:
        found = np.concatenate([exported(part) for part in parts])
    except Exception as error:  # the runtimes' errors have no common base
        sizes = " and ".join(str(len(part)) for part in parts)
        raise UserError(f"the exported file does not run with {sizes} images: {first_line(error)}") from error
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
