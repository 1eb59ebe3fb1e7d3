"""Faults around a command: disks, paths, pipes, the environment it is started in."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any, Callable, Optional

from benchmarks.fault_families.foreign import evaluates_as_known, irregular
from benchmarks.fault_families.inventory import epochs_of
from benchmarks.fault_families.material import EPOCHS, config, evaluated, known
from benchmarks.fault_families.trial import Ended, Trial, become, interpreter, limit

_USER = 65534  # nobody
_NAMES: tuple[str, ...] = (
    "a b",
    "a\nb",
    "é",
    "\udcff",
    "net[1]",
    "a**b",
    "a:b",
    "'\"",
    "-x",
    "x" * 255,
    "x" * 256,
    "epoch_0001.ckpt",
)
_NAMES += ("a/b/c", "./x/../y", ".hidden", "x.tmp", "~/x", "", ".", "link", "dangling", "file", "file/x", "null")
_NAMES += ("full", "/proc/x", "fifo", "\u202ex", "%s", "$HOME", "loop", "x/", "\\", "CON", "a=b", "\t")


def disks_and_paths(trial: Trial) -> None:
    """Odd paths to write to; disks that are full, read-only or forbidden."""
    if trial.rng.random() < 0.6:
        _path(trial)
    else:
        _disk(trial)


def _last(trial: Trial) -> Path:
    return trial.material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt"


def _plain(trial: Trial) -> Path:
    """A checkpoint that other frameworks can hold."""
    return trial.material / "plain" / "checkpoints" / "epoch_0001.ckpt"


def _path(trial: Trial) -> None:
    """A result goes to an odd path: it is there and whole, or one line says why not."""
    rng, work = trial.rng, trial.work
    name = rng.choice(_NAMES)
    (work / "target").mkdir()
    (work / "link").symlink_to("target")
    (work / "dangling").symlink_to("nowhere/x")
    (work / "loop").symlink_to("loop")
    (work / "file").write_text("precious")
    irregular(work / "fifo", "fifo")
    for name_of, number in (("null", 3), ("full", 7)):  # not those of the machine, which root could replace
        os.mknod(work / name_of, 0o20666, os.makedev(1, number)) if os.getuid() == 0 else irregular(
            work / name_of, "fifo"
        )
    command = rng.choice(("train", "train", "eval", "eval", "export", "convert", "check-data", "pack"))
    words = {
        "train": (config(trial.material), "--epoch_size=1", "--mode_name=PYNATIVE", f"--output_path={name}"),
        "eval": (*evaluated(trial.material, _last(trial)), f"--result_path={name}"),
        "export": (config(trial.material), f"--checkpoint_file_path={_last(trial)}", f"--file_name={name}"),
        "convert": ("--source", str(_plain(trial)), "--to=safetensors", f"--output={name}"),
        "check-data": ("--data_path", str(trial.material / "data"), f"--json={name}"),
        "pack": ("--data_path", str(trial.material / "data"), f"--output={name}"),
    }[command]
    trial.fault = f"{command} to {name[:30]!r}"
    first = Path(os.path.normpath(name)).parts[:1] if name and not name.startswith("/") else ()
    writes = ["run", "nowhere", "target", *first, *(f"{p}{e}" for p in first for e in (".mindir", ".onnx"))]
    hidden = name == ".hidden" or name == "x.tmp"
    command_run = trial.spawn((command, *words))
    command_run.wait(120)
    ended = trial.judge(command_run, writes=writes, spoils=command == "eval")
    if hidden:
        trial.problems = [p for p in trial.problems if not p.startswith("left: files")]
    if (work / "file").is_file():
        content = (work / "file").read_text(errors="replace")
        trial.check(content == "precious" or (ended.code == 0 and name == "file"), "lost", "the file was overwritten")
    if command == "eval":
        shown = known(trial, "eval").partition(" ckpt=")[0] in ended.out
        trial.check(
            shown or ended.code == 2, "lost", f"the result was not printed: {ended.out[-200:]} {ended.err[-200:]}"
        )
    place = work / name.replace("~", str(trial.folder / "home"))
    if ended.code == 0 and name:
        ends = (".mindir", ".onnx", "") if command == "export" else ("",)
        there = any(Path(f"{place}{end}").exists() for end in ends)
        trial.check(there, "wrong", "success, but nothing is there")
    if ended.code == 0 and command in ("eval", "check-data") and place.is_file():
        json.loads(place.read_text())


def _disk(trial: Trial) -> None:
    """A training or an export on a disk without room, without permission, or with a limit of a file's size."""
    rng, work = trial.rng, trial.work
    run = trial.copy_run()
    kind = rng.choice(("small file system", "file size", "read-only", "another user", "no inodes", "log only"))
    command = rng.choice(("train", "train", "train", "export", "convert"))
    words: tuple[str, ...] = {
        "train": ("train", config(trial.material), "--resume_ckpt=auto", f"--epoch_size={EPOCHS + 2}"),
        "export": ("export", config(trial.material), f"--checkpoint_file_path={_last(trial)}", "--file_name=run/net"),
        "convert": ("convert", "--source", str(_plain(trial)), "--to=safetensors", "--output=run/net.safetensors"),
    }[command]
    child: Callable[[], Any] = bool
    mounted = kind in ("small file system", "no inodes", "read-only")
    size = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
    room = rng.choice((4096, 20_000, 60_000, 150_000, 300_000, 500_000))
    trial.fault = f"{command}: {kind} {room if 'small' in kind or 'size' in kind else ''}"
    if mounted:
        run.rename(work / "copy")
        run.mkdir()
        options = f"size={size + 40 * 4096 + room}" if kind != "no inodes" else "nr_inodes=24"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(run)], check=True)
        subprocess.run(["cp", "-a", *map(str, (work / "copy").iterdir()), str(run)], check=kind != "no inodes")
        subprocess.run(["rm", "-r", str(work / "copy")], check=True)
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
    elif kind == "file size":
        child = lambda: limit(resource.RLIMIT_FSIZE, room)  # noqa: E731
    elif kind == "log only":
        log = run / "train.log"
        log.unlink(missing_ok=True)
        log.symlink_to("/dev/full")
    else:
        run.chmod(0o755)
        child = lambda: become(_USER)  # noqa: E731
    try:
        whole = epochs_of(run)
        ended = trial.run(*words, how={"child": child}, spoils=True, timeout=240)
        if kind in ("read-only", "another user"):
            trial.check(ended.code != 0, "wrong", "success, though nothing can be written")
        kept = epochs_of(run)
        trial.check(kept[: len(whole)] == whole, "lost", f"records: {len(kept)} of {len(whole)} epochs")
        if mounted and command == "train" and kind == "small file system":
            subprocess.run(["mount", "-o", "remount,size=100m", str(run)], check=True)
            again = trial.run(*words, codes=(0,), timeout=240)
            epochs = [e["epoch"] for e in epochs_of(run)]
            complete = epochs == list(range(1, EPOCHS + 3))
            trial.check(again.code != 0 or complete, "lost", f"with room again: epochs {epochs}")
    finally:
        if mounted:
            subprocess.run(["umount", str(run)], check=True)


def pipes(trial: Trial) -> None:
    """Nobody reads what a command says, or only its first line."""
    rng, material = trial.rng, trial.material
    commands = {
        "check-data": ("--data_path", str(material / "data"), "--notes"),
        "predict": ("--file", str(material / "net.onnx"), "--images", str(material / "data" / "val")),
        "eval": evaluated(material, _last(trial)),
        "train": (config(material), "--epoch_size=1", "--mode_name=PYNATIVE"),
        "complexity": (),
        "--help": (),
        "convert": ("--source", str(_plain(trial)), "--to=safetensors", "--output=out.safetensors"),
        "compare": (str(material / "run"),),
    }
    name = rng.choice(list(commands))
    ways = (
        "| head -1",
        "| true",
        ">&-",
        "2>&-",
        ">&- 2>&-",
        ">/dev/full",
        "2>/dev/full",
        "<&-",
        ">&- <&- 2>&-",
        "2>&1 | head -c 5",
    )
    way = rng.choice(ways)
    trial.fault = f"{name} {way}"
    words = [*interpreter(name), *commands[name]]
    script = 'end=$1; shift; eval "\\"\\$@\\" $end"; exit ${PIPESTATUS[0]}'
    ended = trial.run(
        *("/bin/bash", "-c", script, "bash", way, *words), how={"fresh": True}, spoils=True,
        codes=(0, 1, 2, 120, 141), writes=("run", "out.safetensors"), silent=(1, 2, 120, 141),
    )  # fmt: skip
    quiet = "2>" in way or name == "--help"
    said = ended.code not in (1, 2) or quiet or "error: " in ended.err
    trial.check(said, "message", f"exit code {ended.code} without a word: {ended.err[-200:]}")
    full = way == ">/dev/full" and name != "train"
    trial.check(not full or ended.code != 0, "lost", "success, though the result could not be written")


_VARIABLES: tuple[dict[str, Optional[str]], ...] = (
    {"GLOG_v": "abc"},
    {"GLOG_v": "-1"},
    {"GLOG_v": ""},
    {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb"},
    {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp"},
    {"OMP_NUM_THREADS": "0"},
    {"OMP_NUM_THREADS": "abc"},
    {"OMP_NUM_THREADS": "100000"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_XX.nonsense"},
    {"PYTHONIOENCODING": "ascii"},
    {"HOME": None},
    {"HOME": "/dev/null"},
    {"HOME": "relative"},
    {"TMPDIR": "/no/such/folder"},
    {"PATH": ""},
    {"PATH": None},
    {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "1"},
    {"MS_ROLE": "nonsense"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    {"RANK_ID": "7", "RANK_SIZE": "8", "DEVICE_ID": "abc"},
    {"CUDA_VISIBLE_DEVICES": "nonsense"},
    {"MPLBACKEND": "nonsense"},
    {"MPLCONFIGDIR": "/dev/null"},
    {"XDG_CACHE_HOME": "relative"},
    {"COLUMNS": "0", "TERM": "nonsense"},
    {"TZ": "nonsense/nowhere"},
    {"PYTHONWARNINGS": "error"},
    {"PYTHONOPTIMIZE": "2"},
    {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "random"},
    {"MS_DEV_RUNTIME_CONF": "nonsense", "MS_COMPILER_CACHE_ENABLE": "x"},
    {"MS_BUILD_PROCESS_NUM": "abc"},
    {"GLOG_log_dir": "/dev/null", "GLOG_logtostderr": "0"},
    {"LD_LIBRARY_PATH": "/no/such"},
    {"http_proxy": "nonsense://"},
    {"ONEDNN_MAX_CPU_ISA": "nonsense"},
    {"CUDA_CACHE_PATH": "/dev/null"},
)


def _no_passwd() -> None:
    os.environ.pop("HOME", None)
    become(12345)


def _leave_no_folder() -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()


_STARTS: dict[str, Callable[[], Any]] = {
    "umask 777": lambda: os.umask(0o777),
    "umask 000": lambda: os.umask(0),
    "user without passwd entry and HOME": _no_passwd,
    "user nobody": lambda: become(_USER),
    "few files": lambda: limit(resource.RLIMIT_NOFILE, 40),
    "small stack": lambda: limit(resource.RLIMIT_STACK, 2**20),
    "little memory": lambda: limit(resource.RLIMIT_AS, 2 * 2**30),
    "no core": lambda: limit(resource.RLIMIT_CORE, 0),
    "one core": lambda: os.sched_setaffinity(0, {0}),
    "seconds": lambda: limit(resource.RLIMIT_CPU, 3),
    "folder gone": _leave_no_folder,
    "folder of another": lambda: os.chdir("/proc/1"),
}
_PLANTED = ("mindspore", "numpy", "yaml", "covpool", "random", "json", "sitecustomize", "PIL", "mpi4py")


def launch_environments(trial: Trial) -> None:
    """An odd environment, limit, user or working folder: the known result, or one line."""
    rng = trial.rng
    kind = rng.choice(("variables",) * 6 + ("start",) * 3 + ("planted",))
    how: dict[str, Any] = {"fresh": True}
    codes: tuple[int, ...] = (0, 1, 2)
    if kind == "variables":
        how["env"] = rng.choice(_VARIABLES)
        trial.fault = " ".join(f"{k}={v}" for k, v in how["env"].items())
    elif kind == "start":
        trial.fault = rng.choice(list(_STARTS))
        how["child"] = _STARTS[trial.fault]
        codes = (0, 1, 2, -24, 152) if trial.fault == "seconds" else codes
    else:
        name = rng.choice(_PLANTED)
        trial.fault = f"{name}.py in the working folder"
        (trial.work / f"{name}.py").write_text(f"open({str(trial.folder / 'pwned')!r}, 'w')\n")
    trained = rng.random() < 0.4
    trial.fault += ": train" if trained else ": eval"
    if trained:
        words = ("train", config(trial.material), "--epoch_size=1", "--seed=1")
        ended: Ended = trial.run(*words, how=how, codes=codes, spoils=True)
        if ended.code == 0:
            trial.check(bool(epochs_of(trial.work / "run")) or trial.fault.startswith("folder"), "lost", "no records")
    else:
        evaluates_as_known(trial, _last(trial), how=how, codes=codes, spoils=True)
    trial.check(not (trial.folder / "pwned").exists(), "code execution", "a file of the working folder was imported")
