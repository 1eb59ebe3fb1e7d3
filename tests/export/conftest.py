"""Small networks with lively batch statistics, and real images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.data import ImageTransform, open_source
from covpool.export.run import transformed
from covpool.models import create_model
from covpool.models.classifier import ImageClassifier, batch_norm, convolution

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist_sample"


class Tiny(ImageClassifier):
    """One convolution, then any pooling: (N, 3, H, W) -> (N, 4)."""

    def __init__(self, pooling: str, **pooling_args: Any) -> None:
        super().__init__()
        self.conv1 = convolution(3, 8, 3, 2)
        self.bn1 = batch_norm(8)
        self.relu = nn.ReLU()
        self.build_head(8, pooling, 6, 4, pooling_args)

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        return self.relu(self.bn1(self.conv1(x)))


def lively(network: nn.Cell, seed: int = 0) -> nn.Cell:
    """Give the statistics and weights of normalisations values that training might have left."""
    rng = np.random.default_rng(seed)
    ranges = {"moving_mean": (-0.3, 0.3), "moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "beta": (-0.3, 0.3)}
    for parameter in network.get_parameters():
        limits = ranges.get(parameter.name.rpartition(".")[2])
        if limits:
            parameter.set_data(ms.Tensor(rng.uniform(*limits, parameter.shape).astype(np.float32)))
    return network.set_train(False)


def tiny(pooling: str = "gcp", seed: int = 0, **pooling_args: Any) -> nn.Cell:
    ms.set_seed(seed)
    return lively(Tiny(pooling, **pooling_args), seed)


def small(name: str, pooling: str = "gcp", seed: int = 0, **model_args: Any) -> nn.Cell:
    ms.set_seed(seed)
    sizes = {"base_width": 8, "reduction_dim": 16, "num_classes": 5}
    return lively(create_model(name, pooling=pooling, **{**sizes, **model_args}), seed)


def transform(height: int, width: int) -> dict[str, Any]:
    return {
        "height": height,
        "width": width,
        "crop_ratio": 1.0,
        "interpolation": "bilinear",
        "channels": 3,
        "mean": [0.3, 0.3, 0.3],
        "std": [0.35, 0.35, 0.35],
    }


@pytest.fixture
def pynative_mode() -> None:
    """Run the test in PyNative mode."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="session")
def image_files() -> list[Path]:
    """A few image files of every class."""
    return [file for folder in sorted((SAMPLE / "val").iterdir()) for file in sorted(folder.iterdir())[:2]]


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Real images, (16, 3, 24, 32)."""
    source = open_source("image_folder", SAMPLE, "val").subset(list(range(0, 480, 30)))
    return np.concatenate(list(transformed(source, ImageTransform.from_dict(transform(24, 32)), 16)))


@pytest.fixture(scope="session")
def large_images() -> np.ndarray:
    """Real images for networks with an ImageNet stem, (6, 3, 64, 64)."""
    source = open_source("image_folder", SAMPLE, "val").subset(list(range(0, 480, 80)))
    return np.concatenate(list(transformed(source, ImageTransform.from_dict(transform(64, 64)), 6)))
