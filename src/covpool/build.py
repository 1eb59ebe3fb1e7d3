"""From a configuration to the objects it describes: the one construction path of all entry points."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn

from covpool.checkpoints.format import Checkpoint
from covpool.checkpoints.loading import classifier_weight
from covpool.config import Config
from covpool.config.schema import options
from covpool.data import (
    Augmentation,
    ImageTransform,
    Mixing,
    Source,
    create_dataset,
    epoch_order,
    open_source,
    usable,
)
from covpool.errors import ConfigError, UserError
from covpool.models import ImageClassifier, create_model, freeze_parts, model_arguments, recompute
from covpool.pooling import list_poolings
from covpool.pooling.counter_random import CounterUniform
from covpool.runtime.distributed import World
from covpool.runtime.environment import available_cores

logger = logging.getLogger(__name__)

# The keys of the image transform, as in ``ImageTransform``: side, crop ratio, interpolation, mean, std.
TRANSFORM = ("eval_image_size", "eval_crop_ratio", "interpolation", "mean", "std")
# Keys of the layers of a network, which not every network takes.
_LAYERS = ("in_channels", "stem", "base_width")
_DROPOUT_SEED_STRIDE = 1_000_003  # keeps the dropout streams of neighbouring seeds and ranks apart
_GENERATOR_STRIDE = 2**52  # and those of one network: above any seed times the stride


def resolve_class_num(config: Config, where: Source | Checkpoint) -> Config:
    """``class_num: auto`` replaced by the number of classes of the data or of a checkpoint; any number stays."""
    if config.class_num != "auto":
        return config
    if isinstance(where, Source):
        return config.replace(class_num=len(where.class_names))
    classifier = classifier_weight(where.network)
    if classifier is None:
        raise UserError(f"class_num = auto: {where.path} holds no classifier; give --class_num=N", 2)
    return config.replace(class_num=where.network[classifier].shape[0])


def architecture(config: Config) -> dict[str, Any]:
    """What must agree between a checkpoint and a configuration, by configuration key."""
    return {
        "net_name": config.net_name,
        "pooling": config.pooling,
        **({} if config.pooling == "gap" else {"reduction_dim": config.reduction_dim}),
        "class_num": config.class_num,
        **_layers(config),
        **({"train_image_size": config.train_image_size} if _has_positions(config) else {}),
        "pooling_args": dict(config.pooling_args),
        **({"model_args": dict(config.model_args)} if config.model_args else {}),
    }


def _layers(config: Config) -> dict[str, Any]:
    """The keys of the layers that the configured network takes."""
    taken = model_arguments(config.net_name)
    return {key: getattr(config, key) for key in _LAYERS if key in taken}


def _has_positions(config: Config) -> bool:
    """Whether the configured network is made for one size of images."""
    return "image_size" in model_arguments(config.net_name)


def image_transform(config: Config, source: Source | None = None) -> ImageTransform:
    """How images become the network's input in evaluation.

    Without ``mean`` and ``std`` they are those of the data set, without a data set ImageNet's.
    """
    size, mean, std, channels = config.eval_image_size, config.mean, config.std, config.in_channels
    how: dict[str, Any] = {"crop_ratio": config.eval_crop_ratio, "interpolation": config.interpolation}
    return ImageTransform.for_source(source, size, mean, std, channels, **how)


def image_augmentation(config: Config) -> Augmentation:
    """How training images vary at random."""
    return Augmentation(
        config.augmentation,
        crop_scale=config.crop_scale,
        crop_ratio=config.crop_ratio,
        flip_probability=config.flip_probability,
        vertical_flip=config.vertical_flip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        random_erasing=config.random_erasing,
        erasing_mode=config.erasing_mode,
        repeated_augmentation=config.repeated_augmentation,
    )


def description(config: Config, source: Source) -> dict[str, Any]:
    """What a checkpoint says of its network and of the images it was trained on."""
    transform = image_transform(config, source).to_dict()
    return {
        "architecture": architecture(config),
        "class_names": list(source.class_names),
        "transform": transform,
        "mean": transform["mean"],  # beside the transform for versions that do not know it
        "std": transform["std"],
        **({"val_fraction": config.val_fraction} if config.val_fraction else {}),
    }


def with_checkpoint(config: Config, checkpoint: Checkpoint, world: World | None = None) -> Config:
    """The configuration, completed by what a checkpoint says of its network and its images.

    What a file or the command line gave stays: of the images a contradiction is named in the log, of the network it
    is an error, and so is a network that neither names.
    """
    saved = checkpoint.about.get("architecture", {})
    if not saved and not any(map(config.says, architecture(config))):
        raise UserError(f"{checkpoint.path} does not say which network it holds: give --config_path=FILE", 2)
    if saved.get("pooling", "gap") not in list_poolings():
        name = ascii(saved["pooling"])
        raise UserError(f"{checkpoint.path} names a pooling that is not known here, {name}: damaged, or of other code")
    config, differing = _completed(config, checkpoint, saved)
    if differing:
        raise UserError(f"{checkpoint.path} does not fit the configuration: {differing}")
    return with_transform(resolve_class_num(config, checkpoint), checkpoint, world)


def with_transform(
    config: Config, checkpoint: Checkpoint, world: World | None = None, keys: Sequence[str] = TRANSFORM
) -> Config:
    """The configuration with the image transform of a checkpoint, where no file and no command line gave another.

    Of the transform, ``keys`` are taken over; an old checkpoint knows mean and standard deviation alone. Rank 0 names
    contradictions in the log.
    """
    values = {key: checkpoint.about[key] for key in ("mean", "std") if checkpoint.about.get(key)}
    if "transform" in checkpoint.about:
        try:
            transform = ImageTransform.from_dict(checkpoint.about["transform"])
        except UserError as error:
            raise UserError(f"{checkpoint.path}: damaged, {error}") from error
        found = (transform.height, transform.crop_ratio, transform.interpolation, transform.mean, transform.std)
        values = dict(zip(TRANSFORM, found))
    config, differing = _completed(config, checkpoint, {key: values[key] for key in keys if key in values})
    if differing and (world is None or world.is_main):
        logger.warning("%s: %s: the configuration holds", checkpoint.path, differing)
    return config


def _completed(config: Config, checkpoint: Checkpoint, values: Mapping[str, Any]) -> tuple[Config, str]:
    """The configuration with a checkpoint's values for what nobody gave, and what else differs, in words."""
    taken, differing = {}, []
    for key in [key for key in values if key in options()]:
        mine, theirs = _plain(getattr(config, key)), _plain(values[key])
        if mine in (None, "auto") or not config.says(key):
            taken[key] = theirs
        elif mine != theirs:
            differing.append(f"{key} is {theirs!r} in the checkpoint and {mine!r} in the configuration")
    try:
        return config.replace(**taken), "; ".join(differing)
    except ConfigError as error:
        raise UserError(f"{checkpoint.path} does not fit: {error}") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def build_model(config: Config, world: World | None = None) -> nn.Cell:
    """The configured network, initialised from MindSpore's global seed.

    Ranks draw different dropout masks and equal initial weights (when their global seed is equal).
    """
    layers = _layers(config)
    foreign = [key for key in _LAYERS if key not in layers and getattr(config, key) != options()[key].default]
    if foreign:
        values = ", ".join(f"{key} = {getattr(config, key)}" for key in foreign)
        taken = ", ".join(layers) or "no such key"
        raise UserError(f"{values}: {config.net_name} does not take it; it takes {taken}", 2)
    own = [key for key in model_arguments(config.net_name) if key not in (*_LAYERS, "image_size")]
    if unknown := ", ".join(key for key in config.model_args if key not in own):
        raise UserError(f"model_args: {config.net_name} does not take {unknown}; it takes {', '.join(own)}", 2)
    size: dict[str, Any] = {"image_size": config.train_image_size} if _has_positions(config) else {}
    try:
        network = create_model(
            config.net_name,
            pooling=config.pooling,
            reduction_dim=config.reduction_dim,
            num_classes=config.num_classes,
            pooling_args=dict(config.pooling_args),
            drop_rate=config.drop_rate,
            drop_path_rate=config.drop_path_rate,
            **{**layers, **size, **config.model_args},
        )
        freeze_parts(network, config.freeze)
        if config.recompute:
            recompute(network)
        if isinstance(network, ImageClassifier):
            network.check_image_size(config.height or config.eval_image_size, config.width or config.eval_image_size)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), 2) from error
    rank, generators = world.rank if world else 0, 0
    for _, cell in network.cells_and_names():
        if isinstance(cell, CounterUniform):
            cell.seed = config.seed * _DROPOUT_SEED_STRIDE + rank + generators * _GENERATOR_STRIDE
            generators += 1
        if config.freeze_bn and isinstance(cell, nn.BatchNorm2d):
            cell.use_batch_statistics = False
    return network


def build_source(config: Config, split: str, world: World, cache: Path | None = None) -> Source:
    """The images of ``split`` ('train', 'val' or 'test'); every rank calls it.

    With ``bad_images: skip`` those that cannot be decoded are left out and named in the log; in the file ``cache``
    rank 0 keeps which they are, for a resumed run.
    """
    root = config.data_path
    if not root:
        raise UserError("data_path is empty: give the dataset's root with --data_path=DIR", 2)
    limits: dict[str, Any] = {"max_pixels": config.max_pixels, "val_fraction": config.val_fraction}
    source = open_source(config.dataset, root, split, config.image_list or None, **limits)
    classes = len(source.class_names)
    wanted = classes if config.class_num == "auto" else config.class_num
    if classes > wanted:
        hint = f"add --class_num={classes} (or auto)"
        raise UserError(f"{root} has {classes} classes, the configuration class_num={wanted}; {hint}", 2)
    if split == "train" and classes < wanted:
        what = "the other outputs are never trained (--class_num=auto counts them)"
        logger.info("class_num = %d, but %s has %d classes: %s", wanted, root, classes, what)
    seen = world.sum(np.array([source.num_samples], np.float64))[0]
    if seen != source.num_samples * world.size:
        raise UserError(
            f"{root}: rank {world.rank} sees {source.num_samples} images of {split}, all {world.size} "
            f"ranks together {seen:.0f}: they must see the same files"
        )
    if config.bad_images == "skip":
        ranks: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "total": world.sum}
        source, problems = usable(source, _workers(config, world), cache=cache, **ranks)
        for problem in problems:
            logger.warning("left out: %s", problem)
        if problems:
            logger.warning("%d bad images of %s left out, %d used", len(problems), split, source.num_samples)
    if split == "train" and config.train_images is not None:
        count, there = config.train_images, source.num_samples
        if count > there:
            raise UserError(f"train_images = {count}: there are {there} images to train on", 2)
        # The same images for every seed, so that seeds differ in initialisation and order alone.
        source = source.subset(sorted(epoch_order(there, 0, 0)[:count].tolist()))
    return source


def _workers(config: Config, world: World) -> int:
    return config.num_workers or max(1, available_cores() // world.local_size)


def batch_mixing(config: Config) -> Mixing | None:
    """How the images of a training batch are mixed with each other; None for not at all."""
    if config.mix_probability == 0 or not (config.mixup or config.cutmix):
        return None
    probabilities = config.mix_probability, config.mix_switch_probability
    return Mixing(config.mixup, config.cutmix, *probabilities, config.mix_off_epoch)


def build_dataset(
    config: Config, source: Source, training: bool, world: World, epoch: int = 0, first_step: int = 0
) -> Any:
    """An epoch of training batches from ``first_step``, or the evaluation batches of this rank (None for no image)."""
    transform, augmentation = image_transform(config, source), None
    if training:
        transform = replace(transform, height=config.train_image_size, width=config.train_image_size)
        augmentation = image_augmentation(config)
    return create_dataset(
        source,
        transform,
        config.batch_size * (config.accumulate_steps if training else 1),
        augmentation,
        seed=config.seed,
        epoch=epoch,
        first_step=first_step,
        rank=world.rank,
        world_size=world.size,
        num_workers=_workers(config, world),
        mixing=batch_mixing(config),
    )
