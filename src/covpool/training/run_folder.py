"""The run folder: everything that a training writes, and nothing outside it."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from covpool.config import Config
from covpool.errors import UserError
from covpool.metrics import read_records
from covpool.runtime.environment import environment_report
from covpool.runtime.files import open_regular, os_errors_as, write_json, write_text
from covpool.training.logs import Events

logger = logging.getLogger(__name__)

_RESULTS = ("checkpoints", "metrics.jsonl", "curves.png")
_DESCRIPTIONS = ("config.yaml", "environment.json", "train.log", "bad_images_train.json", "bad_images_val.json")
_FILES = (*_RESULTS, *_DESCRIPTIONS, "evaluation", "tensorboard")


class RunFolder:
    """Paths of a run (``output_path``), its metrics file and its lock. What cannot be written is a UserError."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.evaluation = self.path / "evaluation"
        self.log = self.path / "train.log"
        self._lock_path = self.path / ".lock"
        self._lock: int | None = None
        self._events: Events | None = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other trainings out of this folder until the block ends, from now on if there is a folder already."""
        try:
            if self.path.is_dir():
                self.lock()
            yield
        finally:
            if self._events is not None:
                self._events.close()
            if self._lock is not None:
                with suppress(OSError):  # a lock file that nobody holds is no obstacle
                    self._lock_path.unlink()
                os.close(self._lock)
                self._lock = None

    def lock(self) -> None:
        """Make the folder and lock it; a UserError names who holds the lock.

        The system releases the lock when this process ends, however that happens.
        """
        while self._lock is None:
            with self._writing():
                self.path.mkdir(parents=True, exist_ok=True)
                handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
                os.close(handle)
                raise UserError(
                    f"{self.path} is in use by another training ({holder or 'which has just begun'}): wait for its "
                    "end, or give another --output_path"
                ) from None
            except OSError as error:  # not every network file system has locks
                logger.warning("%s cannot be locked (%s): let no other training use it", self.path, error.strerror)
            if self._lock_path.exists() and os.path.samestat(os.fstat(handle), self._lock_path.stat()):
                self._lock = handle
            else:  # its last holder removed it between opening and locking
                os.close(handle)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def holds_results(self) -> bool:
        """Whether there are checkpoints or metrics of an earlier run."""
        return any((self.path / name).exists() for name in _RESULTS)

    def displace(self) -> Path | None:
        """Move everything of an earlier run to a new subfolder, and return that; None if there was nothing."""
        present = [name for name in _FILES if os.path.lexists(self.path / name)]
        if not present:
            return None
        aside = self.new_aside()
        with self._writing():
            for name in present:
                (self.path / name).rename(aside / name)
        return aside

    def new_aside(self, copied: Sequence[Path] = ()) -> Path:
        """Make ``earlier-1``, or with the next number that is free, with copies of these files."""
        number = 1
        while (aside := self.path / f"earlier-{number}").exists():
            number += 1
        with self._writing():
            aside.mkdir()
            for path in copied:
                if path.is_file():
                    shutil.copyfile(path, aside / path.name)
        return aside

    def latest_aside(self) -> Path | None:
        """The newest run that was moved aside and has checkpoints."""
        found = [p.parent for p in self.path.glob("earlier-*/checkpoints") if any(p.glob("*.ckpt"))]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def describe(self, config: Config, world_size: int, bad_images: dict[str, str]) -> None:
        """Write ``config.yaml``, ``environment.json`` and what is remembered of each split's bad images."""
        with self._writing():
            config.dump(self.path / "config.yaml")
            write_json(self.path / "environment.json", environment_report(config.device_target, world_size))
            for split, text in bad_images.items():
                write_text(self.bad_images(split), text)

    def _writing(self) -> AbstractContextManager[None]:
        return os_errors_as(f"cannot write to output_path {self.path}")

    def open_events(self, first_step: int) -> None:
        """Write records as event files of TensorBoard, too, from this step of the training on."""
        with self._writing():
            self._events = Events(self.path / "tensorboard", first_step)

    def bad_images(self, split: str) -> Path:
        """Where it is kept which images of a split are left out (``bad_images: skip``)."""
        return self.path / f"bad_images_{split}.json"

    def record(self, kind: str, **values: Any) -> None:
        """Append one object to ``metrics.jsonl``; a number that is NaN or infinite becomes null."""
        with os_errors_as(f"cannot write {self.metrics}"), open_regular(self.metrics, "a") as file:
            file.write(_line({"kind": kind, **values}))
        if self._events is not None:
            with self._writing():
                self._events.add(kind, values)

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """The objects of a kind, or all, see :func:`covpool.metrics.read_records`."""
        return read_records(self.metrics, kind)

    def forget_after(self, epoch: int, step: int) -> None:
        """Drop the records that a resumed run makes again: after whole epochs and, in the next one, after a step.

        Whole epochs stay whatever the numbers of their steps: an epoch may have been shorter then.
        """
        if not os.path.lexists(self.metrics):
            return
        kept = [
            record
            for record in self.records()
            if record["epoch"] <= epoch
            or (record["kind"] == "step" and record["epoch"] == epoch + 1 and record["step"] <= step)
        ]
        with self._writing():
            write_text(self.metrics, "".join(map(_line, kept)))


def _line(record: dict[str, Any]) -> str:
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"
