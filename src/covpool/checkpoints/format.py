"""Checkpoints: one file holds the network, the optimiser and where the training stood.

Inside a file the network's parameters keep their own names, the optimiser's are prefixed with ``optimizer.`` and
facts about the file (epoch, step, architecture, class names) with ``about.``. A checkpoint that holds network
parameters alone, a converted one for example, loads everywhere but cannot be resumed from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from covpool.checkpoints.entries import RANKS, read_entries, take_about, write_entries
from covpool.checkpoints.loading import conventions, load_into
from covpool.errors import UserError, first_line
from covpool.runtime.files import whole_file

_OPTIMIZER = "optimizer."
_AVERAGE = "average."  # within the optimiser's state: the moving average of the network


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file."""

    path: Path  # where it was read from
    network: dict[str, ms.Parameter]  # the network's parameters by name
    # the optimiser's state by name; empty in a checkpoint that holds a network alone
    optimizer: dict[str, ms.Parameter] = field(default_factory=dict)
    # ``epoch`` and ``step`` that were completed, ``architecture``, ``class_names``, ``metric``
    about: dict[str, Any] = field(default_factory=dict)
    # running statistics of every rank, float32 (ranks, n), in a checkpoint from within an epoch
    ranks: np.ndarray | None = None

    def averaged(self, wanted: bool = True) -> Checkpoint:
        """With the moving average of the network in its place, if it is wanted and there is one."""
        found = {n[len(_AVERAGE) :]: p for n, p in self.optimizer.items() if n.startswith(_AVERAGE)}
        return replace(self, network={**self.network, **found}) if wanted else self


def save_checkpoint(
    path: Path,
    network: nn.Cell,
    optimizer: nn.Optimizer | None = None,
    about: Mapping[str, Any] | None = None,
    ranks: np.ndarray | None = None,
) -> None:
    """Write a checkpoint with a checksum, whole or not at all.

    The optimiser's momentum, step and rates are stored; a parameter that belongs to the network is not repeated.
    ``about`` holds facts that JSON can hold, ``ranks`` the running statistics of every rank, where they differ, float32
    (ranks, n). UserError: the file cannot be written; an earlier file of that name is untouched.
    """
    entries: dict[str, Any] = {p.name: p for p in network.get_parameters()}
    if optimizer is not None:
        entries.update((_OPTIMIZER + name, p) for name, p in optimizer_state(optimizer, network).items())
    if ranks is not None:
        entries[RANKS] = ms.Tensor(ranks)
    try:
        with whole_file(path) as temporary:
            write_entries(temporary, entries, {**(about or {}), **conventions(network)})
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot write the checkpoint {path}: {first_line(error)}") from error


def read_checkpoint(path: str | Path, checksum_required: bool = False) -> Checkpoint:
    """Read a checkpoint file and check it against its checksum, which every file of this project has.

    UserError: the file is missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    entries = read_entries(path, checksum_required)
    about = take_about(entries, path)
    state = {n[len(_OPTIMIZER) :]: entries.pop(n) for n in [n for n in entries if n.startswith(_OPTIMIZER)]}
    ranks = entries.pop(RANKS).asnumpy() if RANKS in entries else None
    return Checkpoint(path, entries, state, about, ranks)


def other_classes(checkpoint: Checkpoint, class_names: Sequence[str]) -> str:
    """What the classes that a checkpoint was trained on and these differ in, in words; empty if nothing is known.

    Class i of the one must be class i of the other: the order counts, too.
    """
    trained_on, present = checkpoint.about.get("class_names"), list(class_names)
    if not trained_on or trained_on == present:
        return ""
    unknown = [name for name in present if name not in trained_on]
    if unknown:
        return f"{unknown[0]!r} is not among the {len(trained_on)} classes it was trained on"
    if len(trained_on) != len(present):
        return f"it was trained on {len(trained_on)} classes, the data has {len(present)}"
    return "it was trained on the same classes in another order"


def load_network(network: nn.Cell, checkpoint: Checkpoint, architecture: Mapping[str, Any] | None = None) -> None:
    """Load a checkpoint into a network, strictly; UserError: one line with everything that differs.

    ``architecture`` is what the configuration says of the network; contradictions are named by key.
    """
    refuse_contradictions(checkpoint, architecture or {})
    try:
        load_into(network, checkpoint.network, about=checkpoint.about)
    except UserError as error:
        raise UserError(f"{checkpoint.path} does not fit the network: {error}") from error


def refuse_contradictions(checkpoint: Checkpoint, architecture: Mapping[str, Any]) -> None:
    """Raise UserError, one line with every key that differs, unless checkpoint and configuration agree."""
    saved = checkpoint.about.get("architecture", {})
    differing = [
        f"{key} is {saved[key]!r} in the checkpoint and {value!r} in the configuration"
        for key, value in architecture.items()
        if key in saved and saved[key] != value
    ]
    if differing:
        raise UserError(f"{checkpoint.path} does not fit the configuration: {'; '.join(differing)}")


def load_optimizer(optimizer: nn.Optimizer, network: nn.Cell, checkpoint: Checkpoint) -> None:
    """Restore the optimiser's state from a checkpoint; learning rates are the configuration's, not the checkpoint's.

    UserError: the checkpoint has none, or that of another optimiser.
    """
    if not checkpoint.optimizer:
        raise UserError(f"{checkpoint.path} holds no optimiser state: it can be pre_trained, not resumed from")
    own = optimizer_state(optimizer, network)
    differing = sorted(own.keys() ^ checkpoint.optimizer.keys())
    differing += [n for n in own.keys() & checkpoint.optimizer.keys() if own[n].shape != checkpoint.optimizer[n].shape]
    if differing:
        averages = all(name.startswith(_AVERAGE) for name in differing)
        what = "was not saved with the same ema_decay" if averages else "holds the state of another optimiser"
        raise UserError(f"{checkpoint.path} {what}: {len(differing)} entries differ, {differing[0]} for one")
    for name, parameter in own.items():
        parameter.set_data(ms.Tensor(checkpoint.optimizer[name].asnumpy()))


def optimizer_state(optimizer: nn.Optimizer, network: nn.Cell) -> dict[str, ms.Parameter]:
    """What an optimiser remembers between steps (momentum, step count), without weights and settings."""
    weights = {id(p) for p in network.get_parameters()}
    settings = re.compile(r"momentum|learning_rate(_group_\d+)?")
    return {p.name: p for p in optimizer.get_parameters() if id(p) not in weights and not settings.fullmatch(p.name)}
