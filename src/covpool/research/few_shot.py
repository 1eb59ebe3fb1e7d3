"""Few-shot classification by nearest means of what a network's pooling gives for images of classes it never saw."""

from __future__ import annotations

import math
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.build import build_dataset, build_model, build_source, with_checkpoint
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.evaluation import numpy_batches, outputs
from covpool.runtime.distributed import World


class _Pooled(nn.Cell):
    """Images (N, C, H, W) to pooled vectors (N, D)."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.network.forward_head(self.network.forward_features(x), True)


def pooled_vectors(file: Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, D) of length 1 that a checkpoint's network gives for a split of a data set, and classes (n,)."""
    checkpoint, world = read_checkpoint(file).averaged(config.use_ema), World()
    described = with_checkpoint(config, checkpoint, world)
    network = build_model(described)
    load_network(network, checkpoint)
    source = build_source(described.replace(class_num="auto"), config.split, world)
    pooled, vectors, classes = _Pooled(network).set_train(False), [], []
    for images, labels in numpy_batches(build_dataset(described, source, False, world)):
        vectors.append(outputs(pooled, images, config.batch_size))
        classes.append(labels)
    found = np.concatenate(vectors)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(lengths, np.finfo(np.float32).tiny), np.concatenate(classes)


def episode_accuracies(
    vectors: np.ndarray, classes: np.ndarray, ways: int, shots: int, queries: int, episodes: int, seed: int = 1
) -> np.ndarray:
    """Accuracies (episodes,) of the nearest mean in Euclidean distance.

    An episode draws ``ways`` classes, of each ``shots`` images whose mean stands for it, and ``queries`` others that
    are to be told apart. The draws depend on seed, shots and the classes alone: every network meets the same episodes.

    Raises:
        UserError: There are fewer classes, or a class has fewer images.
    """
    members = [np.flatnonzero(classes == name) for name in np.unique(classes)]
    fewest = min(map(len, members))
    if len(members) < ways or fewest < shots + queries:
        raise UserError(
            f"{ways} classes of {shots} + {queries} images are needed, and there are {len(members)}, the smallest of "
            f"{fewest} images: give fewer --ways, --shots or --queries"
        )
    random, found = np.random.default_rng([seed, shots]), np.empty(episodes)
    for episode in range(episodes):
        drawn = [
            random.choice(members[name], shots + queries, replace=False)
            for name in random.choice(len(members), ways, replace=False)
        ]
        means = np.stack([vectors[rows[:shots]].mean(0) for rows in drawn])
        asked = np.concatenate([vectors[rows[shots:]] for rows in drawn])
        # |q - m|^2 without |q|^2, which is the same for all means
        distances = (means**2).sum(1) - 2 * asked @ means.T
        found[episode] = (distances.argmin(1) == np.repeat(np.arange(ways), queries)).mean()
    return found


def half_width(accuracies: np.ndarray) -> float:
    """Half of the 95 % confidence interval of the mean over episodes."""
    return 1.96 * float(accuracies.std(ddof=1)) / math.sqrt(len(accuracies))
