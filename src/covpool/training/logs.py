"""Where a training tells how it goes: standard output, ``train.log`` and event files of TensorBoard."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from covpool.errors import UserError
from covpool.runtime.files import open_regular


class _Output(logging.Handler):
    """An output that may fail while a training runs: it says so once, and the training goes on without it."""

    def __init__(self, form: str, title: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(form))
        self.title, self._failed = title, False

    def emit(self, record: logging.LogRecord) -> None:
        self.put(self.format(record))

    def put(self, line: str) -> None:
        """Write a line unless that has failed before."""
        if self._failed:
            return
        try:
            self.write(line)
        except (OSError, ValueError) as error:  # a full disk, a closed pipe; a stream closed here is a ValueError
            self._failed = True
            reason = getattr(error, "strerror", None) or error
            if sys.stderr is not None:
                sys.stderr.write(f"warning: cannot write to {self.title}: {reason}; no more messages go there\n")

    def write(self, line: str) -> None:
        """Write a line to standard output, above a progress bar instead of through it."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class LogFile(_Output):
    """Keeps messages until there is a file for them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "the log")
        self._waiting: list[str] = []
        self._path: Optional[Path] = None

    def open(self, path: Path) -> None:
        """Append to ``path`` from now on, beginning with what was kept."""
        self._path, self.title = path, str(path)
        lines, self._waiting = self._waiting, []
        for line in lines:
            self.put(line)

    def write(self, line: str) -> None:
        if self._path is None:
            self._waiting.append(line)
            return
        with open_regular(self._path, "ab") as file:  # lines are few: nothing is left in a buffer of a full disk
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")


@contextmanager
def logging_to_run(is_main: bool) -> Iterator[LogFile]:
    """Send the project's messages to standard output and to the log file that is given; other ranks send none."""
    package, file = logging.getLogger("covpool"), LogFile()
    before = (package.handlers[:], package.level, package.propagate)
    package.handlers = [_Output("%(message)s", "standard output"), file] if is_main else [logging.NullHandler()]
    package.propagate = False
    package.setLevel(logging.INFO)
    try:
        yield file
    finally:
        package.handlers, package.propagate = before[0], before[2]
        package.setLevel(before[1])


class Events:
    """A new event file of TensorBoard. Each record is on the disk when :meth:`add` returns: no thread lags or hangs.

    Args:
        folder: Made if needed. TensorBoard reads all files there as one run.
        first_step: Of this run, counted from 1. What earlier files say of it and of later steps is void.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        self.close = self._writer.close
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    @staticmethod
    def check_installed() -> None:
        """See that event files can be written, before a training begins; a UserError says what is missing."""
        try:
            import tensorboardX  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(f"tensorboard=True needs a package: pip install tensorboardX ({error})", 2) from error

    def add(self, kind: str, values: dict[str, Any]) -> None:
        """Add the numbers of a record as ``kind/name`` at its ``step``."""
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")}
        found = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in numbers.items()]
        self._write(step=values["step"], summary=Summary(value=found))

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))
        self._writer.flush()
