"""Data sets as sources, and the pipeline that turns a source into batches."""

from __future__ import annotations

from covpool.data.arrays import ArraySource, array_source
from covpool.data.augment import Augmentation
from covpool.data.datasets import open_source
from covpool.data.mixing import Mixing
from covpool.data.pipeline import (
    create_dataset,
    epoch_order,
    evaluation_indices,
    pipeline_errors,
    steps_per_epoch,
    training_positions,
)
from covpool.data.sources import Source
from covpool.data.transforms import ImageTransform
from covpool.data.usable import usable

__all__ = [
    "ArraySource",
    "Augmentation",
    "ImageTransform",
    "Mixing",
    "Source",
    "array_source",
    "create_dataset",
    "epoch_order",
    "evaluation_indices",
    "open_source",
    "pipeline_errors",
    "steps_per_epoch",
    "training_positions",
    "usable",
]
