"""Evaluation of a checkpoint on a robustness set, as configured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.build import architecture, build_dataset, build_model, image_transform, with_checkpoint
from covpool.checkpoints.format import Checkpoint, load_network, read_checkpoint
from covpool.config import Config
from covpool.data.image_folder import FolderSource, class_names
from covpool.evaluation import Evaluation, describe_overflow, evaluate, numpy_batches, outputs
from covpool.evaluation.run import Show, check_result_path, deliver
from covpool.kernels import for_evaluation
from covpool.research.robustness.metrics import corruption_summary, flip_rate, plot_bars
from covpool.research.robustness.sets import (
    PERTURBATIONS,
    corruption_folders,
    find_folders,
    folder_source,
    network_classes,
    read_frames,
    sequences,
)
from covpool.runtime.command import progress_bar, shows_bar
from covpool.runtime.distributed import World
from covpool.runtime.environment import available_cores
from covpool.runtime.signals import StopRequest

_Figures = tuple[dict[str, Any], dict[str, float]]  # for the result, and for the chart in percent


class _Job:
    """A network and how to evaluate it; every rank has one."""

    def __init__(self, config: Config, world: World, checkpoint: Checkpoint, stop: StopRequest) -> None:
        self.root, self.stop = Path(config.data_path), stop
        self.config, self.world = with_checkpoint(config, checkpoint, world), world
        self.network = build_model(self.config)
        load_network(self.network, checkpoint)
        self.computed = for_evaluation(self.config, self.network, world)
        self.in_checkpoint = checkpoint.about.get("class_names") or []
        self.computed.set_train(False)
        self.problem = ""  # the first set on which a logit is NaN or infinite

    def classes(self, folder: Path) -> list[str]:
        """The network's classes, for a set whose class folders are in ``folder``."""
        listed = Path(self.config.class_names) if self.config.class_names else None
        return network_classes(listed, self.in_checkpoint, class_names(folder), self.config.num_classes)

    def evaluate(self, source: FolderSource, network: nn.Cell) -> Evaluation:
        config = self.config
        source = dataclasses.replace(source, max_pixels=config.max_pixels)
        batches = numpy_batches(build_dataset(config, source, False, self.world))
        batches = self.stop.between(batches, "before the result")
        result = evaluate(network, batches, config.num_classes, config.batch_size, self.world)
        self.problem = self.problem or describe_overflow(self.network, result, source)
        return result

    def bar(self, items: Iterable[Any], total: int, unit: str) -> Any:
        shown = self.world.is_main and shows_bar(self.config.progress)
        return progress_bar(items, total, self.config.robustness, unit, shown=shown)


class _ClassSubset(nn.Cell):
    """A network whose answers are among some of its classes: the logits of the others are far below."""

    def __init__(self, network: nn.Cell, classes: np.ndarray, count: int) -> None:
        super().__init__(auto_prefix=False)  # the network's parameters keep their names
        self.network = network
        outside = np.full((1, count), -1e30, np.float32)
        outside[:, classes] = 0
        self.outside = ms.Tensor(outside)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.network(x).astype(ms.float32) + self.outside


def evaluate_robustness(
    config: Config, world: World, show: Show = None, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Evaluate ``checkpoint_file_path`` on the set ``robustness`` in ``data_path``; every rank calls it.

    What the configuration does not give of network and image transform the checkpoint says. ``show`` prints the result
    on rank 0 before anything is written. A signal that ``stop`` receives ends the evaluation between two batches.

    Returns:
        The set's figures and what was evaluated; written to ``result_path`` as JSON, with a bar chart beside it, where
        that is given.

    Raises:
        UserError: The set or the checkpoint is missing, damaged, or does not fit the configuration; a logit is NaN or
            infinite (the result is written before); the result cannot be written.
    """
    check_result_path(config, world)
    started = time.monotonic()
    checkpoint = read_checkpoint(config.checkpoint_file_path).averaged(config.use_ema)
    job = _Job(config, world, checkpoint, stop or StopRequest())
    figures, bars = _SETS[config.robustness](job)
    values = {
        "robustness": config.robustness,
        **figures,
        "checkpoint": config.checkpoint_file_path,
        "epoch": checkpoint.about.get("epoch"),
        "architecture": architecture(job.config),
        "ranks": world.size,
        "seconds": round(time.monotonic() - started, 3),
    }
    deliver(values, config, world, show, job.problem)
    if world.is_main and config.result_path:
        plot_bars(bars, Path(config.result_path).with_suffix(".png"), config.robustness)
    return values


def _corruptions(job: _Job) -> _Figures:
    folders = corruption_folders(job.root)
    parts = [(name, severity, folder) for name, by in folders.items() for severity, folder in by.items()]
    names = job.classes(parts[0][2])
    errors: dict[str, dict[int, float]] = {}
    seen = 0
    for name, severity, folder in job.bar(parts, len(parts), "set"):
        result = job.evaluate(folder_source(folder, names, f"{name} {severity}"), job.computed)
        errors.setdefault(name, {})[severity] = 1 - result.top_1
        seen += result.num_samples
    figures = corruption_summary(errors)
    bars = {f"{name} (error)": 100 * entry["error"] for name, entry in figures["corruptions"].items()}
    return {**figures, "num_samples": seen}, bars


def _some_classes(job: _Job) -> _Figures:
    root = job.root / "val" if (job.root / "val").is_dir() else job.root
    names = job.classes(root)
    source = folder_source(root, names, job.config.robustness)
    present = np.unique(source.labels)
    among = job.evaluate(source, _ClassSubset(job.computed, present, job.config.num_classes))
    over_all = job.evaluate(source, job.computed)
    figures = {
        "top_1_accuracy": among.top_1,
        "top_1_accuracy_all_classes": over_all.top_1,
        "classes": len(present),
        "num_samples": among.num_samples,
        "per_class": among.to_dict(names)["per_class"],
    }
    return figures, {"top-1, classes of the set": 100 * among.top_1, "top-1, all classes": 100 * over_all.top_1}


def _perturbations(job: _Job) -> _Figures:
    config, world, transform = job.config, job.world, image_transform(job.config)
    rates: dict[str, float] = {}
    count = 0
    for name, folder in find_folders(job.root, PERTURBATIONS).items():
        paths = sequences(folder)
        mine = paths[world.rank :: world.size]
        flips = 0.0
        with ThreadPoolExecutor(config.num_workers or available_cores()) as pool:
            films = pool.map(lambda path: read_frames(path, config.eval_image_size), mine)
            for path, frames in zip(mine, job.bar(films, len(mine), f"{name} sequence")):
                logits = outputs(job.computed, transform.normalise_frames(frames), config.batch_size)
                if not np.isfinite(logits).all():
                    job.problem = job.problem or f"frames of {path} give NaN or infinite logits"
                flips += flip_rate([logits.argmax(1)], against_first="noise" in name)
        rates[name] = float(world.sum(np.array([flips], np.float64))[0]) / len(paths)
        count += len(paths)
    if world.sum(np.array([float(bool(job.problem))]))[0]:
        job.problem = job.problem or "frames give NaN or infinite logits on another rank"
    figures = {"mean_flip_rate": float(np.mean(list(rates.values()))), "flip_rates": rates, "sequences": count}
    return figures, {f"{name} (flips)": 100 * rate for name, rate in rates.items()}


_SETS = {
    "imagenet_c": _corruptions,
    "imagenet_p": _perturbations,
    "imagenet_a": _some_classes,
    "stylized": _some_classes,
}
