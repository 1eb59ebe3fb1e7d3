"""Export of a checkpoint as configured, and the check of the file that came out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from src.build import architecture, build_model
from src.checkpoints import load_network, read_checkpoint
from src.config import Config
from src.data import Source, create_dataset, open_source
from src.data.sources import IMAGENET_MEAN, IMAGENET_STD
from src.errors import UserError
from src.evaluation import numpy_batches
from src.export.mindir import MindIRModel, write_mindir

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
BATCHES = (1, 5)
SAMPLE = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist_sample"


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        path: The file.
        difference: Largest difference between file and network, relative to the largest logit.
        images: Where the images of the comparison came from.
    """

    path: Path
    difference: float
    images: str


def export_checkpoint(config: Config) -> Exported:
    """Export ``checkpoint_file_path``, load the file again and compare it with the network on real images.

    The images are those of ``data_path``, or the sample in this repository where that is not at hand.

    Raises:
        UserError: If the checkpoint does not fit, the file cannot be written, or it computes something else.
    """
    if config.file_format != "MINDIR":
        raise UserError(f"file_format={config.file_format} cannot be written yet; use MINDIR", exit_code=2)
    network = build_model(config)
    checkpoint = read_checkpoint(config.checkpoint_file_path)
    load_network(network, checkpoint, architecture(config))
    network.set_train(False)
    height, width = config.height or config.eval_image_size, config.width or config.eval_image_size
    transform = image_transform(config, checkpoint.about, height, width)
    path = Path(config.file_name)
    path = path if path.suffix == ".mindir" else path.with_name(path.name + ".mindir")
    about = {
        "architecture": architecture(config),
        "class_names": checkpoint.about.get("class_names", []),
        "transform": transform,
    }
    write_mindir(network, path, config.in_channels, height, width, about)

    source = _images(config)
    exported, difference = MindIRModel(path), 0.0
    for images in _comparison_batches(source, transform):
        expected = network(ms.Tensor(images)).asnumpy()
        found = exported(images)
        difference = max(difference, float(np.abs(found - expected).max() / np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise UserError(f"{path} differs from the network by {difference:.2e} of the largest logit, over {TOLERANCE}")
    return Exported(path, difference, source.name)


def image_transform(config: Config, about: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """What turns an image file into the network's input; travels with the exported file.

    Mean and standard deviation are the configuration's, else those that the checkpoint was trained with, else
    ImageNet's for an image folder.

    Raises:
        UserError: If nothing says how the images of this data set are normalised.
    """
    folder = config.dataset in ("image_folder", "imagenet2012")
    statistics = {}
    for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        value = getattr(config, key) or about.get(key) or (default if folder else None)
        if value is None:
            raise UserError(f"the checkpoint does not say its {key} per channel: give --{key}=[...]", exit_code=2)
        statistics[key] = [float(v) for v in value]
    return {
        "height": height,
        "width": width,
        "crop_ratio": config.eval_crop_ratio,
        "interpolation": config.interpolation,
        "channels": config.in_channels,
        **statistics,
    }


def transformed(source: Source, transform: dict[str, Any], batch_size: int) -> Iterator[np.ndarray]:
    """Batches of a source's images as the exported network expects them, float32 (n, channels, height, width)."""
    height, width = transform["height"], transform["width"]
    dataset = create_dataset(
        source,
        training=False,
        image_size=max(height, width),
        batch_size=batch_size,
        eval_crop_ratio=transform["crop_ratio"],
        interpolation=transform["interpolation"],
        mean=transform["mean"],
        std=transform["std"],
        channels=transform["channels"],
    )
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    for images, _ in numpy_batches(dataset):
        yield images[:, :, top : top + height, left : left + width]


def _images(config: Config) -> Source:
    if config.data_path and Path(config.data_path).is_dir():
        source = open_source(config.dataset, config.data_path, "val")
    elif SAMPLE.is_dir():
        source = open_source("image_folder", SAMPLE, "val")
    else:
        raise UserError("no images to check the exported file with: give --data_path=DIR", exit_code=2)
    wanted = min(sum(BATCHES), source.num_samples)
    return source.subset(np.linspace(0, source.num_samples - 1, wanted, dtype=np.int64).tolist())


def _comparison_batches(source: Source, transform: dict[str, Any]) -> Iterator[np.ndarray]:
    first = 0
    images = np.concatenate(list(transformed(source, transform, BATCHES[-1])))
    for size in BATCHES:
        part = images[first : first + size]
        if len(part):
            yield part
        first += size
