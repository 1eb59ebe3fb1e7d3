"""Training of a configuration from the first line of the log to the last checkpoint."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.train import Model

from covpool.build import architecture, build_dataset, build_model, build_source, resolve_class_num
from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.checkpoints.state import Position, TrainingState
from covpool.checkpoints.store import CheckpointStore
from covpool.config import Config
from covpool.data import pipeline_errors, steps_per_epoch
from covpool.data.transforms import channel_statistics
from covpool.errors import UserError
from covpool.evaluation import Evaluation, evaluate, numpy_batches
from covpool.kernels import apply_cpu_kernels, threads_of_process
from covpool.plots import plot_curves
from covpool.runtime.distributed import World
from covpool.runtime.signals import Interrupted, StopRequest
from covpool.training.interruption import StepBoundary, agreed_signal
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.mixed_precision import apply_amp_level
from covpool.training.optimizers import build_optimizer
from covpool.training.precision import loss_scale_manager, optimizer_loss_scale
from covpool.training.progress import StepProgress, clock
from covpool.training.ranks import average_statistics, check_ranks_agree
from covpool.training.reduction import fuse_reductions, reduce_in_order
from covpool.training.run_folder import RunFolder, logging_to, shows_bar
from covpool.training.schedules import learning_rates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a training came to.

    Attributes:
        epochs: Epochs that are done, earlier ones of a resumed run included.
        loss: Mean training loss of the last epoch that this process ran; NaN if there was none to run.
        evaluation: The last evaluation, if any.
        best: Highest top-1 accuracy, if any.
        folder: The run folder.
    """

    epochs: int
    loss: float
    evaluation: Evaluation | None
    best: float | None
    folder: Path


def fit(config: Config, world: World, stop: StopRequest | None = None) -> Summary:
    """Train as configured; every rank calls it.

    Args:
        config: The configuration.
        world: The ranks of this job.
        stop: Receives signals; after one the training saves and stops at the next step boundary of all ranks.

    Raises:
        Interrupted: After such a stop.
        UserError: What keeps the training from starting or going on, in one line.
    """
    folder = RunFolder(config.output_path)
    said = folder.prepare(config, world.size, resume=bool(config.resume_ckpt)) if world.is_main else ""
    world.barrier()
    with logging_to(folder.log if world.is_main else None):
        if said:
            logger.info(said)
        return _Training(config, world, folder, stop or StopRequest()).run()


class _Training:
    """The objects of one training and what happens to them epoch by epoch."""

    def __init__(self, config: Config, world: World, folder: RunFolder, stop: StopRequest) -> None:
        self.config, self.world, self.folder, self.stop = config, world, folder, stop
        if config.enable_sink and config.device_target == "CPU":
            raise UserError("enable_sink=True needs a GPU or Ascend: MindSpore has no data sink on CPU", 2)
        ms.set_seed(config.seed)
        self.source = build_source(config, "train", world, folder.bad_images("train"))
        self.config = config = resolve_class_num(config, self.source)
        self.val_source = build_source(config, "val", world, folder.bad_images("val")) if config.run_eval else None
        self.steps = steps_per_epoch(self.source.num_samples, config.batch_size, world.size)
        self.rates = learning_rates(
            config.lr_decay_mode,
            lr_max=config.lr_max,
            lr_init=config.lr_init,
            lr_end=config.lr_end,
            epochs=config.epoch_size,
            steps_per_epoch=self.steps,
            warmup_epochs=config.warmup_epochs,
            milestones=config.lr_epochs,
            gamma=config.lr_gamma,
            family=config.lr_family,
            designed_epochs=config.lr_designed_epochs,
        )
        network = build_model(config, world)
        optimizer = build_optimizer(
            list(network.trainable_params()),
            self.rates,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            loss_scale=optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target),
        )
        mean, std = channel_statistics(self.source, config.in_channels, config.mean, config.std)
        about = {
            "architecture": architecture(config),
            "class_names": list(self.source.class_names),
            "mean": mean,
            "std": std,
        }
        store = CheckpointStore(folder.checkpoints, config.keep_checkpoint_max)
        self.state = TrainingState(network, optimizer, store, world, self.steps, about)
        self.start = self._restore()
        # After the checkpoints are read: their names are those of the network as it was built.
        apply_cpu_kernels(network, config.cpu_kernels, threads_of_process(world.local_size))
        if world.size > 1 and config.device_target != "CPU":  # on CPU nothing overlaps: fewer, larger ones were slower
            fuse_reductions(list(network.trainable_params()))
        self.model = Model(
            network,
            loss_fn=LabelSmoothingCrossEntropy(config.label_smooth_factor if config.use_label_smooth else 0.0),
            optimizer=optimizer,
            amp_level=apply_amp_level(network, config.amp_level),
            loss_scale_manager=loss_scale_manager(
                config.amp_level, config.loss_scale_mode, config.loss_scale, config.device_target
            ),
        )
        if world.size > 1 and config.device_target == "CPU":
            reduce_in_order(self.model.train_network, world.size)

    def _restore(self) -> Position:
        """Load what the configuration names; where to go on."""
        config, network = self.config, self.state.network
        if config.resume_ckpt:
            position = self.state.resume(config.resume_ckpt, architecture(config))
            if self.world.is_main:
                self.folder.forget_after(position.step if position else 0)
            if position:
                return position
            logger.info("nothing to resume from in %s: starting anew", self.state.store.folder)
        if config.pre_trained:
            checkpoint = read_checkpoint(config.pre_trained)
            if load_network(network, checkpoint, architecture(config), fine_tune=True):
                logger.info("started from %s", checkpoint.path)
            else:
                logger.info("started from %s without its classifier: it has other classes", checkpoint.path)
        return Position()

    def run(self) -> Summary:
        """All epochs that are left."""
        config, world = self.config, self.world
        size = sum(p.size for p in self.state.network.trainable_params())
        logger.info(
            f"{config.net_name} + {config.pooling}, {size / 1e6:.2f} M parameters, {config.mode_name} mode on "
            f"{config.device_target}; {self.source.num_samples} training images in "
            f"{len(self.source.class_names)} classes"
        )
        logger.info(
            f"global batch {config.batch_size * world.size} = {config.batch_size} x {world.size} "
            f"rank{'' if world.size == 1 else 's'}, {self.steps} steps an epoch, rate up to {self.rates.max():g} "
            f"({config.lr_decay_mode}), run folder {self.folder.path}"
        )
        loss, evaluation, position = math.nan, None, self.start
        started = time.monotonic()
        with self.stop.deferring():
            while position.step < config.epoch_size * self.steps:
                loss, evaluation = self._epoch(position, started)
                position = Position((position.step // self.steps + 1) * self.steps)
        if world.is_main:
            plot_curves(self.folder.records("epoch"), self.folder.curves)
        epochs = position.step // self.steps
        logger.info("done: %d epochs in %s", epochs, clock(time.monotonic() - started))
        return Summary(epochs, loss, evaluation, self.state.store.best_metric, self.folder.path)

    def _epoch(self, begin: Position, started: float) -> tuple[float, Evaluation | None]:
        """Train what is left of the epoch at ``begin``, evaluate and save; mean loss and evaluation."""
        config, world = self.config, self.world
        epoch, first_step = divmod(begin.step, self.steps)
        begun, cpu_begun = time.monotonic(), time.process_time()
        progress = StepProgress(
            epoch,
            config.epoch_size,
            self.steps,
            self.rates,
            config.batch_size * world.size,
            config.log_interval,
            self.folder if world.is_main else None,
            shows_bar(config.progress),
            first_step,
            begin.loss_sum,
            begin.loss_count,
        )

        def save(done: int) -> None:
            if done < self.steps:  # the end of an epoch is saved after its evaluation
                progress.fetch()
                self.state.save(Position(epoch * self.steps + done, progress.loss_sum, progress.loss_count))

        boundary = StepBoundary(first_step, self._signal, config.save_checkpoint_steps, save)
        with closing(progress), pipeline_errors():
            self.model.train(
                epoch + 1,
                build_dataset(config, self.source, True, world, epoch, first_step),
                callbacks=[progress, boundary],
                dataset_sink_mode=config.enable_sink,
                initial_epoch=epoch,
            )
        if boundary.signal and boundary.done < self.steps:
            where = f"after step {boundary.done} of epoch {epoch + 1}; resume with --resume_ckpt=auto"
            raise Interrupted(boundary.signal, where)
        train_s, train_cpu_s = time.monotonic() - begun, time.process_time() - cpu_begun
        average_statistics(self.state.network, world)
        check_ranks_agree(self.state.network, world, epoch)
        loss_sum, count = world.sum(np.array([progress.loss_sum, progress.loss_count], np.float64))
        loss = float(loss_sum / count)

        evaluation, eval_s = None, 0.0
        number, last = epoch + 1, epoch + 1 == config.epoch_size
        due = number >= config.eval_start_epoch and (number - config.eval_start_epoch) % config.eval_interval == 0
        if self.val_source is not None and (due or last):
            begun = time.monotonic()
            batches = numpy_batches(build_dataset(config, self.val_source, False, world))
            evaluation = evaluate(self.state.network, batches, config.num_classes, config.batch_size, world)
            eval_s = time.monotonic() - begun
        received = boundary.signal or agreed_signal(self.stop, world)
        self.state.save(
            Position(number * self.steps),
            evaluation.top_1 if evaluation else None,
            regular=config.save_checkpoint and (number % config.save_checkpoint_epochs == 0 or last or bool(received)),
            best=config.save_best_ckpt,
        )
        if world.is_main:
            self._report(number, loss, evaluation, progress, train_s, train_cpu_s, eval_s, started)
        if received and not last:
            raise Interrupted(received, f"after epoch {number}; resume with --resume_ckpt=auto")
        return loss, evaluation

    def _signal(self, done: int) -> int:
        """The signal that a rank has received: asked after every step on CPU, else when losses are fetched anyway."""
        if self.config.device_target == "CPU" or done % self.config.log_interval == 0:
            return agreed_signal(self.stop, self.world)
        return 0

    def _report(
        self,
        epoch: int,
        loss: float,
        evaluation: Evaluation | None,
        progress: StepProgress,
        train_s: float,
        train_cpu_s: float,
        eval_s: float,
        started: float,
    ) -> None:
        config = self.config
        values: dict[str, Any] = {
            "loss": loss,
            "learning_rate": float(self.rates[epoch * self.steps - 1]),
            "images_per_s": None if math.isnan(progress.images_per_s) else round(progress.images_per_s, 2),
            "train_s": round(train_s, 3),
            "train_cpu_s": round(train_cpu_s, 3),
            "first_step_s": round(progress.first_step_s, 3),
        }
        text = f"epoch {epoch}/{config.epoch_size}: loss {loss:.4f}"
        if evaluation is not None:
            values.update(
                top_1_accuracy=evaluation.top_1,
                top_5_accuracy=evaluation.top_5,
                eval_loss=evaluation.loss,
                num_samples=evaluation.num_samples,
                eval_s=round(eval_s, 3),
            )
            text += f", top-1 {evaluation.top_1:.4f}, top-5 {evaluation.top_5:.4f} on {evaluation.num_samples} images"
        self.folder.record("epoch", epoch=epoch, step=epoch * self.steps, **values)
        done = epoch - self.start.step / self.steps
        left = (time.monotonic() - started) / done * (config.epoch_size - epoch)
        logger.info(
            f"{text}, rate {values['learning_rate']:.3g}, {progress.images_per_s:.0f} images/s, "
            f"{train_s + eval_s:.1f} s, {clock(left)} left"
        )
