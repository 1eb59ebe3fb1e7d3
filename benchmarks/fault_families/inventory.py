"""What lies in folders, found without the code under test."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.fault_families.wire import body, sealed

WHOLE = "whole checkpoint "


def inventory(root: Path) -> dict[str, str]:
    """Everything below a folder: path -> kind, and digest of its content."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[os.path.relpath(path, root)] = _what(path)
    return found


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """Records of epochs in a run folder, read without the project's help; lines that are no JSON are passed over."""
    found = []
    for line in text_of(run / "metrics.jsonl").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("kind") == "epoch":
                found.append(record)
    return found


def text_of(path: Path) -> str:
    """A file as text; empty if there is none."""
    return path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""


def _what(path: Path) -> str:
    """Kind of a file, and the digest of its content."""
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            return f"link to {path.readlink()}"
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes() if found.st_size < 2**28 else str(found.st_size).encode()
            whole = path.suffix == ".ckpt" and content == sealed(body(content))
            return (WHOLE if whole else "") + hashlib.sha256(content).hexdigest()
        return stat.filemode(found.st_mode)[0]
    except OSError as error:
        return type(error).__name__
