"""The course of DropCov's adaptive rate over a training, from the checkpoints of its run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from covpool.build import architecture, build_dataset, build_model, build_source
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.config import load_config
from covpool.errors import UserError
from covpool.evaluation import numpy_batches
from covpool.plots import name_axes, new_figure, plot_band, save
from covpool.pooling.covariance import centred
from covpool.pooling.dropcov import DropCov
from covpool.runtime.distributed import World


class _Rate(nn.Cell):
    """Images to the rate that training would drop channels with."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__()
        self.network = network

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        pooling = self.network.pooling
        a, mean = centred(self.network.forward_features(x))
        omega = pooling.importance(mean)
        scale = 1.0 + omega if pooling.rescale else ops.ones_like(omega)
        return pooling.drop_rate(omega, a, scale)


def rate_course(run: Path, batches: int = 20, data_path: str = "") -> list[dict[str, float]]:
    """Rate rho before training (epoch 0) and at every epoch whose checkpoint was kept.

    The network is in training mode, as when the rate matters, and sees the first ``batches`` batches of the first
    epoch. For every epoch: `epoch`, `rate` (mean over the batches), `rate_min` and `rate_max`. UserError: the folder
    holds no training with DropCov at its adaptive rate.
    """
    config = load_config(run / "config.yaml", [f"data_path={data_path}"] if data_path else [])
    index = run / "checkpoints" / "index.json"
    if config.pooling != "dropcov" or config.pooling_args.get("rate") is not None or not index.is_file():
        raise UserError(f"{run} holds no training with DropCov at its adaptive rate")
    kept = json.loads(index.read_text(encoding="utf-8"))["checkpoints"]
    files = {0: None, **{entry["epoch"]: run / "checkpoints" / entry["file"] for entry in kept}}
    source = build_source(config, "train", World())
    ms.set_seed(config.seed)
    network = build_model(config)
    assert isinstance(network.pooling, DropCov)  # noqa: S101 - the configuration names it
    rate = _Rate(network).set_train()
    course = []
    for epoch, file in sorted(files.items()):
        if file is not None:
            load_network(network, read_checkpoint(file), architecture(config))
        found = []
        for images, *_ in numpy_batches(build_dataset(config, source, True, World())):
            found.append(float(rate(ms.Tensor(images)).asnumpy().item()))
            if len(found) == batches:
                break
        course.append({"epoch": epoch, "rate": float(np.mean(found)), "rate_min": min(found), "rate_max": max(found)})
    return course


def plot_rates(courses: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path, title: str) -> None:
    """Rates over epochs: mean over a name's runs, band from the lowest to the highest batch of any of them."""
    figure = new_figure(6.5, 3.6)
    axes = figure.subplots()
    for number, (name, runs) in enumerate(courses.items()):
        x = [record["epoch"] for record in runs[0]]
        low, high, mean = (
            reduce([[record[key] for record in run] for run in runs], axis=0)
            for reduce, key in ((np.min, "rate_min"), (np.max, "rate_max"), (np.mean, "rate"))
        )
        plot_band(axes, number + 1, f"{name} (n = {len(runs)})", x, mean, low, high)
    name_axes(axes, "adaptive dropout rate", "epoch (0: before training)")
    axes.set(ylim=(-0.02, 1), title=title)
    axes.legend(handlelength=3.5)
    save(figure, path)
