"""The training step of a configuration: every rule about devices in one place."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
from mindspore import amp, nn, ops
from mindspore.train import Model

from covpool.config import Config
from covpool.errors import UserError
from covpool.kernels import apply_cpu_kernels, threads_of_process
from covpool.pooling.base import Float32Cell
from covpool.runtime.distributed import World
from covpool.training.losses import recipe_loss
from covpool.training.objective import Teacher, batch_mixer, set_objective
from covpool.training.ranks import fuse_reductions, reduce_in_order
from covpool.training.recipe import loss_scale_manager, optimizer_loss_scale
from covpool.training.update import AccumulatedStep, Clip, Update


def build_step(
    config: Config,
    network: nn.Cell,
    optimizer: nn.Optimizer,
    world: World,
    teacher: Teacher | None = None,
    loss: nn.Cell | None = None,
    kernels: Path | None = None,
) -> Model:
    """Put network, loss and optimiser together as the device needs it: forward, backward, mean over ranks, update.

    ``kernels`` is the library of compiled kernels for CPU, None for MindSpore's own.

    Cells of the network, (N, C, H, W) -> logits (N, K), are replaced by faster or less precise ones. Their parameters
    stay the same objects, but are found under other names: load checkpoints before. A UserError says what the device
    cannot do.
    """
    on_cpu = config.device_target == "CPU"
    if config.enable_sink and on_cpu:
        raise UserError("enable_sink=True needs a GPU or Ascend: MindSpore has no data sink on CPU", 2)
    scale = loss_scale_manager(config.amp_level, config.loss_scale_mode, config.loss_scale, config.device_target)
    apply_cpu_kernels(network, kernels, threads_of_process(world.local_size))
    if teacher is not None:
        apply_cpu_kernels(teacher, kernels, threads_of_process(world.local_size))
    if world.size > 1 and not on_cpu:  # on CPU nothing overlaps: fewer, larger reductions were slower
        fuse_reductions(list(network.trainable_params()))
    model = Model(
        network,
        loss_fn=recipe_loss(config) if loss is None else loss,
        optimizer=optimizer,
        amp_level=apply_amp_level(network, config.amp_level),
        loss_scale_manager=scale,
    )
    step, mixer = model.train_network, batch_mixer(config)
    set_objective(model, config, teacher, mixer if config.accumulate_steps == 1 else None)
    if world.size > 1 and on_cpu:
        reduce_in_order(step, world.size)
    average = getattr(optimizer, "average", None)
    if config.clip_grad is not None or average is not None:
        # Where the optimiser divides by the loss scale, it is still in the gradients that are clipped.
        unit = optimizer_loss_scale(config.amp_level, config.loss_scale, config.device_target)
        clip = None if config.clip_grad is None else Clip(config.clip_grad * unit, config.clip_mode)
        step.optimizer = Update(optimizer, clip, average)
    return model if config.accumulate_steps == 1 else Model(AccumulatedStep(step, config.accumulate_steps, mixer))


class Float16Cell(nn.Cell):
    """A cell that computes in float16 between float32 inputs and outputs; its parameters stay as they are, float32."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep their names
        self.cell = cell.to_float(ms.float16)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return ops.cast(self.cell(x), ms.float32)


def apply_amp_level(network: nn.Cell, amp_level: str) -> str:
    """Set a network to O1 in place: convolutions and dense layers in float16, everything else in float32.

    MindSpore applies O1 by rewriting the source of a network's class. In 2.8 a network whose ``construct`` or whose
    methods come from a base class, as all networks here, then stays in float32, without any message. It also writes
    the new source into the working folder. The other levels work through flags on cells and are left to MindSpore.

    Returns:
        The level for ``mindspore.train.Model``: what is left to be done by it.
    """
    if amp_level != "O1":
        return amp_level
    _lower(network, tuple(kind for kind in amp.get_white_list() if issubclass(kind, nn.Cell)))
    return "O0"


def _lower(network: nn.Cell, kinds: tuple[type[nn.Cell], ...]) -> None:
    for name, cell in network.name_cells().items():
        if isinstance(cell, kinds):
            # Not by setattr, which would put another prefix before the names of the parameters.
            network._cells[name] = Float16Cell(cell)
        elif not isinstance(cell, (Float32Cell, Float16Cell)):
            _lower(cell, kinds)
    if isinstance(network, nn.SequentialCell):
        network.cell_list = list(network.cells())
