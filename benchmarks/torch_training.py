"""The networks of `torch_networks.py` for training: with the poolings of `torch_poolings.py`, DropCov's included."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks import torch_poolings
from benchmarks.torch_networks import Network


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
