"""The process environment: what must be set before MindSpore is imported, and what a run records about itself."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# From 2.9 on the CPU k x k convolution falls to oneDNN's reference kernel on AVX-512 machines, 100-360 times slower.
_FIRST_SLOW_ON_AVX512 = (2, 9)
_SUPPORTED = ((2, 7), (2, 8))

# Values with which MindSpore works, and what is set where there is none. With others its import fails or aborts, or it
# logs thousands of lines. Its generated code needs protobuf's Python implementation, and asks for it too late where
# another package loaded protobuf before. Its warnings on a healthy run number in the dozens and hide ours.
_USABLE = {
    "GLOG_v": (r"[0-4]", "3"),
    "GLOG_stderrthreshold": (r"[0-4]", None),
    "GLOG_logtostderr": (r"[01]", None),
    "logger_maxBytes": (r"\d+", None),
    "logger_backupCount": (r"\d+", None),
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": (r"python", "python"),
    "OMP_NUM_THREADS": (r"[1-9]\d*(,[1-9]\d*)*", None),
}


def prepare_environment(device_target: str = "CPU") -> None:
    """Set what MindSpore reads from the environment while it is imported. Call before the first import of it.

    What the user has set is left alone where MindSpore can use it, and set right with a line in the log where not. For
    a GPU its CUDA libraries are found and loaded, see ``cuda.py``.
    """
    _set_right()
    if device_target == "GPU":
        from covpool.runtime.cuda import activate_gpu

        activate_gpu()
    version = importlib.metadata.version("mindspore")  # not imported, which takes about a second
    release = tuple(int(part) for part in version.split(".")[:2])
    if release >= _FIRST_SLOW_ON_AVX512 and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
        logger.warning(
            "MindSpore %s convolves very slowly with AVX-512; ONEDNN_MAX_CPU_ISA=AVX2 set. Better: pip install "
            "mindspore==2.8.0",
            version,
        )
    elif release not in _SUPPORTED:
        logger.warning("MindSpore %s is not among the supported versions 2.7 and 2.8", version)


def _set_right() -> None:
    for name, (usable, default) in _USABLE.items():
        given = os.environ.pop(name, "")
        value = given if re.fullmatch(usable, given) else default
        if value is not None:
            os.environ[name] = value
        if given and given != value:
            what = f"{value} set" if value else "unset"
            logger.warning("%s=%s cannot be used by MindSpore: %s", name, given, what)
    name, folder = "GLOG_logtostderr", "GLOG_log_dir"
    if os.environ.get(name) == "0" and not _can_hold_logs(os.environ.get(folder, "")):
        del os.environ[name]
        logger.warning("%s=0 needs %s, a folder that can be written: unset", name, folder)


def _can_hold_logs(folder: str) -> bool:
    """Whether MindSpore can make its folder of logs there, and those above it that are missing."""
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return bool(folder) and there.is_dir() and os.access(there, os.W_OK)


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def git_revision(folder: Path) -> str | None:
    """Commit of the checkout that holds ``folder``, with ``-dirty`` when changed; None outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def environment_report(device_target: str, world_size: int) -> dict[str, Any]:
    """What a run needs to be repeated: versions, device, code revision, command line, number of ranks."""
    versions: dict[str, str | None] = {}
    for package in ("mindspore", "numpy", "pyyaml", "mpi4py", "pillow"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "device_target": device_target,
        "cpu_cores": available_cores(),
        "ranks": world_size,
        "git_revision": git_revision(Path(__file__).resolve().parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
