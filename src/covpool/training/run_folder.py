"""The run folder: everything that a training writes, and nothing outside it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from covpool.config import Config
from covpool.errors import UserError
from covpool.runtime.environment import environment_report
from covpool.runtime.files import write_json

logger = logging.getLogger(__name__)

_FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "curves.png",
    "train.log",
    "bad_images_train.json",
    "bad_images_val.json",
)


class RunFolder:
    """Paths of a run and its metrics file, one JSON object a line.

    Args:
        path: The folder (``output_path``).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.curves = self.path / "curves.png"
        self.log = self.path / "train.log"

    def bad_images(self, split: str) -> Path:
        """Where it is kept which images of a split are left out (``bad_images: skip``)."""
        return self.path / f"bad_images_{split}.json"

    def prepare(self, config: Config, world_size: int, resume: bool) -> str:
        """Make the folder and write ``config.yaml`` and ``environment.json``.

        An earlier run in the same folder is moved to a subfolder unless this one resumes it.

        Returns:
            What was done with an earlier run, in words; empty when there was none.

        Raises:
            UserError: If the folder cannot be written.
        """
        said = ""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            present = [name for name in _FILES if (self.path / name).exists()]
            if present and not resume:
                number = 1
                while (self.path / f"earlier-{number}").exists():
                    number += 1
                aside = self.path / f"earlier-{number}"
                aside.mkdir()
                for name in present:
                    (self.path / name).rename(aside / name)
                said = f"{self.path} held an earlier run, which is now in {aside}"
            config.dump(self.path / "config.yaml")
            write_json(self.path / "environment.json", environment_report(config.device_target, world_size))
        except OSError as error:
            raise UserError(f"cannot write to output_path {self.path}: {error.strerror or error}") from error
        return said

    def record(self, kind: str, **values: Any) -> None:
        """Append one object to ``metrics.jsonl``."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **values}) + "\n")

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind; a last line that a kill cut short is passed over."""
        if not self.metrics.is_file():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                logger.warning("%s: a damaged line is passed over", self.metrics)
                continue
            if entry["kind"] == kind:
                found.append(entry)
        return found

    def forget_after(self, step: int) -> None:
        """Drop records of steps after ``step``, which a resumed run makes again."""
        if not self.metrics.is_file():
            return
        kept = [e for k in ("step", "epoch") for e in self.records(k) if e["step"] <= step]
        kept.sort(key=lambda e: (e["step"], e["kind"] == "epoch"))
        text = "".join(json.dumps(e) + "\n" for e in kept)
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.metrics)


class _BarHandler(logging.Handler):
    """Writes lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Send the project's messages to standard output and to ``path``; with None to neither (ranks above 0).

    Errors still end the process with a line on standard error, whatever the rank.
    """
    package = logging.getLogger("covpool")
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if path is not None:
        handlers = [_BarHandler(), logging.FileHandler(path, encoding="utf-8")]
        handlers[0].setFormatter(logging.Formatter("%(message)s"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = (package.handlers[:], package.level, package.propagate)
    package.handlers, package.propagate = handlers, False
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            handler.close()
        package.handlers, package.propagate = before[0], before[2]
        package.setLevel(before[1])


def shows_bar(progress: str) -> bool:
    """Whether progress is shown as a bar: 'bar', or 'auto' on a terminal."""
    return progress == "bar" or (progress == "auto" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
