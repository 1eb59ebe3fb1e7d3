"""The networks of this project in PyTorch, with the same weights: what benchmarks and tests compare with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import torch_poolings

_LAYERS = {
    "resnet10": (1, (1, 1, 1, 1)),
    "resnet18": (1, (2, 2, 2, 2)),
    "resnet34": (1, (3, 4, 6, 3)),
    "resnet50": (4, (3, 4, 6, 3)),
    "resnet101": (4, (3, 4, 23, 3)),
}
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class Block(nn.Module):
    """A residual block: two 3x3 convolutions (expansion 1), or 1x1, 3x3, 1x1 (expansion 4)."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        out_channels = channels * expansion
        self.deep = expansion > 1
        first = (1, 1, 0) if self.deep else (3, stride, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, *first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride if self.deep else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        if self.deep:
            self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, channels * expansion, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            y = self.bn3(self.conv3(self.relu(y)))
        return self.relu(y + self.downsample(x))


class Network(nn.Module):
    """A ResNet with the poolings 'gap', 'gcp', 'dropcov' (in evaluation) and 'fast_mpn' (5 iterations)."""

    def __init__(
        self, name: str, pooling: str, reduction_dim: int = 128, num_classes: int = 1000, width: int = 64
    ) -> None:
        super().__init__()
        if pooling not in ("gap", "gcp", "dropcov", "fast_mpn"):
            raise ValueError(f"no PyTorch counterpart of pooling {pooling!r} here")
        expansion, layers = _LAYERS[name]
        self.pooling_name, covariance = pooling, pooling != "gap"
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage, (blocks, stride) in enumerate(zip(layers, (1, 2, 2, 1 if covariance else 2))):
            planes, cells = width * 2**stage, []
            for index in range(blocks):
                cells.append(Block(channels, planes, stride if index == 0 else 1, expansion))
                channels = planes * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*cells))
        features = channels
        if covariance:
            self.layer_reduce = nn.Conv2d(channels, reduction_dim, 1, bias=False)
            self.layer_reduce_bn = nn.BatchNorm2d(reduction_dim)
            self.register_buffer("eye", torch.eye(reduction_dim), persistent=False)
            upper = torch.triu_indices(reduction_dim, reduction_dim)
            self.register_buffer("index", upper[0] * reduction_dim + upper[1], persistent=False)
            features = reduction_dim * (reduction_dim + 1) // 2
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.pooling_name == "gap":
            return self.fc(x.mean((2, 3)))
        x = self.relu(self.layer_reduce_bn(self.layer_reduce(x))).flatten(2)
        return self.fc(self.pool(x))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The covariance pooling, (N, d, M) -> (N, d (d + 1) / 2)."""
        x = (x - x.mean(-1, keepdim=True)) * x.shape[-1] ** -0.5
        c = torch.bmm(x, x.transpose(1, 2))
        if self.pooling_name == "fast_mpn":
            c = self.newton_schulz(c)
        return c.flatten(1).index_select(1, self.index)

    def newton_schulz(self, c: torch.Tensor, iterations: int = 5) -> torch.Tensor:
        """The approximate square root of (N, d, d)."""
        trace = (c * self.eye).sum((1, 2), keepdim=True)
        a = c / trace
        z = 0.5 * (3 * self.eye - a)
        y = torch.bmm(a, z)
        for _ in range(iterations - 2):
            t = 0.5 * (3 * self.eye - torch.bmm(z, y))
            y, z = torch.bmm(y, t), torch.bmm(t, z)
        return 0.5 * torch.bmm(y, 3 * self.eye - torch.bmm(z, y)) * trace.sqrt()


def load_weights(network: Network, weights: Mapping[str, np.ndarray]) -> Network:
    """Give a network the weights of its MindSpore twin, by name; strict, but for DropCov's kernel."""
    state = {}
    for name, value in weights.items():
        head, _, tail = name.rpartition(".")
        if not name.startswith("pooling."):
            state[f"{head}.{_BATCH_NORM.get(tail, tail)}"] = torch.from_numpy(np.array(value))
    known = network.state_dict()
    state.update({k: v for k, v in known.items() if k.endswith(("num_batches_tracked", "kernel"))})
    network.load_state_dict(state)
    return network


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


class PeerNetwork(nn.Module):
    """A network of torchvision (MobileNetV2, ShuffleNetV2) or timm (DeiT, Swin) with the head that this project has.

    Pooling 'gap' is the peer's own classification. Any other takes the last maps after a reduction, or, of
    transformers, the patch tokens after LayerNorm and reduction, whose logits are added to those of the peer.
    """

    def __init__(self, name: str, pooling: str, reduction_dim: int = 128, num_classes: int = 1000) -> None:
        super().__init__()
        self.pooling_name, self.tokens = pooling, name.startswith(("deit", "swin"))
        if self.tokens:
            from benchmarks.torch_peers import timm  # seconds that ResNets need not wait for

            self.backbone = timm.create_model(name, num_classes=num_classes)
            channels = self.backbone.num_features
            self.reduce: nn.Module = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, reduction_dim))
        else:
            from benchmarks.torch_peers import torchvision

            make = {"mobilenet_v2_100": "mobilenet_v2", "shufflenet_v2_x1_0": "shufflenet_v2_x1_0"}[name]
            whole = getattr(torchvision.models, make)(num_classes=num_classes)
            shuffle = make.startswith("shuffle")
            self.backbone = nn.Sequential(*list(whole.children())[:-1]) if shuffle else whole.features
            channels = whole.fc.in_features if shuffle else whole.last_channel
            relu = nn.ReLU(inplace=True) if shuffle else nn.ReLU6(inplace=True)
            convolution = nn.Conv2d(channels, reduction_dim, 1, bias=False)
            self.reduce = nn.Sequential(convolution, nn.BatchNorm2d(reduction_dim), relu)
            self.dropout = nn.Dropout(0.0 if shuffle else 0.2)
        if pooling == "gap":
            self.reduce = nn.Identity()
            self.fc: nn.Module = nn.Identity() if self.tokens else nn.Linear(channels, num_classes)
        else:
            self.fc = nn.Linear(reduction_dim * (reduction_dim + 1) // 2, num_classes)
        if pooling == "dropcov":
            self.kernel = nn.Parameter(torch.zeros(1, 1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        if not self.tokens:
            x = self.reduce(self.backbone(x))
            return self.fc(self.dropout(x.mean((2, 3)) if self.pooling_name == "gap" else self.pool(x.flatten(2))))
        tokens = self.backbone.forward_features(x)
        logits = self.backbone.forward_head(tokens)
        if self.pooling_name == "gap":
            return logits
        patches = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, 1:]  # Swin's are a map, without class token
        return logits + self.fc(self.pool(self.reduce(patches).transpose(1, 2)))

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The covariance pooling, (N, d, M) -> (N, d (d + 1) / 2)."""
        if self.pooling_name == "dropcov":
            return torch_poolings.dropcov(x, self.kernel, self.training)
        return getattr(torch_poolings, self.pooling_name)(x)


def has_our_names(name: str) -> bool:
    """Whether the PyTorch network of that name has the parameters of ours, so that both can begin with the same."""
    return name in _LAYERS


def plain_network(name: str, pooling: str, **options: int) -> nn.Module:
    """The network of a name with its initial weights."""
    return Network(name, pooling, **options) if has_our_names(name) else PeerNetwork(name, pooling, **options)


def trained_network(
    name: str, pooling: str, classes: int, weights: Path, device: str, sgd: tuple[float, float, float]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network, a convolutional one in channels-last, and its optimiser; a ResNet with the weights of a file.

    Args:
        name: Of the network.
        pooling: Its pooling.
        classes: Width of the classifier.
        weights: NumPy archive of the other side's parameters.
        device: 'cpu' or 'cuda'.
        sgd: Rate, momentum, and the decay of all but vectors.
    """
    network: nn.Module
    if has_our_names(name):
        network = load_weights(TrainedNetwork(name, pooling, num_classes=classes), np.load(weights))
    else:
        network = PeerNetwork(name, pooling, num_classes=classes)
    network = network.to(device)
    if not getattr(network, "tokens", False):
        network = network.to(memory_format=torch.channels_last)
    rate, momentum, decay = sgd
    plain = [p for p in network.parameters() if p.ndim <= 1]
    decayed = [p for p in network.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain}]
    return network, torch.optim.SGD(groups, rate, momentum=momentum, fused=True)
