"""Files that are either whole or not there, and files of users that are safe to read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from covpool.errors import UserError

_WORKSPACE = re.compile(r"\..*\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # what mkdtemp makes of the names below
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NAME_LENGTH = 50  # characters of a target's name that its workspace repeats; a name may have 255 bytes


@contextmanager
def os_errors_as(what: str) -> Iterator[None]:
    """Turn an OSError within the block into a UserError: ``what`` (such as "cannot read FILE"), a colon, the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}") from error


@contextmanager
def whole_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends well, sync the file and rename it to ``path``.

    The temporary file keeps the ending of ``path`` and lies in a new folder beside it that nobody else may enter, so
    no link can be waiting there, and whatever else a writer puts there vanishes. The file gets the permissions of any
    new file, whatever its writer chose (MindSpore makes its files readable by their owner alone). On an error, such as
    a device, FIFO or socket in its place, what is there stays as it was. A file that is not ``durable`` may be empty
    after a power failure: nobody waits, for milliseconds, until it is on the disk.
    """
    target = Path(path)
    opened = target.is_symlink() and str(target.readlink()).startswith("/proc/")  # /dev/stdout
    if opened or (target.exists() and not target.is_file() and not target.is_dir()):  # root could replace /dev/null
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with workspace(target) as folder:
            temporary = folder / f"new{target.suffix}"
            mode = mode_of_new_file(temporary)
            yield temporary
            temporary.chmod(mode)
            if durable:
                _sync(temporary)
            temporary.replace(target)
            if durable:
                _sync(target.parent)
    except UnicodeEncodeError as error:
        raise UserError(f"cannot write {str(target)!r}: its name or content is not valid UTF-8") from error


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``output`` when the block ends well and vanishes when it does not.

    What a killed process left there is removed first. A UserError says that the output exists or cannot be written.
    """
    with os_errors_as(f"cannot write {output}"):
        if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output} exists already: choose another name or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output.parent)
        with workspace(output) as folder:
            partial = folder / "new"
            partial.mkdir()
            yield partial
            os.sync()  # one call for all files
            partial.replace(output)
            _sync(output.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all; a path that is no UTF-8 is escaped and reads back.

    NaN and infinities become null: other parsers reject them.
    """
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def check_writable(path: Path) -> None:
    """See whether a file can be written, without touching anything: what a full disk or quota does shows later.

    An OSError says that it is a folder, its name too long, or the nearest folder that exists cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder", os.fspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{folder} cannot be written", os.fspath(path))


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; what a living one is writing stays."""
    for entry in list(os.scandir(folder)):
        if not _WORKSPACE.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            handle = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or nobody can tell
            continue
        else:
            shutil.rmtree(entry.path, ignore_errors=True)
        finally:
            os.close(handle)


def user_cache() -> Path:
    """The folder for what this project keeps of a user on this machine; UserError where there is no home."""
    try:
        return (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindspore-gcp").absolute()
    except RuntimeError as error:
        raise UserError("there is no home folder to keep what is compiled in: set XDG_CACHE_HOME", 2) from error


def own_folder(folder: Path) -> Path:
    """Make the folder, or close it to others; what another user owns cannot be trusted with code."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise UserError(f"{folder} belongs to another user: set XDG_CACHE_HOME to a folder of your own", 2)
    if found.st_mode & OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
    return folder


def open_regular(path: str | os.PathLike[str], mode: str = "rb") -> IO[Any]:
    """Open a regular file to read (``r``, ``rb``) or to append (``a``, ``ab``); text is UTF-8.

    Anything else is an OSError: opening a FIFO would wait for somebody at its other end.
    """
    access = os.O_WRONLY | os.O_APPEND | os.O_CREAT if mode[0] == "a" else os.O_RDONLY
    irregular = OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    try:
        handle = os.open(path, access | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads, a socket
            raise irregular from error
        raise
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8")
    os.close(handle)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise irregular


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file, see :func:`open_regular`."""
    with open_regular(path) as file:
        return bytes(file.read())


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a regular file of UTF-8 text, see :func:`open_regular`."""
    with open_regular(path, "r") as file:
        return str(file.read())


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for the owner alone, of a name that cannot be guessed; removed with what is in it.

    It is locked as long as it is in use: the lock of a process that dies is released, whatever killed it.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:_NAME_LENGTH]}.", suffix=".tmp", dir=target.parent))
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems lock no folders; then leftovers stay
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():  # else another process took it for a leftover before it was locked
            break
        os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def mode_of_new_file(path: Path) -> int:
    """The permissions that a new file gets there, from the umask and the folder; ``path`` is free again."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)
