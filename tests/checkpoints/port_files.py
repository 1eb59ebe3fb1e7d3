"""Checkpoints as the public MindSpore ports write them, from names alone, and what their networks compute.

The ports took MindSpore's model zoo as it is. Blocks of two convolutions (ResNet-18, 34): padding on both sides; eps is
1e-4 in a block's two normalisations and 1e-5 elsewhere. Blocks of three (ResNet-50): 'same' padding, eps 1e-4 in
stem, blocks and shortcuts. Reduction: eps 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import torch  # after mindspore: both bring an OpenMP runtime
from torch.nn import functional

from tests.checkpoints.released import BASIC, BLOCKS, released_shapes, rule_tensor

LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def port_name(name: str, basic: bool) -> str:
    """The port's name of a tensor of the released PyTorch checkpoints."""
    parts = name.split(".")
    norm = parts[-2] if parts[-2] != "1" else "downsample"
    if norm.startswith(("bn", "downsample", "layer_reduce_bn")) and parts[-2] != "0":
        parts[-1] = LEAVES[parts[-1]]
    renamed = {"downsample": "down_sample_layer", **({"bn1": "bn1d", "bn2": "bn2d"} if basic else {})}
    return ".".join([parts[0], *(renamed.get(part, part) for part in parts[1:])])


def port_arrays(network: str, head: str, classes: int = 5, width: int = 8) -> dict[str, np.ndarray]:
    """Name -> array of a port's network; head is 'acd' (DropCov) or 'mpncov' (Fast-MPN)."""
    arrays = {}
    for name, shape in released_shapes(network, head, 16, classes, width).items():
        if not name.endswith("num_batches_tracked"):
            value = rule_tensor(name, shape)
            if len(shape) == 1 and not name.startswith("fc"):  # an eps of 1e-4 shows where variances are small
                value = value * (0.01 if name.endswith("running_var") else 0.1)
            arrays[port_name(name, network in BASIC)] = value[None] if name.startswith("eca_layer") else value
    return arrays


def write_port_file(path: Path, arrays: dict[str, np.ndarray], training: bool = True, **options: str) -> None:
    """A checkpoint of the port: without checksum, with what its training loop adds."""
    entries = dict(arrays)
    if training:
        entries.update({f"moments.{n}": np.zeros_like(a) for n, a in arrays.items() if "moving" not in n})
        entries.update(learning_rate=np.zeros(600, np.float32), momentum=np.array(0.9, np.float32))
        entries["global_step"] = np.array([5], np.int32)
    saved = [{"name": name, "data": ms.Tensor(array)} for name, array in entries.items()]
    ms.save_checkpoint(saved, str(path), append_dict={"epoch_num": 90, "step_num": 5004, **options})
    path.chmod(0o644)


def port_logits(arrays: dict[str, np.ndarray], network: str, images: np.ndarray) -> np.ndarray:
    """Logits of a port's network with plain covariance pooling, in PyTorch, read off the port's own names."""
    basic = network in BASIC
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def conv(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = t[f"{name}.weight"]
        k = weight.shape[-1]
        if basic:
            return functional.conv2d(x, weight, stride=stride, padding=k // 2)
        return functional.conv2d(functional.pad(x, same(x.shape[-1], k, stride)), weight, stride=stride)

    def same(side: int, k: int, stride: int) -> tuple[int, int, int, int]:
        total = max((-(-side // stride) - 1) * stride + k - side, 0)
        return (total // 2, total - total // 2) * 2

    def norm(x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        gamma, beta, mean, variance = (
            t[f"{name}.{leaf}"] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return functional.batch_norm(x, mean, variance, gamma, beta, eps=eps)

    other = 1e-5 if basic else 1e-4
    x = functional.relu(norm(conv(torch.from_numpy(images), "conv1", 2), "bn1", other))
    pads = (1, 1, 1, 1) if basic else same(x.shape[-1], 3, 2)
    x = functional.max_pool2d(functional.pad(x, pads), 3, 2)
    for stage, blocks in enumerate(BLOCKS[network], start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage in (2, 3) else 1
            shortcut = x
            if f"{name}.down_sample_layer.0.weight" in t:
                shortcut = norm(conv(x, f"{name}.down_sample_layer.0", stride), f"{name}.down_sample_layer.1", other)
            if basic:
                y = functional.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1d", 1e-4))
                y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2d", 1e-4)
            else:
                y = functional.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1", 1e-4))
                y = functional.relu(norm(conv(y, f"{name}.conv2", stride), f"{name}.bn2", 1e-4))
                y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3", 1e-4)
            x = functional.relu(y + shortcut)
    x = functional.relu(norm(functional.conv2d(x, t["layer_reduce.weight"]), "layer_reduce_bn", 1e-5)).flatten(2)
    x = x - x.mean(2, keepdim=True)
    c = x @ x.transpose(1, 2) / x.shape[2]
    rows, columns = torch.triu_indices(c.shape[1], c.shape[1])
    return functional.linear(c[:, rows, columns], t["fc.weight"], t["fc.bias"]).numpy()
