"""Names and shapes of the released PyTorch checkpoints, and weights for them that are rules instead of files."""

from __future__ import annotations

import zlib

import numpy as np

BLOCKS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
BASIC = ("resnet10", "resnet18", "resnet34")


def released_shapes(
    network: str, head: str, reduction_dim: int = 128, classes: int = 1000, width: int = 64
) -> dict[str, tuple[int, ...]]:
    """torchvision's names with the additions of the papers; head is 'gap', 'acd' (DropCov) or 'mpncov' (Fast-MPN)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, c_out: int, c_in: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (c_out, c_in, kernel, kernel)

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", width, 3, 7)
    norm("bn1", width)
    expansion = 1 if network in BASIC else 4
    channels = width
    for stage, blocks in enumerate(BLOCKS[network], start=1):
        planes = width * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            kernels = (3, 3) if expansion == 1 else (1, 3, 1)
            widths = [channels] + [planes] * (len(kernels) - 1) + [planes * expansion]
            for i, kernel in enumerate(kernels, start=1):
                conv(f"{name}.conv{i}", widths[i], widths[i - 1], kernel)
                norm(f"{name}.bn{i}", widths[i])
            if block == 0 and (stage > 1 or expansion > 1):
                conv(f"{name}.downsample.0", planes * expansion, channels, 1)
                norm(f"{name}.downsample.1", planes * expansion)
            channels = planes * expansion
    inputs = channels
    if head != "gap":
        conv("layer_reduce", reduction_dim, channels, 1)
        norm("layer_reduce_bn", reduction_dim)
        inputs = reduction_dim * (reduction_dim + 1) // 2
    if head == "acd":
        shapes["eca_layer.conv.weight"] = (1, 1, 3)
    shapes["fc.weight"] = (classes, inputs)
    shapes["fc.bias"] = (classes,)
    return shapes


def rule_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a tensor, drawn from a generator that its name seeds."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        value = 0.1 * random.standard_normal(shape)
    elif len(shape) == 1:
        value = random.uniform(0.7, 1.0, shape)
    else:
        value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def rule_state_dict(
    network: str, head: str, reduction_dim: int = 128, classes: int = 1000, width: int = 64
) -> dict[str, np.ndarray]:
    """A state dict as the papers released it, with rule weights."""
    shapes = released_shapes(network, head, reduction_dim, classes, width)
    return {name: rule_tensor(name, shape) for name, shape in shapes.items()}


def rule_images(seed: int, size: int, batch: int = 2, channels: int = 3) -> np.ndarray:
    """Images (batch, channels, size, size), standard normal."""
    random = np.random.Generator(np.random.PCG64(seed))
    return random.standard_normal((batch, channels, size, size)).astype(np.float32)
