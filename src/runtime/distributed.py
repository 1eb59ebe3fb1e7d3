"""Data-parallel worlds: one process, ``mpirun`` or ``msrun``; on CPU with a scheduler that this module starts.

MindSpore's CPU collectives need a scheduler process and a set of ``MS_*`` variables that plain ``mpirun`` does not
provide. Rank 0 starts that scheduler on a free port and MPI broadcasts the address; from there on it is the same as
under ``msrun``, which brings its own scheduler. On GPU and Ascend the native back ends (NCCL, HCCL) need neither.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

_SCHEDULER_START_S = 60.0
_SCHEDULER_STOP_S = 20.0
_PREFETCH = 4  # rows that a stage of the data pipeline keeps ready; MindSpore's 16 hold a gigabyte of batches
_SCHEDULER_CODE = """
import mindspore as ms
from mindspore.communication import init
ms.set_context(device_target="CPU")
init()
"""


@dataclass(frozen=True)
class World:
    """The ranks of a job, seen from one of them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its host.
        local_size: Number of processes on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _reduce: Any = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes for the job."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum float64 ``values`` of one shape over all ranks; every rank must call it and gets the result."""
        if self.size == 1:
            return values
        from mindspore import Tensor

        # CPU collectives know floating types only; float64 counts exactly up to 2**53.
        return self._reduce(Tensor(values.astype(np.float64).reshape(-1))).asnumpy().reshape(values.shape)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.sum(np.zeros(1))


def launched_ranks() -> tuple[str, int]:
    """How this process was launched and with how many ranks: ('mpirun', n), ('msrun', n) or ('', 1)."""
    if "MS_ROLE" in os.environ and "MS_WORKER_NUM" in os.environ:
        return "msrun", int(os.environ["MS_WORKER_NUM"])
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "mpirun", int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return "", 1


def check_launch(run_distribute: bool, device_num: int) -> None:
    """Compare the configuration with how the job was launched.

    Raises:
        UserError: With exit code 2, where the two contradict each other.
    """
    launcher, ranks = launched_ranks()
    if run_distribute and not launcher:
        raise UserError(
            f"run_distribute=True needs a launcher: mpirun -n {max(device_num, 2)} python train.py ... "
            "(or msrun); this process was started alone",
            exit_code=2,
        )
    if run_distribute and ranks != device_num:
        raise UserError(f"device_num={device_num}, but {launcher} started {ranks} ranks; make them equal", exit_code=2)
    if not run_distribute and ranks > 1:
        raise UserError(
            f"{launcher} started {ranks} ranks, but run_distribute is False: each would train alone; "
            f"add --run_distribute=True --device_num={ranks}",
            exit_code=2,
        )


@contextmanager
def session(
    mode: str = "GRAPH",
    device_target: str = "CPU",
    device_id: int | None = None,
    run_distribute: bool = False,
    device_num: int = 1,
) -> Iterator[World]:
    """Set the device context and join the job that the launcher made, or be a world of one.

    MindSpore is told to train data-parallel with averaged gradients. Nothing of the job outlives it: the scheduler
    ends with rank 0, however that ends.

    Args:
        mode: 'GRAPH' or 'PYNATIVE'.
        device_target: 'CPU', 'GPU' or 'Ascend'.
        device_id: Number of the device on this host; by default the local rank.
        run_distribute: Whether a launcher started several ranks.
        device_num: The number of ranks that is expected.

    Raises:
        UserError: Where launcher and arguments contradict each other, or the device is not there.
    """
    check_launch(run_distribute, device_num)
    scheduler = None
    if run_distribute and launched_ranks()[0] == "mpirun" and device_target == "CPU":
        scheduler = _start_under_mpi()
    try:
        set_context(mode, device_target, device_id if device_id is not None else _local(0, 1)[0])
        if not run_distribute:
            yield World()
            return
        world = _join()
        yield world
        world.barrier()  # nobody leaves while another still needs the collectives
    except BaseException:
        if scheduler is not None:
            scheduler.kill()
        raise


def set_context(mode: str, device_target: str, device_id: int = 0) -> None:
    """Set execution mode and device of MindSpore.

    Raises:
        UserError: If the device target is not usable on this machine.
    """
    import mindspore as ms

    try:
        ms.set_context(mode=ms.GRAPH_MODE if mode == "GRAPH" else ms.PYNATIVE_MODE)
        ms.set_device(device_target, device_id if device_target != "CPU" else 0)
        ms.dataset.config.set_prefetch_size(_PREFETCH)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device_target={device_target} cannot be used here: {reason}") from error


def _join() -> World:
    import mindspore as ms
    from mindspore import communication as comm
    from mindspore import nn, ops

    comm.init()
    rank, size = comm.get_rank(), comm.get_group_size()
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=size, global_rank=rank
    )

    class Reduce(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.all_reduce = ops.AllReduce()

        def construct(self, x: Any) -> Any:
            return self.all_reduce(x)

    local_rank, local_size = _local(rank, size)
    return World(rank, size, local_rank, local_size, Reduce())


def _local(rank: int, size: int) -> tuple[int, int]:
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        return int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]), int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    local_size = int(os.environ.get("MS_LOCAL_WORKER_NUM", size))
    return rank % local_size, local_size


def _start_under_mpi() -> subprocess.Popen[bytes] | None:
    """Start the scheduler from rank 0 and point every rank of ``MPI.COMM_WORLD`` to it."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    scheduler, address, problem = None, ("", 0), ""
    if rank == 0:
        host = "127.0.0.1" if _one_host() else _own_address()
        address = (host, _free_port(host))
        scheduler = _start_scheduler(address, size)
        # Exit handlers run last in, first out: registered before MindSpore's import, this one waits after MindSpore
        # has unregistered this rank.
        atexit.register(_await_end, scheduler)
        problem = _wait_for_scheduler(scheduler, address)
    address, problem = world.bcast((address, problem), root=0)
    if problem:
        raise UserError(problem)
    os.environ.update(_scheduler_variables(address, size), MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank))
    return scheduler


def _scheduler_variables(address: tuple[str, int], size: int) -> dict[str, str]:
    return {"MS_WORKER_NUM": str(size), "MS_SCHED_HOST": address[0], "MS_SCHED_PORT": str(address[1])}


def _start_scheduler(address: tuple[str, int], size: int) -> subprocess.Popen[bytes]:
    # With MPI's variables the child would take itself for a rank.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    env.update(_scheduler_variables(address, size), MS_ROLE="MS_SCHED", MS_NODE_ID="sched")
    return subprocess.Popen(
        [sys.executable, "-c", _SCHEDULER_CODE],
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal reaches the ranks, which then end the scheduler
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_for_scheduler(scheduler: subprocess.Popen[bytes], address: tuple[str, int]) -> str:
    """Wait until the scheduler listens; ranks that ask too early wait for seconds. Returns the problem, if any."""
    deadline = time.monotonic() + _SCHEDULER_START_S
    while time.monotonic() < deadline:
        if scheduler.poll() is not None:
            return f"MindSpore's scheduler ended at its start with exit code {scheduler.returncode}"
        if _listens(address[1]):
            return ""
        time.sleep(0.05)
    scheduler.kill()
    return f"MindSpore's scheduler did not listen on {address[0]}:{address[1]} within {_SCHEDULER_START_S:.0f} s"


def _listens(port: int) -> bool:
    """Whether a socket of this host listens on the port.

    Asked of the kernel, since a test connection would count as a worker that went away.
    """
    listening = "0A"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with Path(table).open() as lines:
                next(lines)
                for line in lines:
                    fields = line.split()
                    if fields[3] == listening and int(fields[1].rsplit(":", 1)[1], 16) == port:
                        return True
        except FileNotFoundError:
            continue
    return False


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _one_host() -> bool:
    return os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == os.environ.get("OMPI_COMM_WORLD_SIZE")


def _own_address() -> str:
    """The address by which other hosts reach this one: ``GCP_SCHEDULER_HOST``, or that of the host's name."""
    return os.environ.get("GCP_SCHEDULER_HOST") or socket.gethostbyname(socket.gethostname())


def _await_end(scheduler: subprocess.Popen[bytes]) -> None:
    try:  # it ends by itself when the last worker has said goodbye
        scheduler.wait(_SCHEDULER_STOP_S)
    except subprocess.TimeoutExpired:
        scheduler.kill()
        scheduler.wait()
