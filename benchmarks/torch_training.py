"""The networks of `torch_networks.py` for training: with the poolings of `torch_poolings.py`, DropCov's included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import torch_poolings
from benchmarks.torch_networks import Network, load_weights


class TrainedNetwork(Network):
    """A ResNet whose pooling has hand-written gradients; 'dropcov' drops channels in training."""

    def __init__(self, name: str, pooling: str, **options: int) -> None:
        super().__init__(name, pooling, **options)
        if pooling == "dropcov":
            self.kernel = nn.Parameter(torch.zeros(1, 1, 3))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The covariance pooling, (N, d, M) -> (N, d (d + 1) / 2), in float32 under autocast, too."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.pooling_name == "dropcov":
                return torch_poolings.dropcov(x, self.kernel, self.training)
            return getattr(torch_poolings, self.pooling_name)(x)


def trained_network(
    name: str, pooling: str, classes: int, weights: Path, device: str, sgd: tuple[float, float, float]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network in channels-last with the weights of a file, and its optimiser.

    Args:
        name: Of the network.
        pooling: Its pooling.
        classes: Width of the classifier.
        weights: NumPy archive of the other side's parameters.
        device: 'cpu' or 'cuda'.
        sgd: Rate, momentum, and the decay of all but vectors.
    """
    network = load_weights(TrainedNetwork(name, pooling, num_classes=classes), np.load(weights))
    network = network.to(device).to(memory_format=torch.channels_last)
    rate, momentum, decay = sgd
    plain = [p for p in network.parameters() if p.ndim <= 1]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain}]
    return network, torch.optim.SGD(groups, rate, momentum=momentum, fused=True)
