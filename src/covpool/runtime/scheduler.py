"""The scheduler that MindSpore's CPU collectives need and plain ``mpirun`` does not provide."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from covpool.errors import UserError
from covpool.runtime.processes import python_command, start_apart
from covpool.runtime.watch import Post, open_listener, start_watcher

_SCHEDULER_START_S = 60.0
_SCHEDULER_CODE = """
import mindspore as ms
from mindspore.communication import init
ms.set_context(device_target="CPU")
init()
"""


@dataclass
class Joined:
    """What this process did to join a job."""

    under_mpi: bool = False  # whether the ranks of MPI.COMM_WORLD were pointed to a scheduler of this project
    scheduler: subprocess.Popen[bytes] | None = None  # in the process that started it
    watcher: subprocess.Popen[bytes] | None = None  # notices lost ranks
    watched: tuple[int, Post] = (0, Post())  # this rank, and where the watchers meet


# Like MPI.COMM_WORLD, one for each process.
joined = Joined()


def join_under_mpi(rank_timeout: float) -> None:
    """Start the scheduler from rank 0 and point every rank of ``MPI.COMM_WORLD`` to it.

    If it does not start, every rank raises a UserError.
    """
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    address, post, problem = ("", 0), Post(), ""
    listener = None
    joined.under_mpi = True
    if rank == 0:
        # The address by which other hosts reach this one, where there are any.
        one_host = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == os.environ.get("OMPI_COMM_WORLD_SIZE")
        named = os.environ.get("GCP_SCHEDULER_HOST")
        host = "127.0.0.1" if one_host else named or socket.gethostbyname(socket.gethostname())
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            address = (host, int(probe.getsockname()[1]))
        listener = open_listener(host)
        post = Post(listener.getsockname(), secrets.token_hex(16))
        joined.scheduler = _start_scheduler(address, size)
        problem = _wait_for_scheduler(joined.scheduler, address)
    address, post, problem = world.bcast((address, post, problem), root=0)
    if problem:
        raise UserError(problem)
    os.environ.update(_scheduler_variables(address, size), MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank))
    scheduler = joined.scheduler.pid if joined.scheduler else 0
    joined.watcher = start_watcher(rank, size, listener, post, rank_timeout, scheduler)
    joined.watched = (rank, post)


def _scheduler_variables(address: tuple[str, int], size: int) -> dict[str, str]:
    return {"MS_WORKER_NUM": str(size), "MS_SCHED_HOST": address[0], "MS_SCHED_PORT": str(address[1])}


def _start_scheduler(address: tuple[str, int], size: int) -> subprocess.Popen[bytes]:
    # With MPI's variables the child would take itself for a rank.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    env.update(_scheduler_variables(address, size), MS_ROLE="MS_SCHED", MS_NODE_ID="sched")
    return start_apart(python_command(_SCHEDULER_CODE), env=env)  # a Ctrl-C reaches the ranks, which then end it


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
    tables = [table for table in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if table.exists()]
    sockets = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return any(fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port for fields in sockets)
