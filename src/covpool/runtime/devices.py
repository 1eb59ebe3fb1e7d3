"""What CPU, GPU and Ascend lack here, if anything: libraries, driver, cards, and a small product computed on each."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covpool.runtime.cuda import (
    DRIVER,
    GPU_PLUGIN,
    INSTALL,
    activation_variables,
    find_wheels,
    linked_libraries,
    mindspore_folder,
    wheels_problem,
)
from covpool.runtime.processes import python_command

DEVICES = ("CPU", "GPU", "Ascend")
ASCEND_PLUGIN = "lib/plugin/libmindspore_ascend.so.2"
INSTALL_DRIVER = "NVIDIA's driver, 520.61.05 or newer (from the system's packages; it cannot come with pip)"
INSTALL_CANN = (
    "Huawei's driver and CANN toolkit with kernels, 8.2 to 8.5 (hiascend.com), then: "
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
)

# On a card of a new generation the driver first translates some 700 MB of kernels.
_TRIAL_LIMIT_S = {"CPU": 120, "GPU": 900, "Ascend": 600}
_TRIAL = """
import sys
from covpool.errors import UserError
from covpool.runtime.environment import prepare_environment
device = sys.argv[1]
try:
    prepare_environment(device)
    import numpy as np
    import mindspore as ms
    ms.set_device(device, 0)
    x = ms.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    product = ms.ops.matmul(x, x.T).asnumpy()
    if product.tolist() != [[5.0, 14.0], [14.0, 50.0]]:
        raise UserError(f"a product of two small matrices came out as {product.tolist()}")
except Exception as error:
    # MindSpore frames its messages and appends the calls of its own code.
    text = str(error).partition("C++ Call Stack")[0].replace("---", "")
    print("PROBLEM " + " ".join(word for word in text.split() if word.strip("-")))
    sys.exit(1)
"""


@dataclass(frozen=True)
class DeviceReport:
    """Whether one kind of device can be used here: if a computation on it gave the right result."""

    device: str  # 'CPU', 'GPU' or 'Ascend'
    problems: tuple[str, ...] = ()  # why not
    versions: Mapping[str, str] = field(default_factory=dict)  # what was found: software by name, cards by number
    install: tuple[str, ...] = ()  # what would help
    # Where the libraries of the back end are found, or None; without those of MindSpore itself and of any program.
    libraries: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def text(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.device}: {'usable' if self.usable else 'not usable'}"]
        lines += [f"  problem: {problem}" for problem in self.problems]
        lines += [f"  install: {what}" for what in self.install]
        lines += [f"  found: {name} {version}" for name, version in self.versions.items()]
        return "\n".join(lines)


def check_device(device: str) -> DeviceReport:
    """Look for everything that ``device`` needs; where all is there, compute on it in a process of its own."""
    if device == "CPU":
        mindspore_folder()
        return DeviceReport("CPU", tuple(_trial("CPU")), _common_versions())
    return _check_gpu() if device == "GPU" else _check_ascend()


def _check_gpu() -> DeviceReport:
    wheels = find_wheels()
    problems, install = [], []
    if problem := wheels_problem(wheels):
        problems.append(problem)
        install.append(INSTALL)
    variables = {} if wheels.missing else activation_variables(wheels)
    search = [Path(folder) for folder in variables.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    libraries = _foreign(linked_libraries(mindspore_folder() / GPU_PLUGIN, search))
    if absent := [name for name, path in libraries.items() if path is None and name != DRIVER]:
        problems.append(f"libraries not found: {', '.join(absent)}")
    if libraries.get(DRIVER) is None:
        problems.append(f"no NVIDIA driver: {DRIVER} is not found")
        install.append(INSTALL_DRIVER)
    versions = {**_common_versions(), **wheels.versions}
    versions["CUDA_HOME"] = variables.get("CUDA_HOME") or os.environ.get("CUDA_HOME") or "not set"
    versions.update(_nvidia_cards())
    return DeviceReport("GPU", tuple(problems or _trial("GPU")), versions, tuple(install), libraries)


def _check_ascend() -> DeviceReport:
    libraries = _foreign(linked_libraries(mindspore_folder() / ASCEND_PLUGIN))
    problems: list[str] = []
    if absent := [name for name, path in libraries.items() if path is None]:
        problems.append(f"libraries of CANN not found: {', '.join(absent)}")
    cards = sorted(path.name for path in Path("/dev").glob("davinci[0-9]*"))
    if not cards:
        problems.append("no Ascend card: there is no /dev/davinci0")
    versions = {**_common_versions(), **_cann_version(os.environ.get("ASCEND_HOME_PATH"))}
    versions.update({f"card {name}": "present" for name in cards})
    install = (INSTALL_CANN,) if problems else ()
    return DeviceReport("Ascend", tuple(problems or _trial("Ascend")), versions, install, libraries)


def _trial(device: str) -> list[str]:
    """Compute on the device in a child process; returns its problem, if any."""
    # MindSpore leaves files in the working folder, so the child gets one that goes away.
    with tempfile.TemporaryDirectory() as folder:
        try:
            command, limit = python_command(_TRIAL, device), _TRIAL_LIMIT_S[device]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return [f"a product of two small matrices took longer than {_TRIAL_LIMIT_S[device]} s"]
    if done.returncode == 0:
        return []
    found = re.search(r"^PROBLEM (.*)$", done.stdout, re.MULTILINE)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [f"MindSpore cannot compute on it: {found.group(1) if found else last}"]


def _common_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in ("mindspore", "numpy")}}


def _foreign(libraries: Mapping[str, str | None]) -> dict[str, str | None]:
    """Without MindSpore's own libraries and those that any program has."""
    own = str(mindspore_folder())
    system = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp|z)\.so|ld-linux")
    return {
        name: path
        for name, path in libraries.items()
        if not ((path or "").startswith(own) or system.match(Path(name).name))
    }


def _nvidia_cards() -> dict[str, str]:
    """The cards with their driver and compute capability, as ``nvidia-smi`` lists them; none without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"nvidia-smi": (done.stdout + done.stderr).strip().partition("\n")[0]}
    return {f"card {number}": line.strip() for number, line in enumerate(done.stdout.splitlines())}


def _cann_version(home: str | None) -> dict[str, str]:
    """Version of the CANN toolkit in the folder that its set_env.sh names."""
    if not home:
        return {"ASCEND_HOME_PATH": "not set"}
    path = Path(home) / "compiler" / "version.info"
    if not path.is_file():
        return {"ASCEND_HOME_PATH": f"{home} (without compiler/version.info)"}
    found = re.search(r"^Version=(.*)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return {"CANN": found.group(1).strip() if found else f"unknown, in {path}"}
