"""The runs of a study: what there is of each, and training of what is left, one process a run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable

import yaml

from covpool.config import Config, load_config
from covpool.errors import UserError
from covpool.metrics import read_records
from covpool.research.study.spec import Run, Study
from covpool.runtime.files import open_regular, write_text
from covpool.runtime.processes import ends_with_this_process, python_command
from covpool.runtime.signals import SIGNALS, StopRequest

# What does not change a result: where it is written, how it is shown, and how many threads read images.
_INCIDENTAL = ("output_path", "resume_ckpt", "progress", "debug", "num_workers", "log_interval", "result_path")
_FAILURE = "failure.txt"
_POLL_S = 1.0  # between two looks at the running ones
_STOPPED = {sign * number + start for number in SIGNALS for sign, start in ((-1, 0), (1, 128))}  # exit codes
_TRAIN = "import sys; sys.argv[0] = 'covpool'; from covpool.cli import main; main()"


@dataclass(frozen=True)
class State:
    """What there is of a run."""

    epochs: list[dict[str, Any]]  # epoch records, in order
    wanted: int  # epochs that the configuration asks for
    failure: str  # why the last attempt failed; empty if it did not

    @property
    def done(self) -> bool:
        return len(self.epochs) >= self.wanted


def state_of(folder: Path, config: Config) -> State:
    """What a run folder holds of a run with this configuration; UserError for a run with other settings."""
    if (folder / "config.yaml").is_file():
        held = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        for key, value in config.to_dict().items():
            left_open = value is None or value == "auto"  # the run folder says what it became
            if key not in _INCIDENTAL and key in held and held[key] != value and not left_open:
                raise UserError(
                    f"{folder} holds a run with {key} = {held[key]}, the study asks for {value}: "
                    "give another --output, or remove that folder"
                )
    failure = folder / _FAILURE
    return State(
        read_records(folder / "metrics.jsonl", "epoch"),
        config.epoch_size,
        failure.read_text(encoding="utf-8").strip() if failure.is_file() else "",
    )


@dataclass
class _Training:
    run: Run
    config: Config
    folder: Path
    slot: int
    process: subprocess.Popen[bytes]
    errors: IO[Any]
    stopping: bool = False

    def stop(self) -> None:
        """Ask it, once, to save and stop: a second signal would end it before it has saved."""
        if not self.stopping and self.process.poll() is None:
            self.process.terminate()
        self.stopping = True


def _settings(run: Run, output: Path, overrides: Sequence[str]) -> list[str]:
    """What a run changes in the study's configuration: its group's overrides, then ``overrides``, seed and folder."""
    return [*run.overrides, *overrides, f"seed={run.seed}", f"output_path={output / run.name}"]


def states(study: Study, output: Path, overrides: Sequence[str]) -> dict[Run, State]:
    """What there is of every run; UserError for a folder that holds a run with other settings."""
    configs = {run: load_config(study.config, _settings(run, output, overrides)) for run in study.runs()}
    return {run: state_of(output / run.name, config) for run, config in configs.items()}


def run_study(
    study: Study,
    output: Path,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    stop: StopRequest | None = None,
    report: Callable[[dict[Run, State], list[Run]], None] = lambda states, running: None,
) -> dict[Run, State]:
    """Train every run that is not done; one that was begun goes on from its last checkpoint. The state of every run.

    A run that fails (or whose loss becomes no number) is recorded as failed and the others go on; it is tried again
    the next time. After a signal the running ones save and stop. UserError: another process runs in ``output``, or a
    folder holds a run with other settings.

    Args:
        study: What to run.
        output: Folder for the run folders, ``GROUP/seed-N/``.
        overrides: `key=value` for all runs, such as the place of the data.
        jobs: Runs at a time; each gets its share of the cores.
        stop: Receives signals.
        report: Called with the state of all runs and the running ones when something may have changed.
    """
    stop = stop or StopRequest()
    with _alone(output):
        known = states(study, output, overrides)
        waiting = [run for run, state in known.items() if not state.done]
        running: list[_Training] = []
        try:
            while running or (waiting and not stop.received):
                while waiting and len(running) < jobs and not stop.received:
                    slot = min(set(range(jobs)) - {job.slot for job in running})
                    running.append(_start(study, waiting.pop(0), output, overrides, slot, jobs))
                report(known, [job.run for job in running])
                time.sleep(_POLL_S)
                if stop.received:
                    for job in running:
                        job.stop()
                for job in running:
                    if job.process.poll() is not None:
                        _finish(job)
                    known[job.run] = state_of(job.folder, job.config)
                running = [job for job in running if job.process.returncode is None]
        finally:
            for job in running:  # an error of the study itself: they save, too
                job.stop()
            for job in running:
                job.process.wait()
        report(known, [])
    return known


def _start(study: Study, run: Run, output: Path, overrides: Sequence[str], slot: int, jobs: int) -> _Training:
    folder = output / run.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILURE).unlink(missing_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    share = cores[slot % len(cores) :: jobs] if jobs > 1 else cores
    settings = _settings(run, output, overrides)
    command = ["train", f"--config_path={study.config}", *(f"--{text}" for text in settings), "--resume_ckpt=auto"]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
    process = subprocess.Popen(
        python_command(_TRAIN, *command),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(len(share))},
        start_new_session=True,  # a Ctrl-C in the terminal reaches the study alone, which then stops its trainings
        preexec_fn=ends_with_this_process(),  # two trainings must never write to one run folder
    )
    os.sched_setaffinity(process.pid, share)
    return _Training(run, load_config(study.config, settings), folder, slot, process, errors)


def _finish(job: _Training) -> None:
    """Record why a process failed; one that a signal stopped did not."""
    job.errors.seek(0)
    lines = job.errors.read().decode("utf-8", "replace").strip().splitlines()
    job.errors.close()
    code = job.process.returncode
    if code == 0 or code in _STOPPED:
        return
    shown = [line for line in lines if line.startswith("error: ")] or lines or ["it said nothing"]
    write_text(job.folder / _FAILURE, f"exit code {code}: {shown[-1].removeprefix('error: ')}\n")


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    with open_regular(output / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process runs a study in {output}") from error
        yield
