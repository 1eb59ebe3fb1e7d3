"""The loss along its gradient at the stem's output, while a network trains.

Source: Wang et al., "What Deep CNNs Benefit from Global Covariance Pooling: An Optimization Perspective", CVPR 2020,
section 3 (after Santurkar et al., NeurIPS 2018). Every k steps, with y the output of the stem for the current batch and
g = dLoss/dy, the loss and its gradient are taken at y + delta g for 50 lengths delta from 0.1 to 75: the range of the
loss tells its Lipschitzness, that of ||gradient - g|| how well g predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.build import batch_mixing, build_dataset, build_model, build_source, resolve_class_num
from covpool.config import Config
from covpool.data import pipeline_errors, steps_per_epoch
from covpool.errors import UserError
from covpool.runtime.distributed import World
from covpool.training.losses import recipe_loss
from covpool.training.recipe import recipe_optimizer, recipe_rates

LENGTHS = np.linspace(0.1, 75.0, 50)


class _Stem(nn.Cell):
    """Images to the stem's output."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__()
        self.network = network

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.network.forward_stem(x)


class _LossFromStem(nn.Cell):
    """The stem's output and labels to the loss."""

    def __init__(self, network: nn.Cell, loss: nn.Cell) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def construct(self, y: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        network = self.network
        x = network.layer4(network.layer3(network.layer2(network.layer1(y))))
        if network.has_reduction:
            x = network.layer_reduce_relu(network.layer_reduce_bn(network.layer_reduce(x)))
        return self.loss(network.forward_head(x), labels)


class Probe:
    """Takes the loss along the gradient, without a trace in the network.

    It needs ``forward_stem`` and ``layer1`` to ``layer4`` (the ResNets), in training mode; else a UserError.
    """

    def __init__(self, network: nn.Cell, loss: nn.Cell, lengths: Sequence[float] | np.ndarray = LENGTHS) -> None:
        if not all(hasattr(network, name) for name in ("forward_stem", "layer1", "layer4")):
            raise UserError(f"the landscape needs a network with a stem and four stages, not {type(network).__name__}")
        self.stem = _Stem(network).set_train()
        self.slope = nn.ForwardValueAndGrad(_LossFromStem(network, loss).set_train(), get_all=False)
        self.lengths = np.asarray(lengths, np.float32)
        # Running statistics and the counter of dropout masks: every evaluation is to see the same network.
        self.state = [p for p in network.get_parameters() if not p.requires_grad]

    def __call__(self, images: ms.Tensor, labels: ms.Tensor) -> dict[str, float]:
        """Range over the lengths of the loss and of the distance between gradients; the loss at the start."""
        kept = [p.asnumpy().copy() for p in self.state]
        y = self.stem(images)
        loss, gradient = self._slope(y, labels, kept)
        here = gradient.asnumpy()
        losses, distances = [], []
        for length in self.lengths:
            there, slope = self._slope(y + gradient * float(length), labels, kept)
            losses.append(float(there.asnumpy()))
            distances.append(float(np.linalg.norm(slope.asnumpy() - here)))
        self._restore(kept)
        return {
            "loss": float(loss.asnumpy()),
            "loss_min": min(losses),
            "loss_max": max(losses),
            "gradient_min": min(distances),
            "gradient_max": max(distances),
        }

    def _slope(self, y: ms.Tensor, labels: ms.Tensor, kept: list[np.ndarray]) -> tuple[ms.Tensor, ms.Tensor]:
        self._restore(kept)
        return self.slope(y, labels)

    def _restore(self, kept: list[np.ndarray]) -> None:
        for parameter, value in zip(self.state, kept):
            parameter.set_data(ms.Tensor(value))


def record_landscape(config: Config, every: int) -> Iterator[dict[str, float]]:
    """Train as configured and probe every ``every`` steps, before the step.

    Images, initial weights, order, rates and updates are those of the ordinary training; there is no evaluation and
    nothing is saved. Yields `step` for every step; for the probed ones the probe's ranges as well.
    """
    if config.run_distribute or config.amp_level != "O0":
        raise UserError("the landscape is measured by one process in full precision (amp_level=O0)", 2)
    if batch_mixing(config) is not None or config.teacher:
        raise UserError("the landscape is that of a plain loss: without mixup, cutmix and teacher", 2)
    world = World()
    ms.set_seed(config.seed)
    source = build_source(config, "train", world)
    config = resolve_class_num(config, source)
    steps = steps_per_epoch(source.num_samples, config.batch_size)
    network = build_model(config)
    loss = recipe_loss(config)
    optimizer = recipe_optimizer(config, network, recipe_rates(config, steps, config.batch_size))
    train = nn.TrainOneStepCell(nn.WithLossCell(network, loss), optimizer).set_train()
    probe = Probe(network, loss)
    step = 0
    for epoch in range(config.epoch_size):
        dataset = build_dataset(config, source, True, world, epoch)
        with pipeline_errors():
            for images, labels in dataset.create_tuple_iterator(num_epochs=1):
                found = probe(images, labels) if step % every == 0 else {}
                train(images, labels)
                step += 1
                yield {"step": step, **found}


def band_widths(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean over the probed steps of the width of both bands: what "smoother" means, in one number each."""
    return {key: float(np.mean([r[f"{key}_max"] - r[f"{key}_min"] for r in records])) for key in ("loss", "gradient")}


def mean_records(runs: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """The mean over runs of every entry, probed step by probed step."""
    return [{key: float(np.mean([r[key] for r in at])) for key in at[0]} for at in zip(*runs)]


def plot_landscape(runs: Mapping[str, Sequence[dict[str, float]]], path: Path, title: str) -> None:
    """Both bands over training steps, one panel each; networks differ in colour, hatching and outline."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from covpool.plots import COLOURS, LINES, legend_below, new_figure, save

    figure = new_figure(10, 4.0)
    panels = figure.subplots(1, 2)
    labels = ("loss along its gradient (cross entropy)", "change of the gradient, L2 norm")
    for axes, key, label in zip(panels, ("loss", "gradient"), labels):
        for index, (name, records) in enumerate(runs.items()):
            x = [r["step"] for r in records]
            low, high = ([r[f"{key}_{end}"] for r in records] for end in ("min", "max"))
            colour, dashes = COLOURS[index + 1], LINES[index % len(LINES)]
            hatch = ("", "///", "...", "xxx")[index % 4]
            axes.fill_between(x, low, high, alpha=0.3, facecolor=colour, hatch=hatch, edgecolor=colour, linewidth=0)
            axes.plot(x, low, color=colour, linestyle=dashes, linewidth=1)
            axes.plot(x, high, color=colour, linestyle=dashes, linewidth=1, label=name)
        axes.set(xlabel="training step", ylabel=label)
        if key == "gradient":  # its course spans decades
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    legend_below(figure, panels[0], 4)
    figure.suptitle(title)
    save(figure, path)


def read_records(content: Any) -> list[dict[str, float]]:
    """The probed steps of a landscape file; ValueError if it is none."""
    try:
        records = content["records"]
        if records and all({"step", "loss_min", "gradient_max"} <= set(r) for r in records):
            return list(records)
    except (KeyError, TypeError):
        pass
    raise ValueError("no records of a landscape")
