"""Evaluation of a checkpoint as configured, and what it waits for: the data pipeline, or the network."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from covpool.build import architecture, build_dataset, build_model, build_source, image_transform, with_checkpoint
from covpool.checkpoints.format import Checkpoint, load_network, other_classes, read_checkpoint
from covpool.config import Config
from covpool.data.decoding import printable
from covpool.errors import UserError
from covpool.evaluation.evaluate import describe_mistakes, describe_overflow, evaluate, numpy_batches, write_report
from covpool.kernels import for_evaluation, kept
from covpool.runtime.command import progress_bar, shows_bar
from covpool.runtime.distributed import World
from covpool.runtime.files import check_writable, os_errors_as, write_json
from covpool.runtime.signals import StopRequest

logger = logging.getLogger(__name__)

Show = Optional[Callable[[dict[str, Any]], None]]

DATA_SHARE = 0.1  # of the time spent waiting for images, from which on the pipeline counts as the limit


def evaluate_checkpoint(
    config: Config, world: World, show: Show = None, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Load ``checkpoint_file_path`` and evaluate it on every image of ``split``; every rank calls it.

    What the configuration does not give of network and image transform the checkpoint says. ``show`` prints the result
    on rank 0 before anything is written. A signal that ``stop`` receives ends the evaluation between two batches.

    Returns:
        top_1_accuracy, top_5_accuracy, loss, num_samples, per_class accuracy, confusion_matrix (rows are true classes,
        both in the order of ``classes``), the most confident mistakes, what was evaluated, and how fast:
        ``limit`` is ``data`` or ``network``, ``waited_share`` the part of the time that rank 0 waited for images, see
        ``Pace``. Written to ``result_path`` as JSON as well, where that is given, and drawn in ``report_path``.

    Raises:
        UserError: Images or checkpoint are missing, damaged, or do not fit the configuration; a logit is NaN or
            infinite (the result is written before); the result cannot be written.
    """
    check_result_path(config, world)
    checkpoint = read_checkpoint(config.checkpoint_file_path).averaged(config.use_ema)
    config = with_checkpoint(config, checkpoint, world)
    config = _with_split(config, checkpoint, world)
    network = build_model(config)
    load_network(network, checkpoint)
    source = build_source(config.replace(class_num="auto"), config.split, world)  # compared below
    difference = other_classes(checkpoint, source.class_names)
    if not difference and len(source.class_names) > config.num_classes:
        difference = f"it has {config.num_classes} outputs, the data has {len(source.class_names)} classes"
    if difference:
        names = [printable(name) for name in checkpoint.about.get("class_names", [])]
        listed = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
        raise UserError(
            f"{checkpoint.path} does not fit the classes of {config.data_path}: {difference}. Give a data set whose "
            f"train/ has a folder for each class of the training{listed}; or train on this one, starting from these "
            f"weights: --pre_trained={checkpoint.path}"
        )
    started = time.monotonic()
    pace = Pace(numpy_batches(build_dataset(config, source, False, world)))
    total = -(-source.num_samples // (config.batch_size * world.size))
    shown = world.is_main and shows_bar(config.progress)
    batches = progress_bar(pace, total, "evaluation", "batch", shown=shown)
    batches = (stop or StopRequest()).between(batches, "before the result")
    computed = for_evaluation(config, network, world)
    with kept(config, computed, 1, world) as compiling, compiling():
        result = evaluate(computed, batches, config.num_classes, config.batch_size, world)
    seconds = time.monotonic() - started
    values = {
        **result.to_dict(source.class_names),
        "mistakes": describe_mistakes(result, source),
        "checkpoint": config.checkpoint_file_path,
        "epoch": checkpoint.about.get("epoch"),
        "architecture": architecture(config),
        "transform": image_transform(config, source).to_dict(),
        "ranks": world.size,
        "seconds": round(seconds, 3),
        "images_per_s": round(result.num_samples / seconds, 2),
        "limit": pace.limit,
        "waited_share": round(pace.waited_share, 4),
    }
    deliver(values, config, world, show, describe_overflow(network, result, source))
    if world.is_main and config.report_path:
        with os_errors_as(f"cannot write report_path {config.report_path}"):
            write_report(Path(config.report_path), result, source)
    return values


def _with_split(config: Config, checkpoint: Checkpoint, world: World) -> Config:
    """The configuration with the ``val_fraction`` of a training, whose other images the network has seen."""
    trained = checkpoint.about.get("val_fraction")
    if not trained or config.dataset not in ("image_folder", "imagenet2012"):
        return config
    if not config.says("val_fraction"):
        return config.replace(val_fraction=trained)
    if config.val_fraction != trained and world.is_main:
        logger.warning(
            "val_fraction is %g here and was %s in the training: some of these images were trained on",
            config.val_fraction,
            trained,
        )
    return config


def check_result_path(config: Config, world: World) -> None:
    """Refuse a ``result_path`` or ``report_path`` that cannot be written before hours are spent; for every rank."""
    for key, file in (("result_path", ""), ("report_path", "confusion_matrix.csv")):
        target, problem = getattr(config, key), ""
        if target and world.is_main:
            try:
                check_writable(Path(target, file))
            except OSError as error:
                problem = f"cannot write {key} {target}: {error.strerror or error}"
        if world.sum(np.array([float(bool(problem))]))[0]:
            raise UserError(problem or f"rank 0 cannot write {key} {target}")


def deliver(values: dict[str, Any], config: Config, world: World, show: Show, problem: str) -> None:
    """Show a result on rank 0, write it to ``result_path``, then raise UserError with its ``problem``, if any."""
    if world.is_main and show is not None:
        show(values)
    if world.is_main and config.result_path:
        with os_errors_as(f"cannot write result_path {config.result_path}"):
            write_json(config.result_path, values)
    if problem:
        raise UserError(f"the result means nothing: {problem}")


class Pace:
    """Passes batches on and takes the time that is spent waiting for them.

    The first batch does not count: until it is there the pipeline starts, and with it the network is compiled.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.waited_s = self.total_s = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._batches)
        for batch in iterator:
            yield batch
            break
        started = asked = time.monotonic()
        for batch in iterator:
            self.waited_s += time.monotonic() - asked
            yield batch
            asked = time.monotonic()
            self.total_s = asked - started

    @property
    def waited_share(self) -> float:
        """Part of the time spent waiting for images, 0 to 1; 0 where there was one batch only."""
        return self.waited_s / self.total_s if self.total_s else 0.0

    @property
    def limit(self) -> str:
        """``data`` or ``network``; empty where there was one batch only."""
        if not self.total_s:
            return ""
        return "data" if self.waited_share >= DATA_SHARE else "network"
