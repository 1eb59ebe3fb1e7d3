"""Full disks, read-only folders, kills while a checkpoint is written: the one before stays, the training goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from road_commands import ROOT, SMALL, Run

from covpool.checkpoints.format import read_checkpoint
from covpool.checkpoints.store import CheckpointStore, sha256
from covpool.training.run_folder import RunFolder

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


def command(images: Path, folder: object, *arguments: str) -> list[str]:
    return ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", f"--output_path={folder}", *arguments]


def assert_whole(folder: Path) -> int:
    """Everything that the index names is there and loads; step of the newest."""
    index = json.loads((folder / "index.json").read_text())
    for entry in index["checkpoints"]:
        path = folder / entry["file"]
        assert sha256(path) == entry["sha256"]
        assert read_checkpoint(path).about["step"] == entry["step"]
    if index["best"]:  # a kill between file and index leaves a newer best one than the index speaks of
        assert read_checkpoint(folder / index["best"]["file"]).about["step"] >= index["best"]["step"]
    for path in folder.glob("[!.]*.ckpt"):  # a real name is always a whole file, named by the index or not
        read_checkpoint(path)
    newest = CheckpointStore(folder, 5).newest_valid()
    assert newest is not None and newest.path.name == index["last"]
    return int(newest.about["step"])


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on standard error, which is the only one of the project; MindSpore may say something before."""
    lines = [line for line in done.stderr.splitlines() if line]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    assert "Traceback" not in done.stderr and "--debug" not in lines[-1]
    return lines[-1]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@ROOT_ONLY
@pytest.mark.slow
def test_a_full_disk_stops_the_training_which_goes_on_with_room(images: Path, here: Run, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=2m") as disk:
        folder = disk / "run"
        options = ("--save_checkpoint_steps=1", "--keep_checkpoint_max=9", "--epoch_size=1")
        line = error_line(here(command(images, folder, *options), cwd=tmp_path, expect=1))
        assert line.startswith(f"error: cannot write the checkpoint {folder}") and "No space left on device" in line
        assert not list(folder.rglob("*.tmp*"))
        step = assert_whole(folder / "checkpoints")
        assert 1 <= step < 5
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        done = here(command(images, folder, *options, "--resume_ckpt=auto"), cwd=tmp_path)
        assert f"after epoch 0 and {step} steps" in done.stdout
        assert assert_whole(folder / "checkpoints") == 10
        assert [r["step"] for r in RunFolder(folder).records("epoch")] == [10]


@ROOT_ONLY
@pytest.mark.slow
def test_a_folder_that_becomes_read_only(trained: Path, images: Path, here: Run, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m") as disk:
        folder = Path(shutil.copytree(trained, disk / "run"))
        more = command(images, folder, "--epoch_size=3", "--resume_ckpt=auto")
        before = {p.name: p.read_bytes() for p in (folder / "checkpoints").iterdir()}
        with mounted_read_only(folder / "checkpoints"):
            line = error_line(here(more, cwd=tmp_path, expect=1))
            assert line.startswith("error: cannot write") and "Read-only file system" in line
        assert {p.name: p.read_bytes() for p in (folder / "checkpoints").iterdir()} == before
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        line = error_line(here(more, cwd=tmp_path, expect=1))
        assert line == f"error: cannot write to output_path {folder}: Read-only file system"
        line = error_line(here(command(images, disk / "other"), cwd=tmp_path, expect=1))
        assert line == f"error: cannot write to output_path {disk / 'other'}: Read-only file system"
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        done = here(more, cwd=tmp_path)
        assert "after epoch 2" in done.stdout and assert_whole(folder / "checkpoints") == 30


@contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# `save(step)` of a small network, as a training does, in the command's frame.
WRITER = """
import os, resource, shutil, signal, sys
from covpool.runtime.command import exit_code_of
from covpool.runtime.environment import prepare_environment
prepare_environment()
import numpy as np
from pathlib import Path
from mindspore import nn
from covpool.training.optimizers import build_optimizer
from covpool.checkpoints.store import CheckpointStore

folder = Path({folder!r})
net = nn.Dense(300, 200)
optimizer = build_optimizer(list(net.trainable_params()), np.full(5, 0.1, np.float32))

def save(store, step):
    store.save(net, optimizer, step, step, step / 10**6, {{}})
    store.save_best(net, optimizer, step, step, step / 10**6, {{}})

def main():
{lines}
sys.exit(exit_code_of(main))
"""
LIMITED = """
    store = CheckpointStore(folder, 2)
    for step in range(1, 6):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        save(store, step)
"""
# Each child saves a checkpoint, says so, and is killed before one more operation on files of its second save than the
# child before it; what it would have renamed is cut to half. The last one ends by itself.
KILLED = """
    def kill(event, arguments):
        paths = [str(a) for a in arguments if isinstance(a, (str, Path)) and str(a).startswith(str(folder))]
        writes = event.startswith("os.") or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if paths and writes:
            left[0] -= 1
            if left[0] < 0:
                if event == "os.rename" and os.path.isfile(arguments[0]):
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    status, left = 1, [0]
    while status:
        number = left[0]
        child = os.fork()
        if not child:
            store = CheckpointStore(folder, 2)
            newest = store.newest_valid()
            step = int(newest.about["step"]) if newest else 0
            save(store, step + 1)
            print(step + 1, flush=True)
            sys.addaudithook(kill)
            save(store, step + 2)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        shutil.copytree(folder, f"killed-{number}")
        left[0] += 1
"""


def writer(folder: Path, lines: str) -> list[str]:
    return [sys.executable, "-c", WRITER.format(folder=str(folder), lines=lines)]


def test_a_file_that_cannot_be_written_to_its_end(run: Run, tmp_path: Path) -> None:
    """A limit of the size of files acts like a full disk, for any user."""
    folder = tmp_path / "checkpoints"
    done = run(writer(folder, LIMITED), cwd=tmp_path, expect=1)
    line = error_line(done)
    assert line == f"error: cannot write the checkpoint {folder / 'epoch_0004.ckpt'}: [Errno 27] File too large"
    assert assert_whole(folder) == 3
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", "epoch_0002.ckpt", "epoch_0003.ckpt", "index.json"]


def test_kills_before_every_operation_of_a_save(run: Run, tmp_path: Path) -> None:
    """Whatever was said to be saved is whole; the next process goes on from it and removes what was left."""
    said = [int(line) for line in run(writer(tmp_path / "checkpoints", KILLED), cwd=tmp_path).stdout.split()]
    assert len(said) > 8, "a save has more operations than this"
    while_writing = 0
    for number, step in enumerate(said):
        folder = tmp_path / f"killed-{number}"
        saved = assert_whole(folder)
        assert saved in (step, step + 1)
        assert number + 1 == len(said) or said[number + 1] == saved + 1
        while_writing += bool(list(folder.glob(".*")))
    assert while_writing >= 4, "no kill fell into the writing of a file"
    names = [f"epoch_{step:04d}.ckpt" for step in (said[-1], said[-1] + 1)]
    assert sorted(p.name for p in folder.iterdir()) == ["best.ckpt", *names, "index.json"]


@pytest.mark.slow
def test_a_training_killed_in_the_middle_of_a_write_goes_on(images: Path, run: Run, here: Run, tmp_path: Path) -> None:
    """The kill comes with the first half of the file of step 6 on the disk."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event == 'os.rename' and 'step_00000006' in str(arguments[1]):\n"
        "        os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(kill)\n"
    )
    options = ("--save_checkpoint_steps=3", "--epoch_size=1")
    killed = ["env", f"PYTHONPATH={tmp_path}", *command(images, "run", *options)]
    run(killed, cwd=tmp_path, expect=-signal.SIGKILL)
    folder = tmp_path / "run" / "checkpoints"
    (half,) = folder.glob(".*/*")
    assert "step_00000006" in str(half) and half.stat().st_size > 1000
    assert assert_whole(folder) == 3
    done = here(command(images, "run", *options, "--resume_ckpt=auto"), cwd=tmp_path)
    assert "epoch_0000_step_00000003.ckpt after epoch 0 and 3 steps" in done.stdout
    assert assert_whole(folder) == 10 and not list(folder.glob(".*"))


def network() -> tuple[nn.Cell, nn.Optimizer]:
    net = nn.Dense(3, 4)
    return net, nn.Momentum(net.trainable_params(), ms.Tensor(0.1, ms.float32), 0.9)


@pytest.mark.parametrize("keep_max", [1, 2, 5])
def test_the_best_and_the_last_whole_checkpoint_stay(keep_max: int, tmp_path: Path) -> None:
    """The newest is damaged after every third save; whatever is saved and dropped, auto never comes out empty."""
    net, optimizer = network()
    rng, step, best = np.random.default_rng(keep_max), 0, (0, -1.0)
    for round_number in range(30):
        store = CheckpointStore(tmp_path, keep_max)
        newest = store.newest_valid()
        assert (newest is None) == (round_number == 0)
        if newest is not None:
            assert newest.about["step"] == step or round_number % 3 == 0
            step = int(newest.about["step"])
        for _ in range(int(rng.integers(1, 4))):
            step += 1
            metric = float(rng.random())
            store.save(net, optimizer, step, step, metric, {})
            if store.save_best(net, optimizer, step, step, metric, {}):
                best = (step, metric)
        kept = read_checkpoint(tmp_path / "best.ckpt")
        assert (kept.about["step"], kept.about["metric"]) == best and store.best_metric == best[1]
        if round_number % 3 == 2:
            path = tmp_path / f"epoch_{step:04d}.ckpt"
            path.write_bytes(path.read_bytes()[:-40])
    assert len(list(tmp_path.glob("epoch_*.ckpt"))) <= keep_max


def test_the_best_is_resumed_from_where_nothing_else_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, optimizer = network()
    store = CheckpointStore(tmp_path, 2)
    for step, metric in ((1, 0.5), (2, 0.9), (3, 0.4), (4, 0.3)):
        store.save(net, optimizer, step, step, metric, {})
        store.save_best(net, optimizer, step, step, metric, {})
    for name in ("epoch_0003.ckpt", "epoch_0004.ckpt"):
        (tmp_path / name).write_bytes(b"")
    found = CheckpointStore(tmp_path, 2).newest_valid()
    assert found is not None and found.about["step"] == 2 and len(caplog.records) == 2
