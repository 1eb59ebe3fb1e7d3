"""Training of a configuration from the first line of the log to the last checkpoint."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from covpool.build import build_dataset
from covpool.checkpoints.state import Progress
from covpool.config import Config
from covpool.data import pipeline_errors
from covpool.errors import UserError
from covpool.evaluation import Evaluation, evaluate, numpy_batches, write_report
from covpool.evaluation.evaluate import describe_overflow
from covpool.kernels import kept
from covpool.plots import plot_curves
from covpool.runtime.command import clock, shows_bar
from covpool.runtime.distributed import World
from covpool.runtime.signals import Interrupted, StopRequest
from covpool.training.logs import logging_to_run
from covpool.training.progress import EpochProgress, speed_text
from covpool.training.ranks import agreed_signal, average_statistics, check_ranks_agree
from covpool.training.run_folder import RunFolder
from covpool.training.start import Training, begin, prepare

logger = logging.getLogger(__name__)


class NonFiniteEvaluation(UserError):
    """An evaluation gave logits that are NaN or infinite."""


@dataclass(frozen=True)
class Summary:
    """The results of a training."""

    epochs: int  # that are done, earlier ones of a resumed run included
    loss: float  # mean training loss of the last epoch that this process ran; NaN if there was none to run
    evaluation: Evaluation | None  # the last one
    best: float | None  # highest top-1 accuracy
    folder: Path


def fit(config: Config, world: World, stop: StopRequest | None = None) -> Summary:
    """Train as configured; every rank calls it.

    After a signal that ``stop`` received the training saves, stops at the next step boundary of all ranks and raises
    Interrupted. A UserError says in one line what keeps it from starting or going on.
    """
    stop, folder = stop or StopRequest(), RunFolder(config.output_path)
    loss, evaluation = math.nan, None
    with logging_to_run(world.is_main) as log, folder.exclusive() if world.is_main else nullcontext():
        run = prepare(config, world, folder)  # writes nothing: what is wrong shows before the run folder changes
        begin(run, log)
        config, started = run.config, time.monotonic()
        with stop.deferring(), kept(config, run.model.train_network, run.graphs, world) as compiling:
            for epoch in range(run.start.epoch, config.epoch_size):
                with compiling():
                    progress = _train(run, epoch, stop)
                loss, accuracy = _means(run, progress)
                with compiling():
                    evaluation, eval_s = _evaluate_if_due(run, epoch)
                signal, last = progress.signal or agreed_signal(stop, world), epoch + 1 == config.epoch_size
                _save(run, epoch, evaluation, bool(last or signal))
                _report(run, progress, (loss, accuracy), evaluation, eval_s, time.monotonic() - started)
                if signal and not last:
                    raise Interrupted(signal, f"after epoch {epoch + 1}; resume with --resume_ckpt=auto")
        if world.is_main:
            _draw(run, evaluation)
        epochs = max(run.start.epoch, config.epoch_size)
        logger.info("done: %d epochs in %s", epochs, clock(time.monotonic() - started))
    return Summary(epochs, loss, evaluation, run.state.store.best_metric, folder.path)


def _train(run: Training, epoch: int, stop: StopRequest) -> EpochProgress:
    """Train what is left of an epoch, and make the ranks one network again; save and stop after a signal."""
    config, world, steps = run.config, run.world, run.plan.steps

    def between_steps(progress: EpochProgress) -> int:
        """Save where it is due; the signal that a rank has received."""
        done = progress.done
        asked = config.device_target == "CPU" or done % config.log_interval == 0  # when losses are fetched anyway
        signal = agreed_signal(stop, world) if asked else 0
        due = bool(config.save_checkpoint_steps) and done % config.save_checkpoint_steps == 0
        if (signal or due) and done < steps:  # the end of an epoch is saved after its evaluation
            run.state.save(progress.so_far)
        return signal

    begin = run.start if epoch == run.start.epoch else Progress(epoch)
    folder = run.folder if world.is_main else None
    progress = EpochProgress(run.plan, begin, folder, shows_bar(config.progress), between_steps, run.hits)
    with closing(progress), pipeline_errors():
        dataset = build_dataset(config, run.train, True, world, epoch, begin.step)
        run.model.train(epoch + 1, dataset, [progress], config.enable_sink, initial_epoch=epoch)
    if progress.signal and progress.done < steps:
        where = f"after step {progress.done} of epoch {epoch + 1}; resume with --resume_ckpt=auto"
        raise Interrupted(progress.signal, where)
    average_statistics(run.state.parameters, world)
    check_ranks_agree(run.state.parameters, world, epoch)
    return progress


def _means(run: Training, progress: EpochProgress) -> tuple[float, float]:
    """Mean loss of all steps and ranks of an epoch, and accuracy on its images as they were trained on, or NaN."""
    so_far = progress.so_far
    losses, count, hits = run.world.sum(np.array([so_far.loss_sum, so_far.loss_count, so_far.hits], np.float64))
    return float(losses / count), float(hits / (run.plan.steps * run.plan.global_batch))


def _evaluate_if_due(run: Training, epoch: int) -> tuple[Evaluation | None, float]:
    """Evaluate the network where that is due after an epoch; the result, and the seconds that it took."""
    config, world, network, val = run.config, run.world, run.state.network, run.val
    since = epoch + 1 - config.eval_start_epoch
    due = (since >= 0 and since % config.eval_interval == 0) or epoch + 1 == config.epoch_size
    if val is None or not due:
        return None, 0.0
    begun = time.monotonic()
    batches = numpy_batches(build_dataset(config, val, False, world))
    with run.state.evaluated():
        result = evaluate(network, batches, config.num_classes, config.batch_size, world)
    if not math.isfinite(result.loss):
        step = (epoch + 1) * run.plan.steps
        if world.is_main:
            nothing = dict.fromkeys(("top_1_accuracy", "top_5_accuracy", "eval_loss"))
            run.folder.record("evaluation", epoch=epoch + 1, step=step, **nothing)
        run.state.check_finite(step)  # what overflowed in training says more than what followed from it
        raise NonFiniteEvaluation(
            f"the evaluation after epoch {epoch + 1} overflows: {describe_overflow(network, result, val)}; training "
            "stopped; the checkpoints before it are as they were. A lower lr_max or a longer warm-up usually helps"
        )
    return result, time.monotonic() - begun


def _save(run: Training, epoch: int, evaluation: Evaluation | None, now: bool) -> None:
    """Save the end of an epoch where that is due, or now, and as the best one if it is."""
    config, metric = run.config, evaluation.top_1 if evaluation else None
    regular = config.save_checkpoint and (now or (epoch + 1) % config.save_checkpoint_epochs == 0)
    run.state.save(Progress(epoch + 1), metric, regular, best=config.save_best_ckpt)


def _report(
    run: Training,
    progress: EpochProgress,
    means: tuple[float, float],
    evaluation: Evaluation | None,
    eval_s: float,
    elapsed: float,
) -> None:
    """Record an epoch, and log its results."""
    if not run.world.is_main:
        return
    loss, accuracy = means
    config, epoch, plan = run.config, progress.start.epoch + 1, run.plan
    values: dict[str, Any] = {
        "loss": loss,
        "learning_rate": float(plan.rates[epoch * plan.steps - 1]),
        "images_per_s": progress.speed,
        **{name: round(getattr(progress, name), 3) for name in ("train_s", "train_cpu_s", "first_step_s")},
    }
    text = f"epoch {epoch}/{config.epoch_size}: loss {loss:.4f}"
    if not math.isnan(accuracy):
        values["training_accuracy"] = accuracy
        text += f", accuracy {accuracy:.4f}"
    if evaluation is not None:
        top_1, top_5, count = evaluation.top_1, evaluation.top_5, evaluation.num_samples
        values.update(top_1_accuracy=top_1, top_5_accuracy=top_5, eval_loss=evaluation.loss, num_samples=count)
        values["eval_s"] = round(eval_s, 3)
        text += f", evaluation loss {evaluation.loss:.4f}, top-1 {top_1:.4f}, top-5 {top_5:.4f} on {count} images"
    run.folder.record("epoch", epoch=epoch, step=epoch * plan.steps, **values)
    done = epoch - run.start.epoch - run.start.step / plan.steps
    logger.info(
        f"{text}, rate {values['learning_rate']:.3g}{speed_text(progress.images_per_s)}, "
        f"{progress.train_s + eval_s:.1f} s, {clock(elapsed / done * (config.epoch_size - epoch))} left"
    )


def _draw(run: Training, evaluation: Evaluation | None) -> None:
    """Draw the curves, and what the last evaluation confused; an error there must not undo a training."""
    folder, drawings = run.folder, {run.folder.curves: lambda: plot_curves(folder.records("epoch"), folder.curves)}
    if evaluation is not None and run.val is not None:
        drawings[folder.evaluation] = partial(
            write_report, folder.evaluation, evaluation, run.val, f"after epoch {run.config.epoch_size}"
        )
    for path, draw in drawings.items():
        try:
            draw()
        except Exception as error:  # matplotlib raises what it likes, RuntimeError where a user has no home
            logger.warning("%s was not drawn: %s: %s", path, type(error).__name__, error)
