"""A network here and its counterpart in PyTorch: the same weights, then outputs, gradients and steps of both."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import mindspore as ms
import numpy as np
import torch
from mindspore import nn

from covpool.checkpoints import convert_state_dict, load_into, to_pytorch
from covpool.checkpoints.names import is_counter
from covpool.export import export_network, open_exported
from covpool.training.optimizers import build_optimizer, parameter_groups

Forward = Callable[[torch.Tensor], torch.Tensor]
# An attention does not see a shift of all keys, nor a covariance one of all tokens: the gradients of these are nothing
# but rounding, of which AdamW makes whole steps.
_UNSEEN = ("qkv.bias", "layer_reduce.bias", "layer_reduce_norm.bias")


def same_weights(cell: nn.Cell, module: torch.nn.Module, seed: int = 0) -> None:
    """Give both the same lively weights: normalisations that do something, biases that are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    load_into(cell, convert_state_dict(state))


def images(size: int | tuple[int, int], batch: int = 2, seed: int = 0) -> np.ndarray:
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(seed).standard_normal((batch, 3, height, width)).astype(np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest entry."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def output_error(cell: nn.Cell, module: Forward, x: np.ndarray) -> float:
    with torch.no_grad():
        expected = module(torch.tensor(x)).numpy()
    return relative(cell(ms.Tensor(x)).asnumpy(), expected)


def gradient_errors(cell: nn.Cell, module: torch.nn.Module, x: np.ndarray) -> dict[str, float]:
    """Of every parameter, for a loss that weighs every output differently; over the largest entry of its gradient."""
    weights = np.random.default_rng(1).standard_normal((len(x), cell.num_classes)).astype(np.float32)
    (module(torch.tensor(x)) * torch.tensor(weights)).sum().backward()
    expected = convert_state_dict({name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None})
    expected = {name: gradient for name, gradient in expected.items() if not is_counter(name)}

    def loss(x: ms.Tensor) -> ms.Tensor:
        return (cell(x) * ms.Tensor(weights)).sum()

    parameters = [p for p in cell.trainable_params() if p.name in expected]
    gradients = ms.value_and_grad(loss, None, parameters)(ms.Tensor(x))[1]
    assert {p.name for p in parameters} == set(expected)
    return {p.name: relative(g.asnumpy(), expected[p.name].asnumpy()) for p, g in zip(parameters, gradients)}


def steps_error(cell: nn.Cell, module: torch.nn.Module, x: np.ndarray, steps: int = 10, rate: float = 1e-3) -> float:
    """Steps of AdamW in both, with the weight decay of this project's recipe.

    Returns:
        The worst relative error of the losses, of the last outputs, and of the norms of the parameters, but for those
        that no output sees.
    """
    labels = np.arange(len(x)) % cell.num_classes
    decayed = set(to_pytorch({p.name: p for p in parameter_groups(list(cell.trainable_params()), 0.05)[0]["params"]}))
    named = dict(module.named_parameters())
    assert decayed < named.keys()
    groups = [{"params": [named[name]], "weight_decay": 0.05 * (name in decayed)} for name in named]
    theirs = torch.optim.AdamW(groups, lr=rate)
    rates = np.full(steps, rate, np.float32)
    ours = build_optimizer(list(cell.trainable_params()), rates, kind="adamw", weight_decay=0.05)
    step = nn.TrainOneStepCell(nn.WithLossCell(cell, nn.CrossEntropyLoss()), ours).set_train()
    errors = []
    for index in range(steps):
        batch = images(x.shape[2:], len(x), seed=index)
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(torch.tensor(batch)), torch.tensor(labels))
        loss.backward()
        theirs.step()
        errors.append(abs(float(step(ms.Tensor(batch), ms.Tensor(labels, ms.int32)).asnumpy()) / loss.item() - 1))
    found = to_pytorch({p.name: p for p in cell.get_parameters()})
    for name, parameter in named.items():
        if not name.endswith(_UNSEEN):
            expected = parameter.detach().numpy()
            errors.append(float(np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)))
    cell.set_train(False)
    return max(*errors, output_error(cell, module, x))


def count(cell: nn.Cell) -> int:
    return sum(p.size for p in cell.get_parameters() if not is_counter(p.name))


def exported_error(cell: nn.Cell, folder: Path, file_format: str, x: np.ndarray) -> float:
    """Of the exported file, at the batch it was checked with and at a batch of one."""
    model = open_exported(export_network(cell, folder / "net", file_format, x, {}).path)
    expected = cell(ms.Tensor(x)).asnumpy()
    return max(relative(model(x[:size]), expected[:size]) for size in (len(x), 1))


def state_there_and_back(cell: nn.Cell, module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The weights of a module, given to a cell and read back under PyTorch's names: the same, bit by bit."""
    same_weights(cell, module)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    back = to_pytorch({p.name: p for p in cell.get_parameters()})
    assert set(back) == set(state) and all((back[name] == state[name]).all() for name in state)
    return back
