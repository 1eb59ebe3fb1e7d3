"""The compiled kernels: C++ of this package, made into a shared library on first use on a machine."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Callable

from mindspore import ops

from covpool.errors import UserError
from covpool.runtime.environment import available_cores
from covpool.runtime.files import (
    OTHERS_WRITE,
    open_regular,
    os_errors_as,
    own_folder,
    remove_leftovers,
    user_cache,
    whole_file,
)

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).resolve().parent / "cpp"
# Not -ffast-math: sums keep their order, NaN stays NaN.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_MOST_THREADS = 256
_DIGEST = hashlib.sha256().digest_size


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
    """Compile the kernels for this processor, or find them compiled: the shared library.

    A library that is kept is used if it is as it was made: a regular file of this user (or root) that nobody else can
    write to, and whole by the digest at its end. Otherwise it is compiled anew. The name of the file, by default in
    ``mindspore-gcp`` in the user's cache folder, tells sources, compiler and processor apart, and several processes may
    compile at once. UserError: there is no compiler, it fails, or the folder cannot be written or is another user's.
    """
    folder = (folder or user_cache()).absolute()
    if ":" in str(folder):  # MindSpore takes LIBRARY:FUNCTION
        raise UserError(f"{folder} has a colon, which the path of compiled kernels cannot have: set XDG_CACHE_HOME", 2)
    compiler = os.environ.get("CXX", "g++")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"the compiled kernels need a C++ compiler, and {compiler!r} does not run; "
            "install g++, name another compiler in CXX, or use cpu_kernels=mindspore",
            2,
        ) from error
    sources = sorted(_SOURCES.glob("*.cpp"))
    digest = hashlib.sha256(version + "\0".join(("", *_FLAGS, _processor())).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    library = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    with os_errors_as(f"cannot keep compiled kernels in {folder}"):
        own_folder(folder)
        if _is_as_made(library):
            return library
        remove_leftovers(folder)
        if library.is_fifo() or library.is_socket():  # the folder is this user's own: nobody needs it there
            library.unlink()
        with whole_file(library) as made:
            logger.info("compiling the CPU kernels, once on this machine")
            command = [compiler, *_FLAGS, *map(str, sources), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode:
                message = done.stderr.decode("utf-8", "replace").strip()[-500:]
                raise UserError(f"{compiler} could not compile the kernels: {message}")
            content = made.read_bytes()
            made.write_bytes(content + hashlib.sha256(content).digest())  # the loader passes over what follows
        library.chmod(0o644)
    return library


def _is_as_made(library: Path) -> bool:
    """Whether a library is there, can only have been written by its user, and is whole."""
    if library.is_symlink() or not library.exists():
        return False
    try:
        with open_regular(library) as file:
            found, content = os.fstat(file.fileno()), file.read()
    except OSError as error:
        logger.warning("%s: %s; compiled anew", library, error.strerror or error)
        return False
    reason = ""
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & OTHERS_WRITE:
        reason = "others could have changed it"
    elif hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        reason = "damaged"
    if reason:
        logger.warning("%s: %s; compiled anew", library, reason)
    return not reason


def custom(
    library: Path,
    name: str,
    shape: Callable[..., Any],
    dtype: Callable[..., Any] = lambda first, *_: first,
    bprop: Callable[..., Any] | None = None,
) -> ops.Custom:
    """The operator of a function of the library; its results are of the type of its first input unless ``dtype``."""
    return ops.Custom(f"{library}:{name}", shape, dtype, "aot", bprop=bprop)


def set_threads(library: Path, threads: int) -> None:
    """Let the kernels of a library use ``threads`` threads, 1 to 256, in the whole process."""
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {_MOST_THREADS}, not {threads}")
    ctypes.CDLL(str(library)).set_threads(threads)


def hand_over_solver(library: Path) -> None:
    """Give the kernels of a library LAPACK's symmetric solver, which SciPy, a package that MindSpore needs, brings.

    Its threads are set to one: the kernels decompose several matrices at once.
    """
    import scipy
    from scipy.linalg import cython_lapack  # here: only some poolings decompose

    capsule, python = cython_lapack.__pyx_capi__["dsyevd"], ctypes.pythonapi
    python.PyCapsule_GetName.restype, python.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    kernels = ctypes.CDLL(str(library))
    kernels.set_solver.argtypes = [ctypes.c_void_p]
    kernels.set_solver(python.PyCapsule_GetPointer(capsule, python.PyCapsule_GetName(capsule)))
    for path in (Path(scipy.__file__).parent.parent / "scipy.libs").glob("*openblas*"):
        blas = ctypes.CDLL(str(path))
        for name in ("openblas_set_num_threads", "scipy_openblas_set_num_threads"):
            getattr(blas, name, lambda threads: None)(1)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
