"""Faults of jobs of two ranks: two at once, and ranks that pause."""

from __future__ import annotations

import json
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Optional

import psutil

from benchmarks.fault_families import wire
from benchmarks.fault_families.foreign import irregular
from benchmarks.fault_families.inventory import epochs_of
from benchmarks.fault_families.trial import ROOT, Command, Trial

_EPOCHS = 30  # three checkpoints each: fewer than are kept
_END = 120  # seconds in which a job must have ended after a fault


def _words(trial: Trial, run: str = "run") -> tuple[str, ...]:
    """A job of two ranks, as scripts/run_distributed.sh starts it."""
    script = ("/bin/bash", str(ROOT / "scripts" / "run_distributed.sh"), "2", str(trial.material / "small.yaml"))
    keys = ("--batch_size=2", f"--epoch_size={_EPOCHS}", "--save_checkpoint_steps=2", f"--output_path={run}")
    return *script, str(trial.material / "data"), *keys, "--rank_timeout=90"


_HOW = {"fresh": True}


def _reference(trial: Trial) -> dict[bytes, bytes]:
    """The weights that a job without faults ends with."""
    whole = trial.material / "ranks"
    if not whole.is_dir():
        command = trial.spawn(_words(trial, "ranks"), **_HOW)  # type: ignore[arg-type]
        command.wait(300)
        trial.judge(command, codes=(0,), writes=("ranks",))
        shutil.move(trial.work / "ranks", whole)
    return wire.network(whole / "checkpoints" / f"epoch_{_EPOCHS:04d}.ckpt")


def _members(command: Command) -> dict[str, psutil.Process]:
    """The job's processes: '0', '1' and 'scheduler', as many as there are."""
    found = {}
    for process in psutil.Process(command.pid).children(recursive=True):
        with suppress(psutil.Error):
            variables, line = process.environ(), process.cmdline()
            role = "scheduler" if variables.get("MS_ROLE") == "MS_SCHED" else variables.get("OMPI_COMM_WORLD_RANK")
            python = bool(line) and "python" in Path(line[0]).name and "-S" not in line
            if role is not None and python and role not in found:
                found[role] = process
    return found


def _wait_for_steps(trial: Trial, command: Command, steps: int) -> bool:
    log = trial.work / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while command.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_bytes().count(b"\n") > steps:
            return True
        time.sleep(0.05)
    return False


def double_faults(trial: Trial) -> None:
    """Two faults at once on two ranks: the job ends, names what happened, and goes on to the same end."""
    rng = trial.rng
    expected = _reference(trial)
    words = _words(trial)
    kills: tuple[tuple[str, signal.Signals], ...] = (
        ("0", signal.SIGKILL),
        ("1", signal.SIGKILL),
        ("scheduler", signal.SIGKILL),
        ("0", signal.SIGTERM),
    )
    kills += (("1", signal.SIGTERM), ("0", signal.SIGSTOP), ("1", signal.SIGSTOP), ("1", signal.SIGSEGV))
    faults = rng.sample(kills, 2)
    damage = rng.choice(("", "", "newest cut", "index cut", "metrics cut", "best flipped"))
    steps = rng.choice((-1, 5, 40, 120))
    trial.fault = (
        f"{', '.join(f'{n.name} to {r}' for r, n in faults)}, {damage or 'nothing damaged'}, after {steps} records"
    )
    command = trial.spawn(words, **_HOW)  # type: ignore[arg-type]
    if steps < 0:
        time.sleep(rng.uniform(1, 8))
    else:
        _wait_for_steps(trial, command, steps)
    members = _members(command)
    for role, number in faults:
        if role in members:
            with suppress(psutil.Error):
                members[role].send_signal(number)
            time.sleep(rng.choice((0, 0.3)))
    command.began = time.monotonic()
    stopped = any(number == signal.SIGSTOP for _, number in faults)
    command.wait(_END + (90 if stopped else 0))
    for process in members.values():  # a stopped one can end only when it goes on
        with suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)
    time.sleep(1)
    command.before = {name: what for name, what in command.before.items() if not name.startswith("run")}
    codes = range(256)
    ended = trial.judge(command, codes=codes, spoils=True, silent=codes)
    trial.problems = [p for p in trial.problems if not p.startswith(("left: files", "message: 2"))]
    if ended.code and members:
        told = "error: " in ended.err or "mpirun noticed that process rank" in ended.err
        trial.check(told, "message", f"no line says what happened: {ended.err[-300:]}")
    _damage(trial, damage)
    again = trial.spawn((*words, "--resume_ckpt=auto"), **_HOW)  # type: ignore[arg-type]
    again.wait(240)
    done = trial.judge(again, codes=(0,), spoils=True)
    if done.code == 0:
        last = trial.work / "run" / "checkpoints" / f"epoch_{_EPOCHS:04d}.ckpt"
        trial.check(wire.network(last) == expected, "wrong", "other weights than without faults")
        epochs = [e["epoch"] for e in epochs_of(trial.work / "run")]
        complete = epochs == list(range(1, _EPOCHS + 1)) or damage == "metrics cut"
        trial.check(complete, "lost", f"epochs {epochs}")


def _damage(trial: Trial, kind: str) -> None:
    folder = trial.work / "run" / "checkpoints"
    index = folder / "index.json"
    if not kind or not index.is_file():
        return
    names = json.loads(index.read_text())
    path: Optional[Path] = {
        "newest cut": folder / (names["last"] or "none"),
        "index cut": index,
        "metrics cut": trial.work / "run" / "metrics.jsonl",
        "best flipped": folder / "best.ckpt",
    }[kind]
    if path is None or not path.is_file():
        return
    content = bytearray(path.read_bytes())
    if kind == "best flipped":
        content[trial.rng.randrange(len(content))] ^= 1
        path.write_bytes(content)
    else:
        irregular(path, "missing")
        path.write_bytes(content[: trial.rng.randrange(len(content))])


def pauses(trial: Trial) -> None:
    """A rank or the scheduler stands still for up to a minute, shorter than rank_timeout: the job ends as without."""
    rng = trial.rng
    expected = _reference(trial)
    role, seconds, steps = rng.choice(("0", "1", "scheduler")), rng.uniform(20, 60), rng.choice((3, 30))
    trial.fault = f"{role} paused for {seconds:.0f} s after {steps} records"
    command = trial.spawn(_words(trial), **_HOW)  # type: ignore[arg-type]
    _wait_for_steps(trial, command, steps)
    member = _members(command).get(role)
    trial.check(member is not None, "script", f"no {role} to pause")
    if member is not None:
        member.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        with suppress(psutil.Error):
            member.send_signal(signal.SIGCONT)
    command.began = time.monotonic()
    command.wait(180)
    ended = trial.judge(command, codes=(0,))
    if ended.code == 0:
        last = trial.work / "run" / "checkpoints" / f"epoch_{_EPOCHS:04d}.ckpt"
        trial.check(wire.network(last) == expected, "wrong", "other weights than without a pause")
