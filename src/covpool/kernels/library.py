"""The compiled kernels: C++ of this package, made into a shared library on first use on a machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from covpool.errors import UserError
from covpool.runtime.environment import available_cores

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).resolve().parent / "cpp"
# Not -ffast-math: sums keep their order, NaN stays NaN.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_MOST_THREADS = 256


def threads_of_process(processes: int = 1) -> int:
    """Threads for the kernels of one of ``processes`` that train on this host.

    OMP_NUM_THREADS where it is set; else the cores that the process may use, which a launcher may have divided
    already, or its share of all.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return min(int(wanted), _MOST_THREADS)
    cores, all_cores = available_cores(), os.cpu_count() or 1
    return min(cores if cores < all_cores else max(1, cores // processes), _MOST_THREADS)


def compile_kernels(folder: Path | None = None) -> Path:
    """Compile the kernels for this processor, or find them compiled.

    Args:
        folder: Where libraries are kept; by default ``mindspore-gcp`` in the user's cache folder. The name of the file
            tells sources, compiler and processor apart, and several processes may compile at once.

    Returns:
        The shared library.

    Raises:
        UserError: No compiler, a compiler that fails, or a folder that cannot be written; nothing is tried instead.
    """
    compiler = os.environ.get("CXX", "g++")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cpu_kernels=compiled needs a C++ compiler, and {compiler!r} does not run ({error}); "
            "install g++, name another compiler in CXX, or use cpu_kernels=mindspore",
            2,
        ) from error
    sources = sorted(_SOURCES.glob("*.cpp"))
    digest = hashlib.sha256("\0".join((version, *_FLAGS, _processor())).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mindspore-gcp"
    library = (folder or cache) / f"kernels-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *_FLAGS, *map(str, sources), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"{compiler} could not compile the kernels: {done.stderr.strip()[-500:]}")
            made.replace(library)  # whole or not at all, whoever else compiles it
    except OSError as error:
        raise UserError(f"cannot keep compiled kernels in {library.parent}: {error.strerror}") from error
    logger.info("compiled the CPU kernels: %s", library)
    return library


def set_threads(library: Path, threads: int) -> None:
    """Let the kernels of a library use ``threads`` threads, in the whole process.

    Raises:
        ValueError: Not between 1 and 256.
    """
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {_MOST_THREADS}, not {threads}")
    ctypes.CDLL(str(library)).set_threads(threads)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
