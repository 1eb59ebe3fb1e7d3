"""Files that are either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covpool.errors import UserError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; on success sync it and rename it to ``path``.

    The temporary name keeps the ending of ``path``. The file gets the permissions of any new file, whatever its
    writer chose (MindSpore makes its files readable by their owner alone). On an error it is removed and an earlier
    file stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        for left in target.parent.glob(f"{temporary.stem}*"):  # a writer's own, too
            left.unlink()


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``output`` when the block ends well and vanishes when it does not.

    Raises:
        UserError: The output exists and is no empty folder, or cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already: choose another name or remove it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UserError(f"cannot make a folder beside {output}: {error.strerror or error}") from error
    try:
        yield partial
        partial.chmod(0o755)
        partial.replace(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder; nobody else may be writing there."""
    for left in folder.glob(".*.tmp*"):
        left.unlink()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
