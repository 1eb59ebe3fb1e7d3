"""Under msrun: a job ends when one of its ranks, its scheduler or msrun itself is lost.

When a rank is lost, ``msrun`` (2.8.0) ends the other ranks and then waits for its scheduler, which at the start of a
job waits ten minutes for ranks that never come. A lost scheduler it does not notice, and when it is killed itself, what
it started goes on. So beside each of its processes runs a watcher, a small process of its own, that looks at the
siblings: the processes which the same ``msrun`` started with the same command.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from covpool.runtime.processes import outlive_parent, process_stat, process_state, start_watcher_process

_INTERVAL_S = 0.25
_GRACE_S = 10.0
_LAUNCHERS = ("msrun", "mindspore.parallel.cluster.run")


class SiblingWatcher:
    """Watches the msrun ``launcher`` and what it started, for the process that started it.

    The ranks' watchers look at the scheduler and at msrun, the scheduler's looks at the ranks and at msrun, which
    itself ends all ranks of its host when one is lost. The processes of a job that ends by itself end within ``grace``
    seconds.
    """

    def __init__(self, process: int, launcher: int, grace: float) -> None:
        self.process, self.launcher, self.grace = process, launcher, grace
        self._command = _words(process, "cmdline")
        role, _, size = _role(process)
        self._of_scheduler = role == "MS_SCHED"
        started = _option(_words(launcher, "cmdline"), "--local_worker_num")
        self._missing = {f"rank {rank}" for rank in range(int(size))} if started == size else set()  # not seen so far
        self._siblings: dict[int, str] = {}  # names of the processes to be watched
        self._gone: dict[int, float] = {}  # since when they, or others whose role is not known, are
        self._others: set[int] = {process}
        self._tails: set[int] = set()  # they show the ranks' logs
        self._began = time.monotonic()

    def run(self) -> None:
        """Watch until the process ends, or end it."""
        problem = ""
        while not problem:
            time.sleep(_INTERVAL_S)
            if process_state(self.launcher) in "ZX":
                problem = f"msrun (process {self.launcher}) is gone"
            else:
                self._look()
                problem = self._lost_rank() if self._of_scheduler else self._lost_scheduler()
        # In capitals: msrun shows of the scheduler's log the lines with this word.
        sys.stderr.write(f"ERROR: {problem}: the job ends\n")
        sys.stderr.flush()
        outlive_parent()
        os.kill(self.process, signal.SIGKILL)
        if process_state(self.launcher) in "ZX":
            for tail in self._tails:
                with suppress(ProcessLookupError):  # another watcher was first
                    os.kill(tail, signal.SIGKILL)

    def _look(self) -> None:
        """Learn what msrun has started since, and which of it has ended."""
        now = time.monotonic()
        children = _children(self.launcher)
        for child in {*children} - self._siblings.keys() - self._others:
            command = _words(child, "cmdline")
            if Path(command[0] if command else "").name == "tail":
                self._tails.add(child)
                self._others.add(child)
            elif command == self._command:
                role, rank, _ = _role(child)
                if role == "MS_WORKER" and self._of_scheduler:
                    self._siblings[child] = f"rank {rank}"
                    self._missing.discard(f"rank {rank}")
                elif role == "MS_SCHED":
                    self._siblings[child] = "MindSpore's scheduler"
                else:
                    self._others.add(child)
        for child in {*self._siblings, *children} - self._others:
            if process_state(child) in "ZX":
                self._gone.setdefault(child, now)

    def _lost_rank(self) -> str:
        now = time.monotonic()
        gone = {child: since for child, since in self._gone.items() if child in self._siblings}
        if self._missing and now - min(gone.values(), default=self._began) > self.grace:
            return f"{', '.join(sorted(self._missing))} ended at the start"
        if not gone or now - min(gone.values()) <= self.grace:
            return ""
        first = [child for child, since in gone.items() if since == min(gone.values())]
        return f"{', '.join(f'{self._siblings[child]} (process {child})' for child in first)} is gone"

    def _lost_scheduler(self) -> str:
        """A child of msrun that has ended and is not waited for is the scheduler, even if it was not seen alive."""
        for child, since in self._gone.items():
            if time.monotonic() - since > self.grace and (child in self._siblings or process_state(child) == "Z"):
                return f"MindSpore's scheduler (process {child}) is gone"
        return ""


def follow_msrun(grace: float = _GRACE_S) -> None:
    """Start the watcher of this process if an msrun that waits for its job started it; it ends with this process."""
    launcher = os.getppid()
    command = _words(launcher, "cmdline")
    is_msrun = any(Path(word).name in _LAUNCHERS for word in command[:3])
    if "MS_ROLE" in os.environ and is_msrun and _option(command, "--join") == "True":
        start_watcher_process("siblings", os.getpid(), launcher, grace)


def _option(command: list[str], name: str) -> str:
    """Value of an option of a command; empty where it is not given."""
    for word, following in zip(command, command[1:]):
        if word == name or word.startswith(f"{name}="):
            return following if word == name else word.partition("=")[2]
    return ""


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:  # a kernel without these lists
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [number for number in numbers if process_stat(number)[1] == str(process)]


def _words(process: int, name: str) -> list[str]:
    """Arguments (``cmdline``) or variables (``environ``) of a process; none if it is gone."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _role(process: int) -> tuple[str, str, str]:
    """MindSpore's role of a process, its rank, and the number of ranks."""
    variables = dict(word.partition("=")[::2] for word in _words(process, "environ"))
    return variables.get("MS_ROLE", ""), variables.get("MS_NODE_ID", "?"), variables.get("MS_WORKER_NUM", "0")


def main(arguments: list[str]) -> None:
    """Run as the watcher that :func:`follow_msrun` starts."""
    process, launcher, grace = arguments
    SiblingWatcher(int(process), int(launcher), float(grace)).run()
