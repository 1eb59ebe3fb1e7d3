"""The run folders of a study: which are done, and what they hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from covpool.config import Config
from covpool.errors import UserError

# What does not change a result: where it is written, how it is shown, and how many threads read images.
_INCIDENTAL = ("output_path", "resume_ckpt", "progress", "debug", "num_workers", "log_interval", "result_path")
FAILURE = "failure.txt"


@dataclass(frozen=True)
class State:
    """What there is of a run.

    Attributes:
        epochs: Epoch records, in order.
        wanted: Epochs that the configuration asks for.
        failure: Why the last attempt failed; empty if it did not.
    """

    epochs: list[dict[str, Any]]
    wanted: int
    failure: str

    @property
    def done(self) -> bool:
        """Whether every epoch is there."""
        return len(self.epochs) >= self.wanted


def state_of(folder: Path, config: Config) -> State:
    """What a run folder holds of a run with this configuration.

    Raises:
        UserError: The folder holds a run with other settings.
    """
    if (folder / "config.yaml").is_file():
        held = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        for key, value in config.to_dict().items():
            if key not in _INCIDENTAL and key in held and held[key] != value:
                raise UserError(
                    f"{folder} holds a run with {key} = {held[key]}, the study asks for {value}: "
                    "give another --output, or remove that folder"
                )
    failure = folder / FAILURE
    return State(
        read_epochs(folder),
        config.epoch_size,
        failure.read_text(encoding="utf-8").strip() if failure.is_file() else "",
    )


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Epoch records of a run folder; none where there is no run yet. A line that is being written is passed over."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["kind"] == "epoch":
            found[record["epoch"]] = record
    return [found[epoch] for epoch in sorted(found)]
