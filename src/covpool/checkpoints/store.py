"""The checkpoints of one run: the newest few, the best one, and an index that names them."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import nn

from covpool.checkpoints.format import Checkpoint, read_checkpoint, save_checkpoint
from covpool.errors import UserError
from covpool.runtime.files import os_errors_as, read_text, remove_leftovers, whole_file, write_json

logger = logging.getLogger(__name__)

INDEX = "index.json"
BEST = "best.ckpt"
_NAME = re.compile(r"epoch_(\d{4,})(?:_step_(\d{8,}))?\.ckpt")

Entry = dict[str, Any]


def read_index(folder: Path) -> tuple[list[Entry], Optional[Entry], bool]:
    """The newest checkpoints that the index of a folder names, the oldest first; the best one; whether it was damaged.

    One that is damaged or missing is made anew from the whole checkpoints there. Nothing is written: every rank reads,
    and rank 0 alone writes, when it saves. UserError: it may not be read.
    """
    path = folder / INDEX
    damaged = path.exists() and not path.is_file()
    try:
        if not damaged:
            index = json.loads(read_text(path))
            best = index["best"]
            return [checked(entry) for entry in index["checkpoints"]], None if best is None else checked(best), False
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError):
        damaged = True
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    found = {}
    for file in folder.glob("*.ckpt"):
        try:
            if file.name == BEST or place_of(file.name):
                found[file.name] = entry_of(file)
        except UserError as error:
            logger.warning("%s; left out", error)
    best = found.pop(BEST, None)
    if damaged or found or best:
        count = f"{len(found)} whole checkpoint{'' if len(found) == 1 else 's'}"
        problem = "is damaged" if damaged else "is missing"
        logger.warning("%s %s: made anew from %s%s", path, problem, count, " and the best one" if best else "")
    return sorted(found.values(), key=lambda entry: (entry["epoch"], entry["step"])), best, damaged


def entry_of(path: Path) -> Entry:
    """What the index says of a checkpoint; UserError if it is damaged, or no checkpoint of a training."""
    about = read_checkpoint(path, checksum_required=True).about
    try:
        facts = {key: about[key] for key in ("epoch", "step", "metric")}
        return checked({"file": path.name, **facts, "sha256": sha256(path)})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no checkpoint of a training") from error


def checked(entry: Any) -> Entry:
    """An entry of the index; ValueError, KeyError or TypeError if it is none."""
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


class CheckpointStore:
    """Folder of checkpoints with ``index.json``: file, epoch, step, metric and checksum of each.

    The index is written after the files that it names, and files are removed after the index that drops them: it
    never names what is not there. An index that is damaged or missing is made anew from the whole checkpoints in the
    folder, with one warning; a damaged one is kept under another name.

    ``keep_max`` are kept besides the best one. With ``empty`` it begins without any checkpoint, because those of an
    earlier run will have been moved away.
    """

    def __init__(self, folder: Path, keep_max: int, empty: bool = False) -> None:
        self.folder = folder
        self.keep_max = keep_max
        self._index_path = folder / INDEX
        self._tidy = False
        self._entries, self._best, self._damaged = ([], None, False) if empty else read_index(folder)

    @property
    def best_metric(self) -> float | None:
        """Metric of the best checkpoint so far, None before there is one."""
        return None if self._best is None else float(self._best["metric"])

    def save(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        epoch: int,
        step: int,
        metric: float | None,
        about: Mapping[str, Any],
        ranks: np.ndarray | None = None,
    ) -> Path:
        """Save the state after ``step`` steps, ``epoch`` whole epochs; drop the oldest beyond ``keep_max``.

        ``ranks``: see ``save_checkpoint``. UserError: it cannot be written; all earlier checkpoints stay.
        """
        within = "" if ranks is None else f"_step_{step:08d}"
        path = self.folder / f"epoch_{epoch:04d}{within}.ckpt"
        facts = {"epoch": epoch, "step": step, "metric": metric}
        self.tidy()
        save_checkpoint(path, network, optimizer, {**about, **facts}, ranks)
        entry = {"file": path.name, **facts, "sha256": sha256(path)}
        kept = [*(e for e in self._entries if e["file"] != path.name), entry]
        dropped, self._entries = kept[: -self.keep_max], kept[-self.keep_max :]
        self._write_index()
        with _naming(self.folder):
            for old in dropped:
                (self.folder / old["file"]).unlink(missing_ok=True)
        return path

    def save_best(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        epoch: int,
        step: int,
        metric: float,
        about: Mapping[str, Any],
    ) -> bool:
        """Save as the best checkpoint if ``metric`` is higher than the best so far; whether it was."""
        if self.best_metric is not None and metric <= self.best_metric:
            return False
        path = self.folder / BEST
        facts = {"epoch": epoch, "step": step, "metric": metric}
        latest = self._entries[-1] if self._entries else None
        if latest is not None and (latest["epoch"], latest["step"]) == (epoch, step):
            self._copy_as_best(latest)
        else:
            save_checkpoint(path, network, optimizer, {**about, **facts})
        self._best = {"file": BEST, **facts, "sha256": sha256(path)}
        self._write_index()
        return True

    def _copy_as_best(self, entry: Mapping[str, Any]) -> None:
        path = self.folder / BEST
        with os_errors_as(f"cannot write the checkpoint {path}"), whole_file(path) as temporary:
            shutil.copyfile(self.folder / entry["file"], temporary)

    def newest_valid(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning. None if there is none.

        The best one, which may be much older, comes last.
        """
        for entry in (*reversed(self._entries), *self._best_of()):
            path = self.folder / entry["file"]
            try:
                # Not compared with the index: a kill between the two leaves a newer whole file than it speaks of.
                return read_checkpoint(path, checksum_required=True)
            except UserError as error:
                logger.warning("%s; going back to the one before", error)
        return None

    def _best_of(self) -> tuple[Entry, ...]:
        return (self._best,) if self._best else ()

    def clear(self) -> None:
        """Name no checkpoint any more: those of the folder have been moved away."""
        self._entries, self._best, self._damaged = [], None, False

    def holds(self, path: Path) -> bool:
        """Whether this is a checkpoint of the folder, or a copy of one that the index names."""
        if path.resolve().parent == self.folder.resolve():
            return True
        digest = sha256(path)
        return any(entry["sha256"] == digest for entry in (*self._entries, *self._best_of()))

    def beyond(self, place: tuple[int, int]) -> list[str]:
        """Names of the checkpoints after a place, see ``place_of``, the best one included."""
        names = [path.name for path in self.folder.glob("*.ckpt") if (place_of(path.name) or (0, 0)) > place]
        return names + ([BEST] if self._best and (self._best["epoch"], 0) > place else [])

    def move(self, names: Collection[str], aside: Path) -> None:
        """Move checkpoints, and a copy of the index, to another folder; what is left is indexed again."""
        with _naming(self.folder):
            aside.mkdir(parents=True, exist_ok=True)
            if self._index_path.is_file():
                shutil.copyfile(self._index_path, aside / self._index_path.name)
            self._entries = [entry for entry in self._entries if entry["file"] not in names]
            if BEST in names:
                self._best = None
            self._write_index()
            for name in names:
                if (self.folder / name).exists():
                    (self.folder / name).replace(aside / name)
        if BEST in names:
            self._choose_best()

    def check_best(self) -> None:
        """Take the best checkpoint that is left where the one that the index names is damaged or missing."""
        before, path = self._best, self.folder / BEST
        if before is None:
            return
        try:
            self._best = entry_of(path)  # not compared: a kill leaves a newer best one than the index speaks of
        except UserError as error:
            logger.warning("%s", error)
            self._best = None
            self._choose_best()
        else:
            if self._best != before or self._damaged:
                self._write_index()

    def _choose_best(self) -> None:
        """Copy the whole checkpoint with the highest metric; with none the next evaluation is the best."""
        rated = [entry for entry in self._entries if entry["metric"] is not None]
        for entry in sorted(rated, key=lambda entry: float(entry["metric"]), reverse=True):
            try:
                read_checkpoint(self.folder / entry["file"], checksum_required=True)
            except UserError as error:
                logger.warning("%s; left out", error)
                continue
            self._copy_as_best(entry)
            self._best = {**entry, "file": BEST, "sha256": sha256(self.folder / BEST)}
            logger.info("%s is the best checkpoint now: top-1 %.4f", entry["file"], entry["metric"])
            break
        else:
            logger.info("no evaluated checkpoint is left: the next evaluation counts as the best")
        self._write_index()

    def tidy(self) -> None:
        """Remove, once, what a killed run left: files half written, and old ones that its index no longer names.

        UserError: a file cannot be removed, or something that is no file has the name of a checkpoint.
        """
        if self._tidy or not self.folder.is_dir():
            return
        self._tidy = True
        named = {entry["file"]: place for entry in self._entries if (place := place_of(entry["file"]))}
        with _naming(self.folder):
            remove_leftovers(self.folder)
            for path in list(self.folder.iterdir()):
                place = place_of(path.name)
                if (place or path.name == BEST) and not path.is_file():
                    raise UserError(f"{path} is no file, but has the name of a checkpoint: move it away")
                if place and named and path.name not in named and place < min(named.values()):
                    path.unlink()

    def _write_index(self) -> None:
        last = self._entries[-1]["file"] if self._entries else None
        with os_errors_as(f"cannot write {self._index_path}"):
            if self._damaged:
                self._index_path.replace(self._aside())
                self._damaged = False
            write_json(self._index_path, {"last": last, "best": self._best, "checkpoints": self._entries})

    def _aside(self) -> Path:
        """A free name for a damaged index."""
        names = (f"index.damaged-{number}.json" for number in itertools.count(1))
        return next(path for path in map(self.folder.joinpath, names) if not path.exists())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into a line that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error.strerror or error}") from error
