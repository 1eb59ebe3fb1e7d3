"""Data-parallel worlds: one process, ``mpirun`` or ``msrun``.

On GPU and Ascend the native back ends (NCCL, HCCL) do all that is needed. MindSpore's CPU collectives need a scheduler
process besides: ``msrun`` brings it, under ``mpirun`` ``scheduler.py`` does.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from covpool.errors import UserError
from covpool.runtime.environment import available_cores
from covpool.runtime.scheduler import join_under_mpi, joined
from covpool.runtime.watch import stop_watcher

if TYPE_CHECKING:  # NumPy starts threads, which must not happen before signals are arranged for
    import numpy as np

Collective = Callable[["np.ndarray"], "np.ndarray"]
_PREFETCH = 4  # rows that a stage of the data pipeline keeps ready; MindSpore's 16 hold a gigabyte of batches


@dataclass(frozen=True)
class World:
    """The ranks of a job, seen from one of them: ``rank`` of ``size``, from 0; on this host ``local_rank``."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    _sum: Collective = field(default=lambda values: values, repr=False, compare=False)
    _gather: Collective = field(default=lambda row: row[None], repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes for the job."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum float64 ``values`` of one shape over all ranks; every rank must call it and gets the result."""
        return values if self.size == 1 else self._sum(values.astype("float64"))

    def gather(self, row: np.ndarray) -> np.ndarray:
        """The rows of all ranks in their order, on every rank: (n,) -> (size, n), float64; every rank must call it."""
        return self._gather(row.astype("float64"))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        import numpy as np

        self.sum(np.zeros(1))


def launched_ranks() -> tuple[str, int]:
    """How this process was launched and with how many ranks: ('mpirun', n), ('msrun', n) or ('', 1)."""
    if "MS_ROLE" in os.environ and "MS_WORKER_NUM" in os.environ:
        return "msrun", int(os.environ["MS_WORKER_NUM"])
    if "OMPI_COMM_WORLD_SIZE" in os.environ:
        return "mpirun", int(os.environ["OMPI_COMM_WORLD_SIZE"])
    return "", 1


def check_launch(run_distribute: bool, device_num: int) -> None:
    """Compare the configuration with how the job was launched; a contradiction is a UserError with exit code 2."""
    launcher, ranks = launched_ranks()
    if run_distribute and not launcher:
        raise UserError(
            f"run_distribute=True needs a launcher: mpirun -n {max(device_num, 2)} python train.py ... "
            "(or msrun); this process was started alone",
            2,
        )
    if run_distribute and ranks != device_num:
        raise UserError(f"device_num={device_num}, but {launcher} started {ranks} ranks; make them equal", 2)
    if not run_distribute and ranks > 1:
        raise UserError(
            f"{launcher} started {ranks} ranks, but run_distribute is False: each would train alone; "
            f"add --run_distribute=True --device_num={ranks}",
            2,
        )


@contextmanager
def session(
    mode: str = "GRAPH",
    device_target: str = "CPU",
    device_id: int | None = None,
    run_distribute: bool = False,
    device_num: int = 1,
    rank_timeout: float = 300.0,
) -> Iterator[World]:
    """Set the device context and join the job that the launcher made, or be a world of one.

    MindSpore is told to train data-parallel with averaged gradients. Nothing of the job outlives it: the scheduler
    ends with rank 0, however that ends. The program ends with :func:`leave`. Arguments are those of the configuration;
    the device is by default that of the local rank. A UserError says that the device is not there, or what the
    launcher contradicts.
    """
    check_launch(run_distribute, device_num)
    under_mpi = launched_ranks()[0] == "mpirun"  # asked before the variables of msrun are set as well
    if run_distribute and device_target == "CPU":
        # How long an all-reduce, and the scheduler that inherits this, wait for a rank that is late: 30 s if unset, and
        # the training would end with an error of the kernel. A rank that is lost is noticed before that.
        os.environ.setdefault("MS_NODE_TIMEOUT", str(math.ceil(rank_timeout) + 60))
    with _interruptible():
        if run_distribute and under_mpi and device_target == "CPU":
            join_under_mpi(rank_timeout)
        set_context(mode, device_target, device_id if device_id is not None else _local(0, 1)[0])
        world = _join(under_mpi) if run_distribute else World()
    yield world
    world.barrier()  # nobody leaves while another still needs the collectives


def leave(code: int) -> NoReturn:
    """End this process with an exit code; the last call of a program that opened a :func:`session`.

    Where this module started the scheduler, MindSpore's own way out is not taken: its cluster threads (2.8.0) crash
    now and then when a peer's connection closes while they are being torn down, and a finished job would end with a
    segmentation fault. Everything is written by now, so the process ends at once, and the scheduler with it.
    """
    if not joined.under_mpi:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    if joined.watcher is not None:
        stop_watcher(joined.watcher, *joined.watched)
    if code == 0:  # without it mpirun takes the job for failed, and ends the other ranks: right for any other code
        from mpi4py import MPI

        MPI.Finalize()
    if joined.scheduler is not None:
        joined.scheduler.kill()
        joined.scheduler.wait()
    os._exit(code)


def set_context(mode: str, device_target: str, device_id: int = 0) -> None:
    """Set execution mode and device of MindSpore, and no more threads than this process may use cores.

    MindSpore's runtime makes threads for all cores of the machine. They wait for each other actively: confined to one
    of 16 cores (`taskset`, a container, the jobs of a study) a training of 1100 images/s did not end a step in minutes.
    """
    import mindspore as ms

    try:
        ms.set_context(mode=ms.GRAPH_MODE if mode == "GRAPH" else ms.PYNATIVE_MODE)
        cores = available_cores()
        if cores < (os.cpu_count() or 1):
            ms.set_context(runtime_num_threads=cores)
        # Once something has been computed MindSpore refuses this call, even for the device that it computed on.
        if device_target != "CPU" or ms.get_context("device_target") != "CPU":
            ms.set_device(device_target, device_id if device_target != "CPU" else 0)
        ms.dataset.config.set_prefetch_size(_PREFETCH)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device_target={device_target} cannot be used here: {reason}") from error


def exact_convolutions() -> None:
    """Let convolutions on a GPU compute in float32, for comparisons; MindSpore's default is TF32, with 10 bits."""
    import mindspore as ms

    if ms.get_context("device_target") == "GPU":
        ms.set_context(gpu_config={"conv_allow_tf32": False})


def _join(under_mpi: bool) -> World:
    import mindspore as ms
    from mindspore import communication as comm

    with _without_chatter():
        comm.init()
    rank, size = comm.get_rank(), comm.get_group_size()
    mode = ms.ParallelMode.DATA_PARALLEL
    ms.set_auto_parallel_context(parallel_mode=mode, gradients_mean=True, device_num=size, global_rank=rank)
    collectives = _mpi_collectives() if under_mpi else _device_collectives(rank, size)
    return World(rank, size, *_local(rank, size), *collectives)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process within the block, also while MindSpore waits for other ranks with Python's lock."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _mpi_collectives() -> tuple[Collective, Collective]:
    """Sum and gather on the host: exact to float64 whatever the device's collectives can do."""
    import numpy as np
    from mpi4py import MPI

    def sum_ranks(values: np.ndarray) -> np.ndarray:
        result = np.empty_like(values)
        MPI.COMM_WORLD.Allreduce(np.ascontiguousarray(values), result)
        return result

    return sum_ranks, lambda row: np.stack(MPI.COMM_WORLD.allgather(row))


def _device_collectives(rank: int, size: int) -> tuple[Collective, Collective]:
    """Sum and gather where there is no MPI, exact to float64 by collectives that know float32 alone.

    MindSpore's all-reduce rounds float64 to float32 on CPU, and Ascend's has none. So every rank's values travel as
    three float32 parts in places of their own, where they are added to zeros, and are put together and summed here.
    """
    import numpy as np
    from mindspore import Tensor, nn, ops

    class Reduce(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.all_reduce = ops.AllReduce()

        def construct(self, x: Any) -> Any:
            return self.all_reduce(x)

    reduce = Reduce()

    def parts_of_ranks(values: np.ndarray) -> np.ndarray:
        rest = values.reshape(-1)
        parts = np.zeros((size, 3, rest.size), np.float32)
        for part in parts[rank]:
            part[:] = rest
            rest = rest - part
        return reduce(Tensor(parts)).asnumpy().astype(np.float64)

    def sum_ranks(values: np.ndarray) -> np.ndarray:
        return parts_of_ranks(values).sum((0, 1)).reshape(values.shape)

    return sum_ranks, lambda row: parts_of_ranks(row).sum(1)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back standard error and pass on all but the lines that MindSpore's sockets print at any log level."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile("w+b") as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines(keepends=True):
                if not line.startswith("[INFO] DISTRIBUTED"):
                    sys.stderr.write(line)


def _local(rank: int, size: int) -> tuple[int, int]:
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        return int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]), int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    local_size = int(os.environ.get("MS_LOCAL_WORKER_NUM", size))
    return rank % local_size, local_size
