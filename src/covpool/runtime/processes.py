"""Child processes: they import nothing from the working folder and end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # watchers are small and start quickly
    from concurrent.futures import ProcessPoolExecutor

_HOME = Path(__file__).resolve().parents[2]  # holds the package, in a checkout or installed
_SET_DEATH_SIGNAL = 1  # of prctl
_WATCHER = "import sys; sys.path.append(sys.argv[1]); from covpool.runtime.{} import main; main(sys.argv[2:])"


def python_command(code: str, *arguments: object) -> list[str]:
    """The command that runs ``code`` in another Python, which finds modules where this one does.

    The working folder is taken off its path: it holds data, but `python -c` and `python -m` import from it first.
    """
    working = os.path.realpath(Path.cwd())
    path = [entry for entry in sys.path if entry and os.path.realpath(entry) != working]
    if str(_HOME) not in path:
        path.append(str(_HOME))
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}", *map(str, arguments)]


def start_watcher_process(
    module: str, *arguments: object, descriptors: Collection[int] = (), variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run ``main`` of a module of this room ('watch') in a small process that ends with this one.

    It has the standard library, the arguments as texts, open files and, unseen by other users, environment variables.
    """
    command = [sys.executable, "-I", "-S", "-c", _WATCHER.format(module), str(_HOME), *map(str, arguments)]
    env = {**os.environ, **(variables or {})}
    return start_apart(command, env=env, pass_fds=tuple(descriptors), stdout=subprocess.DEVNULL)


def start_apart(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that reads nothing and ends with this one, but not by a Ctrl-C in the terminal."""
    ends = ends_with_this_process()
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=ends, **options)


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with this one, also if it is killed while they start.

    They are fresh ones: a fork would copy the locks that threads of this one (of a progress bar) may hold. From Python
    3.11 on they do not import from the working folder; an earlier one cannot be told.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    before = os.environ.get("PYTHONSAFEPATH", "")  # empty means the same as unset
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, ends_with_this_process()) as pool:
            yield pool
    finally:
        os.environ["PYTHONSAFEPATH"] = before


def ends_with_this_process() -> partial[None]:
    """What a child of this process calls first (``preexec_fn``) to end with it."""
    return partial(end_with_parent, os.getpid())


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends; at once if it has ended already."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Take :func:`end_with_parent` back."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, 0)


def process_stat(process: int) -> list[str]:
    """What the kernel says of a process from its state on; ['X', '0'] if there is none."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - quick to load
            return file.read().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def process_state(process: int) -> str:
    """The kernel's letter for the state of a process: T stopped, Z dead but not waited for, X gone."""
    return process_stat(process)[0]
