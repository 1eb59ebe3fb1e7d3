"""The training step of a configuration: the recipe, and every rule about devices in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import nn
from mindspore.train import Callback, DynamicLossScaleManager, FixedLossScaleManager, Model

from covpool.config import Config
from covpool.errors import UserError
from covpool.kernels import apply_cpu_kernels, threads_of_process
from covpool.runtime.distributed import World
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.mixed_precision import apply_amp_level
from covpool.training.optimizers import build_optimizer
from covpool.training.reduction import fuse_reductions, reduce_in_order
from covpool.training.schedules import learning_rates


def recipe_rates(config: Config, steps: int) -> np.ndarray:
    """The rate of every step of the configured training, float32 (epochs * steps,); ``steps`` are those of an epoch."""
    return learning_rates(
        config.lr_decay_mode,
        lr_max=config.lr_max,
        lr_init=config.lr_init,
        lr_end=config.lr_end,
        epochs=config.epoch_size,
        steps_per_epoch=steps,
        warmup_epochs=config.warmup_epochs,
        milestones=config.lr_epochs,
        gamma=config.lr_gamma,
        family=config.lr_family,
        designed_epochs=config.lr_designed_epochs,
    )


def recipe_loss(config: Config) -> nn.Cell:
    """The configured loss of logits and labels."""
    return LabelSmoothingCrossEntropy(config.label_smooth_factor if config.use_label_smooth else 0.0)


def recipe_optimizer(config: Config, network: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """The configured optimiser of a network's trainable parameters."""
    return build_optimizer(
        list(network.trainable_params()),
        rates,
        kind=config.optimizer,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        loss_scale=optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target),
    )


@dataclass(frozen=True)
class Step:
    """Forward, backward and update of a network.

    Attributes:
        model: MindSpore's, which runs the step over a data set.
        sink: Whether the device fetches the data itself and runs a whole epoch between two calls of a callback.
    """

    model: Model
    sink: bool

    def train(self, epoch: int, dataset: Any, callback: Callback) -> None:
        """Train on a data set once, as the epoch of that number, from 0."""
        self.model.train(epoch + 1, dataset, callbacks=[callback], dataset_sink_mode=self.sink, initial_epoch=epoch)


def build_step(config: Config, network: nn.Cell, optimizer: nn.Optimizer, world: World) -> Step:
    """Put network, loss and optimiser together as the device needs it.

    Cells of the network are replaced by faster or less precise ones. Their parameters stay the same objects, but are
    found under other names: load checkpoints before.

    Args:
        config: The configuration.
        network: (N, C, H, W) -> logits (N, K).
        optimizer: From :func:`recipe_optimizer`.
        world: The ranks; gradients are averaged over them.

    Raises:
        UserError: The device cannot do what is configured, or kernels cannot be compiled.
    """
    on_cpu = config.device_target == "CPU"
    if config.enable_sink and on_cpu:
        raise UserError("enable_sink=True needs a GPU or Ascend: MindSpore has no data sink on CPU", 2)
    scale = loss_scale_manager(config.amp_level, config.loss_scale_mode, config.loss_scale, config.device_target)
    apply_cpu_kernels(network, config.cpu_kernels, threads_of_process(world.local_size))
    if world.size > 1 and not on_cpu:  # on CPU nothing overlaps: fewer, larger reductions were slower
        fuse_reductions(list(network.trainable_params()))
    model = Model(
        network,
        loss_fn=recipe_loss(config),
        optimizer=optimizer,
        amp_level=apply_amp_level(network, config.amp_level),
        loss_scale_manager=scale,
    )
    if world.size > 1 and on_cpu:
        reduce_in_order(model.train_network, world.size)
    return Step(model, config.enable_sink)


def loss_scale_manager(amp_level: str, mode: str, loss_scale: float, device_target: str) -> Any:
    """The manager that ``Model`` gets; None in full precision, where scaling by a constant changes nothing.

    On GPU and Ascend a step whose gradients overflow is left out. MindSpore cannot do that on CPU: there the scale is
    applied, and an overflow shows as a loss that is no number, which stops the training.

    Args:
        amp_level: 'O0' (full precision), 'O1', 'O2', 'O3' or 'auto'.
        mode: 'fixed' or 'dynamic'.
        loss_scale: The scale, or the first one of the dynamic mode.
        device_target: 'CPU', 'GPU' or 'Ascend'.

    Raises:
        UserError: A dynamic scale on CPU.
    """
    if amp_level == "O0":
        return None
    if mode == "dynamic":
        if device_target == "CPU":
            raise UserError("loss_scale_mode=dynamic needs a GPU or Ascend: MindSpore has none on CPU; use fixed", 2)
        return DynamicLossScaleManager(init_loss_scale=loss_scale)
    return FixedLossScaleManager(loss_scale, drop_overflow_update=device_target != "CPU")


def optimizer_loss_scale(amp_level: str, loss_scale: float, device_target: str) -> float:
    """What the optimiser divides gradients by: the scale where no other part of the step undoes it."""
    return loss_scale if amp_level != "O0" and device_target == "CPU" else 1.0
