"""The records of a run as event files for TensorBoard."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from covpool.errors import UserError


def check_installed() -> None:
    """See that event files can be written, before a training begins.

    Raises:
        UserError: tensorboardX is missing.
    """
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"tensorboard=True needs a package: pip install tensorboardX ({error})", 2) from error


class Events:
    """A new event file. Each record is on the disk when :meth:`add` returns, without a thread that could lag or hang.

    Args:
        folder: Made if needed. TensorBoard reads all files there as one run.
        first_step: Of this run, counted from 1. What earlier files say of it and of later steps is void.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, kind: str, values: dict[str, Any]) -> None:
        """Add the numbers of a record as ``kind/name`` at its ``step``.

        Raises:
            OSError: The file cannot be written.
        """
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")}
        found = [Summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in numbers.items()]
        self._write(step=values["step"], summary=Summary(value=found))

    def _write(self, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **content))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
