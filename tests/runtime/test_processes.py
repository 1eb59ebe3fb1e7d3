"""Child processes import nothing from the working folder and do not outlive their parent."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import covpool
from covpool.runtime.processes import process_state, python_command, start_watcher_process


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that leave a file when they are imported."""
    for name in ("mindspore", "covpool", "socket", "ctypes", "json", "signal", "re", "hmac", "dataclasses"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_children_import_from_elsewhere(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import covpool, dataclasses, importlib.util, json, sys
print(covpool.__file__, importlib.util.find_spec("mindspore").origin, *sys.argv[1:])
"""
    mindspore = importlib.util.find_spec("mindspore")
    assert mindspore is not None
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # as under Python 3.9, which does not know it
    for here in ("", str(planted)):  # what `python -c` and `python -m` have first on their path
        monkeypatch.setattr(sys, "path", [here, *sys.path])
        done = subprocess.run(python_command(code, 1, "a b"), capture_output=True, text=True, check=True)
        assert done.stdout == f"{covpool.__file__} {mindspore.origin} 1 a b\n"
    for module in ("watch", "siblings"):
        watcher = start_watcher_process(module)  # without arguments: it ends once it has them to read
        assert watcher.wait(20) == 1
    assert not (planted / "executed").exists()


def test_a_child_finds_the_package_where_this_process_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout that is neither installed nor on the path of a new Python."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "covpool").is_dir()])
    monkeypatch.chdir(Path(covpool.__file__).parents[1])
    done = subprocess.run(python_command("import covpool; print(covpool.__file__)"), capture_output=True, text=True)
    assert done.stdout.strip() == covpool.__file__, done.stderr


def test_a_child_ends_with_its_parent() -> None:
    code = """
import os, subprocess
from covpool.runtime.processes import ends_with_this_process
child = subprocess.Popen(["sleep", "60"], preexec_fn=ends_with_this_process())
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    deadline = time.monotonic() + 10
    while process_state(int(done.stdout)) not in "ZX":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    code = """
import os
from covpool.runtime.processes import ends_with_this_process
begin = ends_with_this_process()
def child(run):
    process = os.fork()
    if process == 0:
        run()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
print(child(begin), child(lambda: os._exit(child(begin))))  # a child; the child of a child, which is not this one's
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 1\n"


POOL = """
import sys
from pathlib import Path
from covpool.data.check import inspect_files
print(len(list(inspect_files([Path(f"{n}.png") for n in range(300)], workers=2))))
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no earlier Python can be told")
def test_workers_import_from_elsewhere(planted: Path) -> None:
    done = subprocess.run(python_command(POOL), capture_output=True, text=True, timeout=60)
    assert done.stdout == "300\n", done.stderr
    assert not (planted / "executed").exists()


def test_workers_of_a_command_that_is_killed_while_they_start_end_too() -> None:
    with subprocess.Popen(python_command(POOL), stdout=subprocess.DEVNULL) as command:
        workers: list[psutil.Process] = []
        while len(workers) < 2:
            assert command.poll() is None
            children = psutil.Process(command.pid).children()
            workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        command.kill()
    assert not psutil.wait_procs(workers, timeout=10)[1]
