"""The records of a run, ``metrics.jsonl``: one JSON object a line, with its kind, epoch and step."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Optional

from covpool.runtime.files import os_errors_as, read_bytes

logger = logging.getLogger(__name__)


def read_records(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """The records of a kind ('step', 'epoch', or 'evaluation' for one that was NaN) or all; none without the file.

    Damaged lines, such as a last one that a kill cut short, are left out with a warning.
    """
    with os_errors_as(f"cannot read {path}"):
        lines = read_bytes(path).splitlines() if os.path.lexists(path) else []
    found = [record for record in map(_record, lines) if record is not None]
    if len(found) < len(lines):
        count = len(lines) - len(found)
        logger.warning("%s: %d damaged line%s left out", path, count, "" if count == 1 else "s")
    return [record for record in found if kind in ("", record["kind"])]


def _record(line: bytes) -> Optional[dict[str, Any]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and all(isinstance(record.get(key), int) for key in ("epoch", "step"))
    return record if whole and isinstance(record.get("kind"), str) else None
