"""The start of a training: first all that can be wrong, then the run folder."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import mindspore as ms
from mindspore.train import Model

from covpool.build import (
    architecture,
    batch_mixing,
    build_model,
    build_source,
    description,
    image_transform,
    resolve_class_num,
    with_checkpoint,
    with_transform,
)
from covpool.checkpoints.conversion import read_weights, start_from
from covpool.checkpoints.format import Checkpoint, load_network, other_classes, read_checkpoint
from covpool.checkpoints.state import Progress, TrainingState, place
from covpool.checkpoints.store import CheckpointStore
from covpool.config import Config
from covpool.data import Source, steps_per_epoch
from covpool.data.decoding import printable
from covpool.errors import UserError
from covpool.kernels import cpu_kernels
from covpool.runtime.distributed import World
from covpool.training.logs import Events, LogFile
from covpool.training.losses import CountedLoss, recipe_loss
from covpool.training.objective import Teacher
from covpool.training.progress import Plan
from covpool.training.recipe import rate_factor, recipe_optimizer, recipe_rates
from covpool.training.run_folder import RunFolder
from covpool.training.step import build_step

logger = logging.getLogger(__name__)

_HIGH_ADAPTIVE_RATE = 0.02  # of optimisers that divide gradients by their size


@dataclass(frozen=True)
class Training:
    """What a training works with."""

    config: Config  # with the number of classes
    world: World
    folder: RunFolder
    train: Source  # images to train on
    val: Source | None  # images to evaluate on; None without evaluation
    plan: Plan
    state: TrainingState  # network, optimiser and their checkpoints
    model: Model  # forward, backward and update
    hits: ms.Parameter | None  # counts the right answers in training; None where images are mixed
    start: Progress  # where the training begins
    resumed: Checkpoint | None  # what it goes on from
    bad_images: dict[str, str]  # for each split what is to be remembered of its bad images

    @property
    def graphs(self) -> int:
        """How many MindSpore compiles: the step, or its mixing, parts and update; and the evaluation."""
        of_parts = 2 + (batch_mixing(self.config) is not None)
        return (1 if self.config.accumulate_steps == 1 else of_parts) + (self.val is not None)


def prepare(config: Config, world: World, folder: RunFolder) -> Training:
    """Open the data, build and restore everything; the run folder is read, not written.

    Raises:
        UserError: Data, checkpoint and configuration do not fit each other, or the device cannot do what is asked.
    """
    if config.tensorboard:
        Events.check_installed()
    ms.set_seed(config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        caches = {split: Path(scratch) / folder.bad_images(split).name for split in ("train", "val")}
        for split, cache in caches.items():
            if folder.bad_images(split).is_file():
                shutil.copyfile(folder.bad_images(split), cache)
        train = build_source(config, "train", world, caches["train"])
        config = resolve_class_num(config, train)
        val = build_source(config, "val", world, caches["val"]) if config.run_eval else None
        bad_images = {split: cache.read_text(encoding="utf-8") for split, cache in caches.items() if cache.is_file()}
    batch = config.batch_size * config.accumulate_steps
    steps = steps_per_epoch(train.num_samples, batch, world.size)
    rates = recipe_rates(config, steps, batch * world.size)
    network = build_model(config, world)
    optimizer = recipe_optimizer(config, network, rates)
    store = CheckpointStore(folder.checkpoints, config.keep_checkpoint_max, empty=not config.resume_ckpt)
    state = TrainingState(network, optimizer, store, world, steps, description(config, train))
    resumed = state.find(config.resume_ckpt) if config.resume_ckpt else None
    start = Progress()
    if resumed is not None:
        start = state.restore(resumed, architecture(config))
        config = with_transform(config, resumed, world)
    elif config.pre_trained:
        weights = read_weights(Path(config.pre_trained), config.use_ema)
        kept = start_from(network, weights, architecture(config), state.about["class_names"])
        if config.freeze_bn and any("layer_reduce" in name for name in kept):
            logger.warning(
                "freeze_bn freezes the normalisation of the new reduction, too, at mean 0 and variance 1: "
                "--freeze=[backbone] freezes that of the backbone alone"
            )
        config = with_transform(config, weights, world, keys=("mean", "std"))
        state.begin_average()
    elif config.fine_tune:
        logger.warning(
            "this recipe is for pre-trained weights (--pre_trained=FILE), and there are none: for a training from "
            "scratch take config/own_images.yaml"
        )
    kernels = cpu_kernels(config)
    about = description(config, train)
    if config.device_target == "CPU":
        about["cpu_kernels"] = kernels.stem if kernels else "mindspore"
        if resumed is not None:
            _tell_other_kernels(resumed, about["cpu_kernels"])
    state = replace(state, about=about)
    # Of mixed images there is no right answer.
    counted = CountedLoss(recipe_loss(config)) if batch_mixing(config) is None else None
    model = build_step(config, network, optimizer, world, load_teacher(config, train), counted, kernels)
    plan = Plan(config.epoch_size, steps, rates, batch * world.size, config.log_interval, world.size)
    hits = None if counted is None else counted.hits
    return Training(config, world, folder, train, val, plan, state, model, hits, start, resumed, bad_images)


def _tell_other_kernels(checkpoint: Checkpoint, now: str) -> None:
    """Say so where a training goes on with other kernels than before: its results then differ by rounding."""
    before = checkpoint.about.get("cpu_kernels", now)
    if before != now:
        logger.warning(
            "%s was trained with other CPU kernels (%s, here %s): from here on results differ from those of an "
            "uninterrupted training, by rounding",
            checkpoint.path,
            printable(before),
            now,
        )


def load_teacher(config: Config, source: Source) -> Teacher | None:
    """The network to learn from, built as its checkpoint says; None without ``teacher``.

    Raises:
        UserError: The checkpoint is damaged, or does not say which network it holds; the network has other classes than
            the student, or takes other images.
    """
    if not config.teacher:
        return None
    try:
        checkpoint = read_checkpoint(config.teacher).averaged(config.use_ema)
        if not checkpoint.about.get("architecture"):
            raise UserError(f"{checkpoint.path} does not say which network it holds; a checkpoint of a training does")
        theirs = with_checkpoint(Config(), checkpoint)
        network = build_model(theirs.replace(height=config.train_image_size, width=config.train_image_size))
        load_network(network, checkpoint)
    except UserError as error:
        raise UserError(f"teacher: {error}") from error
    difference = other_classes(checkpoint, source.class_names)
    if not difference and theirs.num_classes != config.num_classes:
        difference = f"it has {theirs.num_classes} outputs, the student {config.num_classes}"
    if difference:
        raise UserError(f"teacher {config.teacher} does not fit the classes of the data: {difference}")
    mine, wanted = image_transform(config, source), image_transform(theirs)
    if (mine.mean, mine.std) != (wanted.mean, wanted.std):
        raise UserError(
            f"teacher {config.teacher} takes images of mean {list(wanted.mean)} and std {list(wanted.std)}, "
            f"the student of {list(mine.mean)} and {list(mine.std)}: give the student the teacher's --mean and --std"
        )
    logger.info("learning from %s + %s of %s", theirs.net_name, theirs.pooling, config.teacher)
    return Teacher(network)


def begin(run: Training, log: LogFile) -> None:
    """Make the run folder ready and log what is trained; every rank calls it.

    What another run left in the folder moves to ``earlier-N``; so does, where an earlier checkpoint of this run is
    named, all that came after it.
    """
    config, world, folder, plan = run.config, run.world, run.folder, run.plan
    world.barrier()  # until here every rank has read from the folder
    if world.is_main:
        folder.lock()
        _clear(run)
        folder.describe(config, world.size, run.bad_images)
        if config.tensorboard:
            folder.open_events(run.start.epoch * plan.steps + run.start.step + 1)
        log.open(folder.log)
    world.barrier()
    factor = rate_factor(config)
    source = f"{config.lr_decay_mode}{'' if factor == 1 else f', lr_factor {factor:g} of {config.pooling} included'}"
    if config.head_lr_factor != 1:
        source += f", in the head {config.head_lr_factor:g} times as high"
    size = sum(p.size for p in run.state.network.trainable_params())
    whole = size + sum(p.size for p in run.state.network.get_parameters() if not p.requires_grad and _is_weight(p))
    text = f"{whole / 1e6:.2f} M parameters{'' if whole == size else f' of which {size / 1e6:.2f} M train'}"
    logger.info(
        f"{config.net_name} + {config.pooling}, {text}, {config.mode_name} mode on "
        f"{config.device_target}; {run.train.num_samples} training images in {len(run.train.class_names)} classes"
    )
    if config.optimizer in ("adamw", "lamb", "lion") and plan.rates.max() > _HIGH_ADAPTIVE_RATE:
        logger.warning(
            f"a rate of {plan.rates.max():g} is high for {config.optimizer}: --lr_max=1e-3 is a usual one, with "
            "--weight_decay=0.05"
        )
    logger.info(
        f"global batch {plan.global_batch} = {plan.global_batch // world.size} x {world.size} "
        f"rank{'' if world.size == 1 else 's'}, {plan.steps} steps an epoch, rate up to {plan.rates.max():g} "
        f"({source}), run folder {folder.path}"
    )


def _is_weight(parameter: ms.Parameter) -> bool:
    """Whether it is no statistic or counter."""
    return not parameter.name.endswith((".moving_mean", ".moving_variance", ".counter"))


def _clear(run: Training) -> None:
    """Leave in the run folder what the training goes on from."""
    folder, store, resumed = run.folder, run.state.store, run.resumed
    auto = run.config.resume_ckpt == "auto"
    if resumed is None and auto:
        earlier = folder.latest_aside()
        hint = f"; {earlier} holds an earlier run, to be resumed by --resume_ckpt=FILE" if earlier else ""
        logger.info("nothing to resume from in %s: starting anew%s", store.folder, hint)
    if resumed is None or not store.holds(resumed.path):
        store.clear()
        # A run that was interrupted before it had any result is no loss.
        aside = folder.displace() if folder.holds_results() or not auto else None
        if aside:
            logger.info("%s held an earlier run, which is now in %s", folder.path, aside)
        return
    store.tidy()
    here = place(resumed)
    beyond = store.beyond(here)
    # What auto passed over is damaged, or will be done again as it was.
    if not auto and (beyond or any(record["epoch"] > here[0] for record in folder.records("epoch"))):
        aside = folder.new_aside([folder.metrics])
        store.move(beyond, aside / store.folder.name)
        logger.info("what came after %s is now in %s", resumed.path, aside)
    folder.forget_after(*here)
    store.check_best()
