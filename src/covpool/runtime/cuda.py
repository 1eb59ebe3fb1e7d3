"""CUDA 11 from NVIDIA's wheels: found, laid out as MindSpore expects CUDA, and loaded before MindSpore.

MindSpore 2.8 carries its NVIDIA back end, built for CUDA 11.6, and no CUDA library. Its loader takes that back end only
if ``CUDA_HOME`` names a folder whose ``bin/nvcc`` reports a CUDA 11 release, and then leaves finding the libraries to
the system's loader. NVIDIA's wheels hold the libraries, each in a folder of its own, and no ``nvcc``. So a folder of
links is made once per environment, ``CUDA_HOME`` is pointed to it, and the libraries are loaded by path: a library
that is loaded already satisfies every later request for its name, and no shell has to set ``LD_LIBRARY_PATH`` first.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from covpool.errors import UserError
from covpool.runtime.files import user_cache, whole_folder

logger = logging.getLogger(__name__)

# Library -> the package that brings it. Ordered: a library stands behind those that it needs.
LIBRARIES: Mapping[str, str] = {
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcusparse.so.11": "nvidia-cusparse-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
    "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    # What libcudnn.so.8 opens by name when it is first needed, then the library itself.
    **{
        f"libcudnn{part}.so.8": "nvidia-cudnn-cu11"
        for part in ("_ops_infer", "_ops_train", "_cnn_infer", "_cnn_train", "_adv_infer", "_adv_train", "")
    },
}
PACKAGES = tuple(dict.fromkeys(LIBRARIES.values()))
DRIVER = "libcuda.so.1"
GPU_PLUGIN = "lib/plugin/libmindspore_gpu.so.11.6"
INSTALL = "pip install -r requirements-gpu.txt"

_NVCC = """#!/bin/sh
# MindSpore's plug-in loader asks nvcc for the CUDA release, and nothing else. This is no compiler.
if [ "$1" != "--version" ]; then
    echo "no CUDA compiler here: these are the run-time libraries of NVIDIA's wheels" >&2
    exit 1
fi
echo "Cuda compilation tools, release {release}, V{version}"
"""


@dataclass(frozen=True)
class Wheels:
    """NVIDIA's packages in this environment."""

    versions: Mapping[str, str] = field(default_factory=dict)  # of each installed one of PACKAGES
    files: Mapping[str, Path] = field(default_factory=dict)  # every shared library they hold, by its file name

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed, or lack the library they are there for."""
        return list(dict.fromkeys(package for name, package in LIBRARIES.items() if name not in self.files))


def find_wheels(search: Sequence[str] | None = None) -> Wheels:
    """Look NVIDIA's packages up in folders of installed packages, by default ``sys.path``."""
    versions: dict[str, str] = {}
    files: dict[str, Path] = {}
    for package in PACKAGES:
        found = importlib.metadata.distributions(name=package, path=list(sys.path if search is None else search))
        distribution = next(iter(found), None)
        if distribution is None:
            continue
        versions[package] = distribution.version
        for entry in distribution.files or ():
            path = Path(str(distribution.locate_file(entry)))
            if ".so" in entry.suffixes and path.is_file():
                files[entry.name] = path.resolve()
    return Wheels(versions, files)


def make_cuda_home(wheels: Wheels, parents: Iterable[Path]) -> Path:
    """Lay the libraries out as a CUDA folder: ``bin/nvcc`` that tells the release, and ``lib64`` full of links.

    The folder's name holds a digest of its content, so that other wheels get another folder, and one that is there is
    used as it is. It appears only when it is complete, however many processes make it at once.

    Args:
        wheels: The complete set.
        parents: Where it may be made, the first that can be written to.
    """
    version = wheels.versions[LIBRARIES["libcudart.so.11.0"]]
    release = ".".join(version.split(".")[:2])
    links = {name: str(path) for name, path in wheels.files.items()}
    # A CUDA installation names the run-time library in full, too: MindSpore reads the version from that name.
    links[f"libcudart.so.{version}"] = links["libcudart.so.11.0"]
    nvcc = _NVCC.format(release=release, version=version)
    digest = hashlib.sha256(repr((sorted(links.items()), nvcc)).encode()).hexdigest()[:12]
    problems = []
    for parent in parents:
        home = parent / f"cuda-{release}-{digest}"
        if home.is_dir():
            return home
        try:
            with whole_folder(home) as partial:
                (partial / "lib64").mkdir()
                for name, target in links.items():
                    (partial / "lib64" / name).symlink_to(target)
                (partial / "bin").mkdir()
                (partial / "bin" / "nvcc").write_text(nvcc, encoding="utf-8")
                (partial / "bin" / "nvcc").chmod(0o755)
            return home
        except UserError as error:
            if home.is_dir():  # another process was first: its folder is the same
                return home
            problems.append(str(error))
    raise UserError(f"no place for a folder of links to the CUDA libraries: {'; '.join(problems)}")


def linked_libraries(library: Path, search: Sequence[Path] = ()) -> dict[str, str | None]:
    """Ask the system's loader (``ldd``) where it finds everything that ``library`` needs; None where nowhere.

    It looks into the folders of ``search`` before those of ``LD_LIBRARY_PATH``.
    """
    env = {**os.environ, "LD_LIBRARY_PATH": _prepended("LD_LIBRARY_PATH", search), "LC_ALL": "C"}
    try:
        done = subprocess.run(["ldd", str(library)], env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("ldd is missing (package libc-bin on Debian): it tells which libraries are found") from None
    if done.returncode:
        raise UserError(f"ldd cannot read {library}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    found: dict[str, str | None] = {}
    for line in done.stdout.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow:
            found[name] = None if path == "not found" else path.rpartition(" (")[0]
    return found


def preload(paths: Iterable[Path], mode: int = ctypes.DEFAULT_MODE) -> None:
    """Load libraries into this process, in this order, for good."""
    for path in paths:
        try:
            ctypes.CDLL(str(path), mode=mode)
        except OSError as error:
            raise UserError(f"cannot load {path}: {error}") from error


def mindspore_folder() -> Path:
    """Where the MindSpore package lies, found without importing it."""
    spec = importlib.util.find_spec("mindspore")
    if spec is None or spec.origin is None:
        raise UserError("MindSpore is not installed: pip install -r requirements.txt")
    return Path(spec.origin).parent


def activation_variables(wheels: Wheels) -> dict[str, str]:
    """Values of ``CUDA_HOME`` and ``LD_LIBRARY_PATH`` under which a new process finds the wheels' libraries."""
    home = make_cuda_home(wheels, (Path(sys.prefix), user_cache()))
    return {"CUDA_HOME": str(home), "LD_LIBRARY_PATH": _prepended("LD_LIBRARY_PATH", [home / "lib64"])}


def wheels_problem(wheels: Wheels) -> str:
    """What keeps these wheels from being used; empty if they are complete, or all missing but there is a CUDA_HOME."""
    if not wheels.missing:
        return ""
    if wheels.versions:
        return f"NVIDIA's wheels are incomplete: {', '.join(wheels.missing)} missing"
    return "" if os.environ.get("CUDA_HOME") else "the CUDA 11 libraries are not installed"


def activate_gpu() -> None:
    """Make MindSpore's GPU back end loadable in this process and its children. Call before MindSpore is imported.

    With NVIDIA's wheels in the environment these are used, whatever ``CUDA_HOME`` says; without them the CUDA
    installation that ``CUDA_HOME`` names is left to MindSpore. A UserError says what is missing and how to get it.
    """
    if "mindspore" in sys.modules:
        raise UserError("the GPU back end must be activated before MindSpore is imported")
    try:
        ctypes.CDLL(DRIVER)
    except OSError as error:
        raise UserError(f"device_target=GPU: NVIDIA's driver is not installed here ({error})", exit_code=2) from error
    wheels = find_wheels()
    problem = wheels_problem(wheels)
    if problem:
        raise UserError(f"device_target=GPU: {problem}: {INSTALL} (covpool check-device tells more)", 2)
    if wheels.missing:
        return
    variables = activation_variables(wheels)
    given = os.environ.get("CUDA_HOME")
    if given and given != variables["CUDA_HOME"]:
        logger.info("CUDA from NVIDIA's wheels in %s, not from CUDA_HOME=%s", variables["CUDA_HOME"], given)
    preload(wheels.files[name] for name in LIBRARIES)
    os.environ.update(variables)
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        preload_mpi(Path(sys.prefix))


def preload_mpi(prefix: Path) -> None:
    """Load the MPI library that pip put into the environment: MindSpore does not look there, but finds a system's."""
    library = prefix / "lib" / "libmpi.so.40"
    if library.is_file():
        preload([library], ctypes.RTLD_GLOBAL)  # Open MPI's components look for its symbols among the global ones


def _prepended(variable: str, folders: Sequence[Path]) -> str:
    before = [str(folder) for folder in folders]
    present = [part for part in os.environ.get(variable, "").split(os.pathsep) if part and part not in before]
    return os.pathsep.join(before + present)
