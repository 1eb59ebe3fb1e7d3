"""Networks with covariance pooling in plain PyTorch, written from the papers for comparisons."""

from __future__ import annotations

from typing import Any

import mindspore  # noqa: F401  must come before torch: both bring an OpenMP runtime
import torch
from torch import nn

from benchmarks.torch_networks import Block, Network
from benchmarks.torch_peers import torchvision

LIGHT = {
    "mobilenet_v2_100": torchvision.models.mobilenet_v2,
    "shufflenet_v2_x0_5": torchvision.models.shufflenet_v2_x0_5,
    "shufflenet_v2_x1_0": torchvision.models.shufflenet_v2_x1_0,
    "shufflenet_v2_x1_5": torchvision.models.shufflenet_v2_x1_5,
    "shufflenet_v2_x2_0": torchvision.models.shufflenet_v2_x2_0,
}


class TwinResNet(Network):
    """The released networks; pooling is 'gap', 'gcp', 'fast_mpn' or 'dropcov' (with nothing dropped)."""

    def __init__(self, name: str, pooling: str, reduction_dim: int, num_classes: int, width: int) -> None:
        super().__init__(name, pooling, reduction_dim, num_classes, width)
        if pooling == "dropcov":
            self.eca_layer = nn.Module()
            self.eca_layer.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        for module in self.modules():
            if isinstance(module, Block):  # residual branches start at zero: see the test
                nn.init.zeros_(module.bn2.weight)

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooling_name == "dropcov":
            omega = self.eca_layer.conv(x.mean(2)[:, None])[:, 0].softmax(1)
            x = x * omega[:, :, None] + x
        c = covariance(x)
        if self.pooling_name == "fast_mpn":
            c = newton_schulz_root(c)
        rows, columns = torch.triu_indices(c.shape[1], c.shape[1])
        return c[:, rows, columns]


class ReleasedLight(nn.Module):
    """A network of torchvision with the covariance head of the CVPR 2020 study, under its names; nothing is dropped."""

    def __init__(self, name: str, pooling: str, classes: int = 5, d: int = 16, **args: Any) -> None:
        super().__init__()
        plain = LIGHT[name](num_classes=classes, **args)
        for child, module in plain.named_children():
            setattr(self, child, module)
        self.covariance = pooling == "fast_mpn"
        self.mobile = name.startswith("mobilenet")
        if self.covariance:
            last = self.features[-1][0] if self.mobile else self.conv5[0]
            self.dimension_reduction = nn.Sequential(
                nn.Conv2d(last.out_channels, d, 1, bias=False), nn.BatchNorm2d(d), nn.ReLU6()
            )
            dense = nn.Linear(d * (d + 1) // 2, classes)
            if self.mobile:
                self.classifier[1] = dense
            else:
                self.fc = dense
        if self.mobile:
            self.classifier[0] = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.mobile:
            x = self.features(x)
        else:
            x = self.conv5(self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x))))))
        if self.covariance:
            c = newton_schulz_root(covariance(self.dimension_reduction(x)))
            rows, columns = torch.triu_indices(c.shape[1], c.shape[1])
            x = c[:, rows, columns]
        else:
            x = x.mean((2, 3))
        return self.classifier(x) if self.mobile else self.fc(x)


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
