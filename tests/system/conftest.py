"""The real commands in processes of their own, on a few of the images in data/."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from road_commands import ROOT, SMALL, Run, make_folder

from covpool import cli


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first worker of this session to need it makes, and all others read."""
    base = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder, begun = base / name, base / f"{name}-begun"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(begun, ignore_errors=True)  # by a worker that failed
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 training and 103 validation images."""
    return made_once(tmp_path_factory, "images", lambda folder: make_folder(folder, 32, 103))


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command of the project from a folder of its own; every process that it started must be gone after it.

    A rank that mpirun has killed may take a moment to give its memory back.
    """

    def run(command: Sequence[str], cwd: Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = list(command)
        scripts = ("train.py", "eval.py", "export.py")
        resolved = [str(ROOT / word) if word in scripts else word for word in command]
        resolved = [sys.executable if word == "python" else word for word in resolved]
        mark = f"GCP_TEST_RUN={os.getpid()}.{time.monotonic_ns()}"
        key, value = mark.split("=")
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_"))}
        env.update({key: value, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"})
        done = subprocess.run(resolved, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
        if expect is not None:
            assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        deadline = time.monotonic() + 5
        while left := _processes(key, value):
            assert time.monotonic() < deadline, f"processes were left behind: {left}"
            time.sleep(0.05)
        return done

    return run


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: for tests of what it does, not of how its process starts and ends."""

    def here(command: Sequence[str], cwd: Path, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        words = [word.replace(".py", "") if word.endswith(".py") else word for word in command if word != "python"]
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = cli.run(words)
        done = subprocess.CompletedProcess(list(command), code, *capfd.readouterr())
        if expect is not None:
            assert code == expect, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    return here


def _processes(key: str, value: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(key) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="session")
def trained(images: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two epochs in one process."""
    config = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"

    def train(work: Path) -> None:
        run(["python", "train.py", config, f"--data_path={images}", "--output_path=run", *SMALL], cwd=work)
        assert [p.name for p in work.iterdir()] == ["run"], "something was written outside the run folder"

    return made_once(tmp_path_factory, "trained", train) / "run"
