"""Where the messages of a training go: standard output and, once there is a run folder, ``train.log``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from covpool.runtime.files import open_regular


class _Output(logging.Handler):
    """An output that may fail while a training runs: it says so once, and the training goes on without it."""

    def __init__(self, form: str, title: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(form))
        self.title, self._failed = title, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
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
        """Write a line or raise OSError or ValueError."""
        raise NotImplementedError


class _Console(_Output):
    """Writes lines above a progress bar instead of through it."""

    def write(self, line: str) -> None:
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
    """Send the project's messages to standard output and to the log file that is given; other ranks send none.

    Errors still end the process with a line on standard error, whatever the rank.
    """
    package = logging.getLogger("covpool")
    file = LogFile()
    handlers: list[logging.Handler] = (
        [_Console("%(message)s", "standard output"), file] if is_main else [logging.NullHandler()]
    )
    before = (package.handlers[:], package.level, package.propagate)
    package.handlers, package.propagate = handlers, False
    package.setLevel(logging.INFO)
    try:
        yield file
    finally:
        for handler in handlers:
            handler.close()
        package.handlers, package.propagate = before[0], before[2]
        package.setLevel(before[1])


def shows_bar(progress: str) -> bool:
    """Whether progress is shown as a bar: 'bar', or 'auto' on a terminal."""
    return progress == "bar" or (progress == "auto" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
