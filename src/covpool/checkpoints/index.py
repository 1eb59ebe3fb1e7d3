"""The index of a folder of checkpoints: file, epoch, step, metric and checksum of each."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple, Optional

from covpool.checkpoints.format import read_checkpoint
from covpool.errors import UserError
from covpool.runtime.files import read_text

logger = logging.getLogger(__name__)

INDEX = "index.json"
BEST = "best.ckpt"
_NAME = re.compile(r"epoch_(\d{4,})(?:_step_(\d{8,}))?\.ckpt")

Entry = dict[str, Any]


class Index(NamedTuple):
    """What an index names.

    Attributes:
        entries: The newest checkpoints, the oldest of them first.
        best: The best one, if any.
        damaged: Whether the file was damaged, so that these are the whole checkpoints that were found instead.
    """

    entries: list[Entry]
    best: Optional[Entry]
    damaged: bool = False


def read_index(folder: Path) -> Index:
    """Read the index of a folder; one that is damaged or missing is made anew from the whole checkpoints there.

    Nothing is written: every rank reads, and rank 0 alone writes, when it saves.

    Raises:
        UserError: There is an index that may not be read.
    """
    path = folder / INDEX
    damaged = path.exists() and not path.is_file()
    try:
        if not damaged:
            index = json.loads(read_text(path))
            best = index["best"]
            return Index([checked(entry) for entry in index["checkpoints"]], None if best is None else checked(best))
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError):
        damaged = True
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    found = {file.name: entry for file in folder.glob("*.ckpt") if (entry := _found(file))}
    best = found.pop(BEST, None)
    if damaged or found or best:
        count = f"{len(found)} whole checkpoint{'' if len(found) == 1 else 's'}"
        problem = "is damaged" if damaged else "is missing"
        logger.warning("%s %s: made anew from %s%s", path, problem, count, " and the best one" if best else "")
    return Index(sorted(found.values(), key=lambda entry: (entry["epoch"], entry["step"])), best, damaged)


def _found(path: Path) -> Optional[Entry]:
    """The entry of a file, if it is a whole checkpoint of a training."""
    if path.name != BEST and not place_of(path.name):
        return None
    try:
        return entry_of(path)
    except UserError as error:
        logger.warning("%s; left out", error)
        return None


def entry_of(path: Path) -> Entry:
    """What the index says of a checkpoint.

    Raises:
        UserError: It is damaged, or no checkpoint of a training.
    """
    about = read_checkpoint(path, checksum_required=True).about
    try:
        facts = {key: about[key] for key in ("epoch", "step", "metric")}
        return checked({"file": path.name, **facts, "sha256": sha256(path)})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no checkpoint of a training") from error


def checked(entry: Any) -> Entry:
    """An entry of the index.

    Raises:
        ValueError, KeyError, TypeError: It is none.
    """
    name, metric = entry["file"], entry["metric"]
    if not (name == BEST or place_of(name)) or not isinstance(entry["sha256"], str):
        raise ValueError(name)
    if metric is not None and not 0 <= metric <= 1:  # an accuracy; nothing would ever be better than infinity
        raise ValueError(metric)
    if not all(isinstance(entry[key], int) and entry[key] >= 0 for key in ("epoch", "step")):
        raise ValueError(name)
    return dict(entry)


def place_of(name: str) -> Optional[tuple[int, int]]:
    """Whole epochs, and the steps over all epochs where it is from within one, else 0; None for other names."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
