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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.pooling_name == "gap":
            return self.fc(x.mean((2, 3)))
        x = self.relu(self.layer_reduce_bn(self.layer_reduce(x))).flatten(2)
        if self.pooling_name == "dropcov":
            return self.fc(torch_poolings.dropcov(x, self.kernel, self.training))
        return self.fc(getattr(torch_poolings, self.pooling_name)(x))
