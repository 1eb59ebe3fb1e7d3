"""Training of a configuration from the first line of the log to the last checkpoint."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore.train import Model

from src.analysis.curves import plot_curves
from src.build import architecture, build_dataset, build_model, build_source
from src.checkpoints import load_network, load_optimizer, read_checkpoint
from src.config import Config
from src.data import pipeline_errors, steps_per_epoch
from src.data.transforms import channel_statistics
from src.errors import UserError
from src.evaluation import Evaluation, evaluate, numpy_batches
from src.runtime.distributed import World
from src.training.losses import LabelSmoothingCrossEntropy
from src.training.optimizers import build_optimizer
from src.training.precision import loss_scale_manager, optimizer_loss_scale
from src.training.progress import StepProgress, clock
from src.training.ranks import average_statistics, check_ranks_agree
from src.training.run_folder import RunFolder, logging_to, shows_bar
from src.training.schedules import learning_rates
from src.training.store import CheckpointStore

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


def fit(config: Config, world: World) -> Summary:
    """Train as configured; every rank calls it.

    Raises:
        UserError: What keeps the training from starting or going on, in one line.
    """
    folder = RunFolder(config.output_path)
    said = folder.prepare(config, world.size, resume=bool(config.resume_ckpt)) if world.is_main else ""
    world.barrier()
    with logging_to(folder.log if world.is_main else None):
        if said:
            logger.info(said)
        return _Training(config, world, folder).run()


class _Training:
    """The objects of one training and what happens to them epoch by epoch."""

    def __init__(self, config: Config, world: World, folder: RunFolder) -> None:
        self.config, self.world, self.folder = config, world, folder
        if config.enable_sink and config.device_target == "CPU":
            raise UserError("enable_sink=True needs a GPU or Ascend: MindSpore has no data sink on CPU", 2)
        ms.set_seed(config.seed)
        self.source = build_source(config, "train")
        self.val_source = build_source(config, "val") if config.run_eval else None
        self.network = build_model(config, world)
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
        )
        self.optimizer = build_optimizer(
            list(self.network.trainable_params()),
            self.rates,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            loss_scale=optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target),
        )
        self.store = CheckpointStore(folder.checkpoints, config.keep_checkpoint_max)
        mean, std = channel_statistics(self.source, config.in_channels, config.mean, config.std)
        self.about = {
            "architecture": architecture(config),
            "class_names": list(self.source.class_names),
            "mean": mean,
            "std": std,
        }
        self.start_epoch = self._restore()
        self.model = Model(
            self.network,
            loss_fn=LabelSmoothingCrossEntropy(config.label_smooth_factor if config.use_label_smooth else 0.0),
            optimizer=self.optimizer,
            amp_level=config.amp_level,
            loss_scale_manager=loss_scale_manager(
                config.amp_level, config.loss_scale_mode, config.loss_scale, config.device_target
            ),
        )

    def _restore(self) -> int:
        """Load what the configuration names; the epoch to go on with."""
        config = self.config
        if config.resume_ckpt:
            checkpoint = (
                self.store.newest_valid() if config.resume_ckpt == "auto" else read_checkpoint(config.resume_ckpt)
            )
            if checkpoint is not None:
                load_network(self.network, checkpoint, architecture(config))
                load_optimizer(self.optimizer, self.network, checkpoint)
                epoch = int(checkpoint.about["epoch"])
                logger.info("resumed from %s after epoch %d", checkpoint.path, epoch)
                if self.world.is_main:
                    self.folder.forget_after(epoch)
                return epoch
            logger.info("nothing to resume from in %s: starting anew", self.store.folder)
            if self.world.is_main:
                self.folder.forget_after(0)
        if config.pre_trained:
            checkpoint = read_checkpoint(config.pre_trained)
            if load_network(self.network, checkpoint, architecture(config), fine_tune=True):
                logger.info("started from %s", checkpoint.path)
            else:
                logger.info("started from %s without its classifier: it has other classes", checkpoint.path)
        return 0

    def run(self) -> Summary:
        """All epochs that are left."""
        config, world = self.config, self.world
        size = sum(p.size for p in self.network.trainable_params())
        logger.info(
            "%s + %s, %.2f M parameters, %s mode on %s; %d training images in %d classes",
            config.net_name,
            config.pooling,
            size / 1e6,
            config.mode_name,
            config.device_target,
            self.source.num_samples,
            len(self.source.class_names),
        )
        logger.info(
            "global batch %d = %d x %d rank%s, %d steps an epoch, rate up to %g (%s), run folder %s",
            config.batch_size * world.size,
            config.batch_size,
            world.size,
            "" if world.size == 1 else "s",
            self.steps,
            float(self.rates.max()),
            config.lr_decay_mode,
            self.folder.path,
        )
        loss, evaluation = float("nan"), None
        started = time.monotonic()
        for epoch in range(self.start_epoch, config.epoch_size):
            loss, evaluation = self._epoch(epoch, started)
        if world.is_main:
            plot_curves(self.folder.records("epoch"), self.folder.curves)
        done = max(self.start_epoch, config.epoch_size)
        logger.info("done: %d epochs in %s", done, clock(time.monotonic() - started))
        return Summary(done, loss, evaluation, self.store.best_metric, self.folder.path)

    def _epoch(self, epoch: int, started: float) -> tuple[float, Evaluation | None]:
        config, world = self.config, self.world
        begun = time.monotonic()
        progress = StepProgress(
            epoch,
            config.epoch_size,
            self.steps,
            self.rates,
            config.batch_size * world.size,
            config.log_interval,
            self.folder if world.is_main else None,
            shows_bar(config.progress),
        )
        with closing(progress), pipeline_errors():
            self.model.train(
                epoch + 1,
                build_dataset(config, self.source, True, world, epoch),
                callbacks=[progress],
                dataset_sink_mode=config.enable_sink,
                initial_epoch=epoch,
            )
        train_s = time.monotonic() - begun
        average_statistics(self.network, world)
        check_ranks_agree(self.network, world, epoch)
        loss_sum, count = world.sum(np.array([progress.loss_sum, progress.loss_count], np.float64))
        loss = float(loss_sum / count)

        evaluation, eval_s = None, 0.0
        last = epoch + 1 == config.epoch_size
        due = epoch + 1 >= config.eval_start_epoch and (epoch + 1 - config.eval_start_epoch) % config.eval_interval == 0
        if self.val_source is not None and (due or last):
            begun = time.monotonic()
            batches = numpy_batches(build_dataset(config, self.val_source, False, world))
            evaluation = evaluate(self.network, batches, config.class_num, config.batch_size, world)
            eval_s = time.monotonic() - begun
        if world.is_main:
            self._save(epoch, evaluation, last)
            self._report(epoch, loss, evaluation, progress, train_s, eval_s, started)
        return loss, evaluation

    def _save(self, epoch: int, evaluation: Evaluation | None, last: bool) -> None:
        config = self.config
        step = (epoch + 1) * self.steps
        metric = None if evaluation is None else evaluation.top_1
        state = (self.network, self.optimizer, epoch + 1, step)
        if config.save_checkpoint and ((epoch + 1) % config.save_checkpoint_epochs == 0 or last):
            self.store.save(*state, metric, self.about)
        if config.save_best_ckpt and metric is not None:
            self.store.save_best(*state, metric, self.about)

    def _report(
        self,
        epoch: int,
        loss: float,
        evaluation: Evaluation | None,
        progress: StepProgress,
        train_s: float,
        eval_s: float,
        started: float,
    ) -> None:
        config = self.config
        rate = float(self.rates[(epoch + 1) * self.steps - 1])
        values: dict[str, Any] = {
            "loss": loss,
            "learning_rate": rate,
            "images_per_s": round(progress.images_per_s, 2) if self.steps > 1 else None,
            "train_s": round(train_s, 3),
            "first_step_s": round(progress.first_step_s, 3),
        }
        text = f"epoch {epoch + 1}/{config.epoch_size}: loss {loss:.4f}"
        if evaluation is not None:
            values.update(
                top_1_accuracy=evaluation.top_1,
                top_5_accuracy=evaluation.top_5,
                eval_loss=evaluation.loss,
                num_samples=evaluation.num_samples,
                eval_s=round(eval_s, 3),
            )
            text += f", top-1 {evaluation.top_1:.4f}, top-5 {evaluation.top_5:.4f} on {evaluation.num_samples} images"
        self.folder.record("epoch", epoch=epoch + 1, step=(epoch + 1) * self.steps, **values)
        done = epoch + 1 - self.start_epoch
        left = (time.monotonic() - started) / done * (config.epoch_size - epoch - 1)
        logger.info(
            "%s, rate %.3g, %.0f images/s, %.1f s, %s left",
            text,
            rate,
            progress.images_per_s,
            train_s + eval_s,
            clock(left),
        )
