"""Evaluation of a checkpoint as configured."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from covpool.build import architecture, build_dataset, build_model, build_source, resolve_class_num
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.evaluation.evaluate import evaluate, numpy_batches
from covpool.evaluation.pace import Pace
from covpool.runtime.distributed import World
from covpool.runtime.files import write_json

logger = logging.getLogger(__name__)


def evaluate_checkpoint(config: Config, world: World) -> dict[str, Any]:
    """Load ``checkpoint_file_path`` and evaluate it on every image of ``val/``; every rank calls it.

    Returns:
        top_1_accuracy, top_5_accuracy, loss, num_samples, per_class accuracy, what was evaluated, and how fast:
        ``limit`` is ``data`` or ``network``, ``waited_share`` the part of the time that rank 0 waited for images, see
        ``pace.py``. Written to ``result_path`` as JSON as well, where that is given.

    Raises:
        UserError: Images or checkpoint are missing, damaged, or do not fit the configuration.
    """
    checkpoint = read_checkpoint(config.checkpoint_file_path)
    config = resolve_class_num(config, checkpoint)
    source = build_source(config, "val", world)
    network = build_model(config)
    load_network(network, checkpoint, architecture(config))
    trained_on = checkpoint.about.get("class_names")
    if trained_on and list(source.class_names) != trained_on:
        raise _other_classes(config, trained_on, list(source.class_names))
    started = time.monotonic()
    pace = Pace(numpy_batches(build_dataset(config, source, False, world)))
    batches: Iterable[Any] = pace
    if world.is_main:
        batches = _with_bar(pace, -(-source.num_samples // (config.batch_size * world.size)), config.progress)
    result = evaluate(network, batches, config.num_classes, config.batch_size, world)
    seconds = time.monotonic() - started
    values = {
        **result.to_dict(source.class_names),
        "checkpoint": config.checkpoint_file_path,
        "epoch": checkpoint.about.get("epoch"),
        "architecture": architecture(config),
        "ranks": world.size,
        "seconds": round(seconds, 3),
        "images_per_s": round(result.num_samples / seconds, 2),
        "limit": pace.limit,
        "waited_share": round(pace.waited_share, 4),
    }
    if world.is_main and config.result_path:
        write_json(config.result_path, values)
    return values


def _other_classes(config: Config, trained_on: list[str], present: list[str]) -> UserError:
    unknown = [name for name in present if name not in trained_on]
    detail = (
        f"{unknown[0]!r} is not among the {len(trained_on)} classes it was trained on"
        if unknown
        else (f"it was trained on {len(trained_on)} classes, the data has {len(present)}")
    )
    return UserError(f"{config.checkpoint_file_path} does not fit the classes of {config.data_path}: {detail}")


def _with_bar(batches: Iterable[Any], total: int, progress: str) -> Iterator[Any]:
    shown = progress == "bar" or (progress == "auto" and sys.stderr.isatty())
    yield from tqdm(batches, total=total, desc="evaluation", unit="batch", disable=not shown, leave=False)
