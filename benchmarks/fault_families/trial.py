"""One trial: a folder of its own, commands that run in it, and what is checked after each of them."""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Union

import psutil

from benchmarks.fault_families.inventory import WHOLE, inventory, text_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("train", "eval", "export")
_ERROR = re.compile(r"^(?:[\w./-]+(?: [\w-]+)?: )?error: \S.*$", re.MULTILINE)
_BACKTRACE = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|core dumped|terminate called")
_MOST_LINES = 20  # of standard error: what is longer hides the line that counts
_MOST_MEMORY = 3 * 2**20  # KiB; a training here takes 0.6 GiB
# Of <linux/prctl.h> and <linux/capability.h>.
_SUBREAPER, _KEEP_CAPABILITIES, _AMBIENT, _RAISE, _CAP_READ_SEARCH, _VERSION = 36, 8, 47, 2, 2, 0x20080522


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code (negative: killed by that signal; None: still there) and its words."""

    code: Optional[int]
    out: str
    err: str


@dataclass
class Command:
    """A running command in a session of its own."""

    pid: int
    words: Sequence[str]
    before: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    code: Optional[int] = None
    memory: int = 0

    def poll(self) -> Optional[int]:
        """Exit code as subprocess has it, None while it runs."""
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.code, self.memory = os.waitstatus_to_exitcode(status), usage.ru_maxrss
        return self.code

    def wait(self, seconds: float) -> Optional[int]:
        """Wait for the end; None if it does not come in time."""
        while self.poll() is None and time.monotonic() - self.began < seconds:
            time.sleep(0.005)
        return self.code

    def kill(self) -> None:
        """End it and its session."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Trial:
    """Material for one fault.

    Args:
        folder: Folder of the trial, made anew.
        rng: Its random numbers.
        material: Folder of what :mod:`benchmarks.fault_families.material` made.
    """

    patience = 5.0  # seconds in which the processes of a command must be gone after it

    def __init__(self, folder: Path, rng: random.Random, material: Path) -> None:
        self.folder, self.rng, self.material = folder, rng, material
        self.work, self.tmp = folder / "work", folder / "tmp"
        self.fault = ""
        self.problems: list[str] = []
        self.commands: list[list[str]] = []
        self.codes: list[Optional[int]] = []
        self.others = set(psutil.Process().children(recursive=True))  # this process may have its own
        shutil.rmtree(folder, ignore_errors=True)
        for made in (self.work, self.tmp, folder / "home"):
            made.mkdir(parents=True)
            made.chmod(0o777)

    def problem(self, kind: str, text: str) -> None:
        """Note what was not survived; ``kind`` says what harm it is."""
        self.problems.append(f"{kind}: {' '.join(text.split())[:600]}")

    def check(self, true: bool, kind: str, text: str) -> None:
        """Note a problem unless something is true."""
        if not true:
            self.problem(kind, text)

    def copy_run(self, name: str = "run") -> Path:
        """A copy of the run folder of the material's training."""
        return Path(shutil.copytree(self.material / "run", self.work / name))

    def spawn(
        self,
        words: Union[Sequence[str], Callable[[], Optional[int]]],
        fresh: bool = False,
        env: Optional[dict[str, Optional[str]]] = None,
        stdout: Union[str, Path, None] = None,
        child: Callable[[], Any] = bool,
    ) -> Command:
        """Start a command in the trial's folder.

        Args:
            words: ``train``, ``--key=value`` ...; a function runs instead of a command.
            fresh: In a new interpreter, not in a copy of this process; a program if ``words`` begins with a path.
            env: Changes of the environment; None removes a variable.
            stdout: Where standard output goes instead.
            child: Called in the new process before the command.
        """
        named = list(words) if not callable(words) else [getattr(words, "__name__", "function")]
        self.commands.append(named)
        command = Command(-1, named, self.inventory())
        sys.stdout.flush()
        sys.stderr.flush()
        command.pid = os.fork()
        if command.pid == 0:
            code = 70
            try:
                code = self._in_child(words, fresh, env or {}, stdout, child)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return command

    def _in_child(self, words: Any, fresh: bool, env: dict[str, Optional[str]], stdout: Any, child: Any) -> int:
        os.setsid()
        os.chdir(self.work)
        places = (os.devnull, stdout or self.folder / "stdout", self.folder / "stderr")
        modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, (place, mode) in enumerate(zip(places, modes)):
            handle = os.open(place, mode, 0o666)
            os.dup2(handle, number)
        os.closerange(3, 256) if fresh else None
        changes = {"TMPDIR": str(self.tmp), "HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT / "src"), **env}
        for name, value in changes.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        child()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
        signal.signal(signal.SIGPIPE, signal.SIG_DFL if fresh else signal.SIG_IGN)
        if fresh:
            program = [] if "/" in words[0] else interpreter(words[0])
            os.execve((program or words)[0], [*program, *words[1 if program else 0 :]], dict(os.environ))  # noqa: S606
        from covpool.cli import run
        from covpool.runtime.command import exit_code_of

        tempfile.tempdir = None
        sys.argv = ["covpool", *(() if callable(words) else words)]
        code = exit_code_of(words) if callable(words) else run(words)
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def run(self, *words: str, timeout: float = 120, how: Optional[dict[str, Any]] = None, **rules: Any) -> Ended:
        """Run a command to its end and judge it by the rules of :meth:`judge`; ``how`` is for :meth:`spawn`."""
        command = self.spawn(words, **(how or {}))
        command.wait(timeout)
        return self.judge(command, **rules)

    def judge(
        self,
        command: Command,
        codes: Sequence[int] = (0, 1, 2),
        writes: Sequence[str] = ("run",),
        spoils: bool = False,
        listed: bool = False,
        silent: Sequence[int] = (),
    ) -> Ended:
        """What holds after every command, whatever the fault.

        Args:
            command: It has ended, or its time is over.
            codes: Exit codes that are right.
            writes: Names that it may make in the folder it works in.
            spoils: Whether a failure (code 1) may come in the middle of the work, with something written.
            listed: Whether code 1 means that problems were listed on standard output.
            silent: Exit codes, besides 0, without a line.
        """
        code = command.poll()
        if code is None:
            self.problem("hang", f"still there after {time.monotonic() - command.began:.0f} s")
            command.kill()
        self.codes.append(code)
        left = self._processes_left()
        ended = Ended(code, text_of(self.folder / "stdout"), text_of(self.folder / "stderr"))
        if left:
            self.problem("left", f"processes {left}")
        if code is not None and code < 0 and code not in codes:
            self.problem("crash", f"{signal.Signals(-code).name}: {ended.err[-300:]}")
        elif code is not None and code not in codes:
            self.problem("code", f"{code} instead of {list(codes)}: {ended.err[-300:]}")
        self.check(not _BACKTRACE.search(ended.out + ended.err), "message", f"traceback: {ended.err[-300:]}")
        if code in (1, 2) and not (listed and code == 1 and not ended.err) and code not in silent:
            lines = _ERROR.findall(ended.err)
            self.check(len(lines) == 1, "message", f"{len(lines)} error lines: {ended.err[-400:]}")
        self.check(ended.err.count("\n") <= _MOST_LINES, "message", f"{ended.err.count(chr(10))} lines of errors")
        self.check(command.memory < _MOST_MEMORY, "memory", f"{command.memory / 2**20:.1f} GiB")
        self._judge_files(command.before, code, writes, spoils)
        return ended

    def _judge_files(self, before: dict[str, str], code: Optional[int], writes: Sequence[str], spoils: bool) -> None:
        after = self.inventory()
        new = [name for name in after if name not in before]
        changed = [name for name in before if after.get(name) != before[name]]
        if code is not None and code >= 0:
            hidden = [n for n in new if n.endswith(".tmp") or any(part.startswith(".") for part in Path(n).parts)]
            self.check(not hidden, "left", f"files {hidden[:5]}")
            rest = sorted(path.name for path in self.tmp.iterdir())
            self.check(not rest, "left", f"temporary files {rest[:5]}")
            other = sorted({Path(n).parts[0] for n in new} - {Path(n).parts[0] for n in before} - set(writes))
            self.check(not other, "left", f"written outside: {other[:5]}")
        if code == 2 or (code == 1 and not spoils):
            self.check(not new and not changed, "lost", f"refused, but made {new[:5]}, changed {changed[:5]}")
        kinds = ("p", "s", "c", "b")  # FIFO, socket, devices: replaced in /dev they would be gone for everybody
        moved = {after[name] for name in new}
        gone = [name for name in changed if before[name] in kinds and before[name] not in moved]
        self.check(not gone, "lost", f"no longer there: {gone[:5]}")
        kept = set(after.values())
        lost = [n for n in changed if before[n].startswith(WHOLE) and before[n] not in kept]
        self.check(not lost, "lost", f"checkpoints {lost}")

    def inventory(self) -> dict[str, str]:
        """Everything in the folder the commands work in: path -> what it is."""
        return inventory(self.work)

    def _processes_left(self) -> list[str]:
        """Descendants that outlive a command: they become children of this process. They are ended."""
        deadline = time.monotonic() + self.patience
        while True:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = set(psutil.Process().children(recursive=True)) - self.others
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        names = []
        for process in left:
            with suppress(psutil.Error):
                names.append(" ".join(process.cmdline())[:200])
                process.kill()
        return names


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of every descendant whose own parent ends, or leave that to the system again."""
    ctypes.CDLL(None).prctl(_SUBREAPER, int(adopt), 0, 0, 0)


def interpreter(command: str) -> list[str]:
    """The program for a command: train.py, eval.py and export.py as users start them, else ``covpool``."""
    if command in SCRIPTS:
        return [sys.executable, str(ROOT / f"{command}.py")]
    return [str(Path(sys.executable).parent / "covpool"), command]


def limit(what: int, value: int) -> None:
    """Set a limit of this process, as ``ulimit`` does."""
    resource.setrlimit(what, (value, value))


def become(user: int) -> None:
    """Become another user in this process, one that may read and enter everything: the interpreter may be root's."""
    libc = ctypes.CDLL(None)
    libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setresuid(user, user, user)
    masks = (ctypes.c_uint32 * 6)(*(1 << _CAP_READ_SEARCH,) * 3)
    if libc.capset((ctypes.c_uint32 * 2)(_VERSION, 0), masks):
        raise OSError("capset")
    libc.prctl(_AMBIENT, _RAISE, _CAP_READ_SEARCH, 0, 0)
