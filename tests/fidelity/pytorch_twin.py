"""A residual network with covariance pooling in plain PyTorch, written from the papers for comparisons."""

from __future__ import annotations

import mindspore  # noqa: F401  must come before torch: both bring an OpenMP runtime
import torch
from torch import nn
from torch.nn import functional

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, under torchvision's names."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class TwinResNet(nn.Module):
    """The released networks; pooling is 'gap', 'gcp', 'fast_mpn' or 'dropcov' (with nothing dropped)."""

    def __init__(self, name: str, pooling: str, reduction_dim: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        strides = (1, 2, 2, 2 if pooling == "gap" else 1)
        for stage, (blocks, stride) in enumerate(zip(BLOCKS[name], strides)):
            planes = width * 2**stage
            cells = [Block(channels, planes, stride)] + [Block(planes, planes, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*cells))
            channels = planes
        features = channels
        if pooling != "gap":
            self.layer_reduce = nn.Conv2d(channels, reduction_dim, 1, bias=False)
            self.layer_reduce_bn = nn.BatchNorm2d(reduction_dim)
            features = reduction_dim * (reduction_dim + 1) // 2
        if pooling == "dropcov":
            self.eca_layer = nn.Module()
            self.eca_layer.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.fc = nn.Linear(features, num_classes)
        for module in self.modules():
            if isinstance(module, Block):  # residual branches start at zero: see the test
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.pooling == "gap":
            return self.fc(x.mean((2, 3)))
        x = functional.relu(self.layer_reduce_bn(self.layer_reduce(x)))
        if self.pooling == "dropcov":
            omega = self.eca_layer.conv(x.mean((2, 3))[:, None])[:, 0].softmax(1)
            x = x * omega[:, :, None, None] + x
        c = covariance(x)
        if self.pooling == "fast_mpn":
            c = newton_schulz_root(c)
        rows, columns = torch.triu_indices(c.shape[1], c.shape[1])
        return self.fc(c[:, rows, columns])


def covariance(x: torch.Tensor) -> torch.Tensor:
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    return x @ x.transpose(1, 2) / x.shape[2]


def newton_schulz_root(c: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The released iteration: the first step starts from Z = I, the last one computes Y only."""
    identity = torch.eye(c.shape[1])
    trace = c.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    y = c / trace
    z = identity.expand_as(c)
    for step in range(iterations):
        t = (3 * identity - z @ y) / 2
        y = y @ t
        if step < iterations - 1:
            z = t @ z
    return y * trace.sqrt()
