"""Distributed jobs that lose a part of themselves: their start, their processes, their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

import psutil
from road_commands import MPIRUN, ROOT, SMALL, Run

from covpool.training.run_folder import RunFolder

TRAIN = (
    str(ROOT / "train.py"),
    f"--config_path={ROOT / 'config' / 'quickstart.yaml'}",
    *SMALL,
    "--pooling=gap",  # of which nothing is asked here, and less is to be compiled
    "--run_distribute=True",
    "--device_num=2",
    "--batch_size=16",
    "--log_interval=1",
    "--save_checkpoint_steps=3",
    "--output_path=run",
)
UNDER_MPIRUN = (*MPIRUN, sys.executable, *TRAIN)
_PAUSE = """
import os, pathlib, sys, time
def pause(event, arguments):
    if event == "os.rename" and any(step in str(arguments[1]) for step in {steps!r}):
        os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
        pathlib.Path({saving!r}).touch()
        time.sleep(600)
sys.addaudithook(pause)
"""


def pause_while_saving(folder: Path, *steps: int) -> dict[str, str]:
    """Have a training wait for its end in the middle of writing the checkpoint of one of these steps.

    Half of it is on the disk then, and ``folder`` holds a file ``saving``.

    Returns:
        Environment variables that the training needs.
    """
    values = {"steps": [f"step_{step:08d}" for step in steps], "saving": str(folder / "saving")}
    (folder / "sitecustomize.py").write_text(_PAUSE.format(**values))
    return {"PYTHONPATH": str(folder)}


def under_msrun() -> tuple[str, ...]:
    """The command on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ("msrun", "--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True", *TRAIN)


class Job:
    """A running job and its processes."""

    def __init__(self, process: subprocess.Popen[str], cwd: Path) -> None:
        self.process, self.cwd, self.folder = process, cwd, cwd / "run"
        self.family: list[psutil.Process] = []
        self.ports: set[int] = set()
        self.said = ""
        self.began = time.time()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, "ended or hung before its time"
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        """Wait until this job has done it; a job that it goes on from may have done it before."""
        log = self.folder / "metrics.jsonl"
        self.wait_for(
            lambda: log.is_file() and log.stat().st_mtime > self.began and f'"step": {step},' in log.read_text()
        )

    def at_step(self, step: int, role: str) -> psutil.Process:
        """A member, once the step is done; it is found before, since steps are quick."""
        self.wait_for(lambda: self.find(role) is not None)
        found = self.member(role)
        self.wait_for_step(step)
        return found

    def find(self, role: str) -> psutil.Process | None:
        """'0', '1' (ranks) or 'scheduler'; None as long as it is not there."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        found = None
        for process in self.family:
            with suppress(psutil.Error):  # one that has ended since
                variables, command = process.environ(), process.cmdline()
                self.ports |= {c.laddr.port for c in process.net_connections() if c.status in ("LISTEN", "NONE")}
                rank = variables.get("OMPI_COMM_WORLD_RANK", variables.get("MS_NODE_ID"))
                name = "scheduler" if variables.get("MS_ROLE") == "MS_SCHED" else rank
                is_member = any(word.endswith("train.py") or "communication" in word for word in command)
                if name == role and is_member and "mpirun" not in " ".join(command) and "-S" not in command:
                    found = found or process  # what it has just forked looks the same and comes after it
        return found

    def member(self, role: str) -> psutil.Process:
        """What :meth:`find` finds, which must be there."""
        found = self.find(role)
        assert found is not None, f"no {role} among {self.family}"
        return found

    def kill(self, role: str) -> None:
        """Kill a member as soon as it is there."""
        self.wait_for(lambda: self.find(role) is not None)
        self.member(role).kill()

    def end(self, seconds: float = 60) -> str:
        """Wait for the end of all processes, which leave no port behind; what was written to standard error."""
        with suppress(psutil.Error):
            self.family = list({*self.family, *psutil.Process(self.process.pid).children(recursive=True)})
        began = time.monotonic()
        self.said, errors = self.process.communicate(timeout=seconds)
        alive = psutil.wait_procs(self.family, timeout=max(1.0, seconds - (time.monotonic() - began)))[1]
        assert not alive, f"left behind: {alive}"
        assert self.process.returncode != 0
        # Another job may have been given the same port since: what counts is who holds it.
        family = {process.pid for process in self.family}
        held = [c for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port in self.ports and c.pid in family]
        assert not held, f"ports left busy: {held}"
        return errors


@contextmanager
def job(images: Path, cwd: Path, *arguments: str, command: Sequence[str] = UNDER_MPIRUN, **env: str) -> Iterator[Job]:
    """Start a training of two ranks; whatever is left of it afterwards is killed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_"))}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    process = subprocess.Popen(
        [*command, f"--data_path={images}", *arguments],
        cwd=cwd,
        env={**clean, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = Job(process, cwd)
    try:
        yield running
    finally:
        if process.poll() is None:
            running.family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
        for left in running.family:
            if left.is_running():
                left.kill()
        process.communicate()


def resumes(images: Path, run: Run, cwd: Path, command: Sequence[str] = UNDER_MPIRUN) -> None:
    """The job goes on with the last checkpoint, to its end."""
    words = ["python" if word == sys.executable else word for word in command]
    done = run([*words, f"--data_path={images}", "--resume_ckpt=auto"], cwd=cwd)
    assert "resumed from" in done.stdout
    epochs = RunFolder(cwd / "run").records("epoch")
    assert [(e["epoch"], e["num_samples"]) for e in epochs] == [(1, 103), (2, 103)]
