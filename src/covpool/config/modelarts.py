"""Folders in the object store of ModelArts, copied by its package `moxing` before and after a run.

On each node one process copies, the others wait for it: a file lock admits them one by one, and a mark beside the
copy tells them that their job (recognised by its launcher process) has it already.
"""

from __future__ import annotations

import fcntl
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covpool.config.schema import Config
from covpool.errors import ConfigError, UserError
from covpool.runtime.files import open_regular, read_text, write_text
from covpool.runtime.processes import process_stat

_DATA_PATH = "/cache/data"
_LOAD_PATH = "/cache/checkpoint_path"
_CHECKPOINT_KEYS = ("pre_trained", "resume_ckpt", "checkpoint_file_path")


@contextmanager
def synchronised(config: Config, rank: int = 0) -> Iterator[Config]:
    """Downloads before; rank 0 uploads after, also when the body fails: checkpoints of a broken run are kept."""
    local = download(config)
    try:
        yield local
    finally:
        if rank == 0:
            upload(local)


def download(config: Config) -> Config:
    """Copies `data_url` to `data_path` and `checkpoint_url` to `load_path`, once on each node.

    Every process of a job calls it and gets, when its node has the copies, the configuration with the local folders;
    relative checkpoint names are sought in `load_path`. Without `enable_modelarts` the configuration stays as it is.
    """
    if not config.enable_modelarts:
        return config
    mox, changes = _import_moxing(), {}
    # What the ranks of a job on this node share, and no other job: their launcher, for mpirun and msrun start them
    # directly, and when it started, in clock ticks since the start of the system.
    launcher = os.getppid() if config.run_distribute else os.getpid()
    job = f"{launcher} {process_stat(launcher)[19]}"
    if config.data_url:
        changes["data_path"] = config.data_path or _DATA_PATH
        _copy_once(mox, config.data_url, changes["data_path"], job)
    if config.checkpoint_url:
        changes["load_path"] = config.load_path or _LOAD_PATH
        _copy_once(mox, config.checkpoint_url, changes["load_path"], job)
        for key in _CHECKPOINT_KEYS:
            name = getattr(config, key)
            if name and name != "auto":
                changes[key] = str(Path(changes["load_path"]) / name)
    return config.replace(**changes)


def upload(config: Config) -> None:
    """Copies `output_path` to `train_url`; to be called by rank 0 alone, which writes that folder."""
    if config.enable_modelarts and config.train_url and Path(config.output_path).is_dir():
        _copy(_import_moxing(), config.output_path, config.train_url)


def _import_moxing() -> Any:
    try:
        return importlib.import_module("moxing")
    except ImportError as error:
        raise ConfigError(
            f"enable_modelarts = True: needs the package moxing, which ModelArts provides ({error}); "
            "elsewhere set enable_modelarts = False"
        ) from None


def _copy(mox: Any, source: str, target: str) -> None:
    try:
        mox.file.copy_parallel(source, target)
    except Exception as error:
        raise UserError(f"moxing: copy of {source} to {target} failed: {error}") from error


def _copy_once(mox: Any, source: str, target: str, job: str) -> None:
    folder = Path(target)
    mark = folder.with_name(f".{folder.name}.copied")
    content = f"{job}\n{source}\n"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_regular(folder.with_name(f".{folder.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or the process dies
            if not mark.is_file() or read_text(mark) != content:
                _copy(mox, source, target)
                write_text(mark, content)
    except OSError as error:
        raise UserError(f"{target}: cannot hold the copy of {source}: {error.strerror}") from error
