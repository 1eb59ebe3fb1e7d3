"""Inference from exported files against PyTorch: the same network, weights and images, in interleaved runs.

    python -m benchmarks.inference --output docs/benchmarks      writes inference.json and inference.md there

Every runtime lives in a process of its own, so that no thread of one spins while another is measured. In each round
every runtime computes for about the same time; the rounds' medians are reported. All logits are compared first.
Needs torch beside the project's requirements; torch.compile needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import CORES, Worker

RUNTIMES = ("mindir", "onnx", "torch", "torch_compile")
TITLES = {
    "mindir": "MindIR, MindSpore",
    "onnx": "ONNX, ONNX Runtime",
    "torch": "PyTorch eager, channels-last",
    "torch_compile": "PyTorch torch.compile",
}
PACKAGES = ("mindspore", "onnx", "onnxruntime", "torch", "numpy")
Run = Callable[[], np.ndarray]


def images(batch: int, size: int) -> np.ndarray:
    """Normally distributed images, the same in every process."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)


def prepare(connection: Connection, folder: Path, name: str, pooling: str, size: int) -> None:
    """Write both files and the weights of a freshly initialised network; send what the check of the files says."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from covpool.export import export_network
    from covpool.models import create_model

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    network = create_model(name, pooling=pooling)
    np.savez(folder / "weights.npz", **{p.name: p.asnumpy() for p in network.get_parameters()})
    for file_format in ("MINDIR", "ONNX"):
        export_network(network, folder / "net", file_format, images(6, size), {})
    connection.send("ready")


def exported(path: Path) -> Callable[[np.ndarray], Run]:
    """A runner of an exported file."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from covpool.export import open_exported

    ms.set_context(mode=ms.GRAPH_MODE)
    model = open_exported(path)
    return lambda x: lambda: model(x)


def pytorch(folder: Path, name: str, pooling: str, compiled: bool) -> Callable[[np.ndarray], Run]:
    """A runner of the PyTorch network in channels-last order, without autograd."""
    import torch

    from benchmarks.torch_networks import Network, load_weights

    torch.set_num_threads(CORES)
    network = load_weights(Network(name, pooling), np.load(folder / "weights.npz")).eval()
    network = network.to(memory_format=torch.channels_last)
    function = torch.compile(network, dynamic=False) if compiled else network

    def runner(x: np.ndarray) -> Run:
        tensor = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return function(tensor).numpy()

        return run

    return runner


def work(connection: Connection, runtime: str, folder: Path, name: str, pooling: str, size: int) -> None:
    """Answer ("load", batch) with logits and ("time", seconds) with seconds per batch."""
    if runtime in ("mindir", "onnx"):
        runner = exported(folder / f"net.{runtime}")
    else:
        runner = pytorch(folder, name, pooling, runtime == "torch_compile")
    current: list[Run] = []

    def load(batch: int) -> np.ndarray:
        current[:] = [runner(images(batch, size))]
        current[0]()
        return current[0]()

    measure.serve(connection, load=load, time=lambda seconds: measure.median_time(current[0], seconds))


def compare(arguments: argparse.Namespace, name: str, pooling: str) -> list[dict[str, Any]]:
    """All batch sizes of one network."""
    records = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        Worker(prepare, folder, name, pooling, arguments.image_size).ask()
        flop, _ = Worker(measure.network_work, name, pooling, arguments.image_size).ask()
        case = (folder, name, pooling, arguments.image_size)
        workers = {runtime: Worker(work, runtime, *case) for runtime in arguments.runtimes}
        for batch in arguments.batches:
            logits = {runtime: worker.ask("load", batch) for runtime, worker in workers.items()}
            expected = logits[arguments.runtimes[-1]]
            times = measure.interleave(workers, arguments.rounds, "time", arguments.seconds)
            for runtime, seconds in times.items():
                found = measure.summary([batch / value for value in seconds])
                difference = np.abs(logits[runtime] - expected).max() / np.abs(expected).max()
                case_of = {"network": name, "pooling": pooling, "batch": batch, "runtime": runtime}
                rate = {"images_per_second": found, "flops": flop * found["median"], "difference": float(difference)}
                records.append({**case_of, **rate})
                measure.say(f"{name} {pooling} batch {batch} {runtime}: {measure.shown(found)} images/s")
        for worker in workers.values():
            worker.stop()
    return records


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, a line for each network, pooling and batch size."""
    records, peak = report["results"], report["about"]["peak_flops"]
    runtimes = list(dict.fromkeys(r["runtime"] for r in records))
    peers = [r for r in ("torch", "torch_compile") if r in runtimes]
    own = [r for r in ("mindir", "onnx") if r in runtimes]
    head = ["network", "pooling", "batch", *(TITLES[r] for r in runtimes)]
    head += [f"{TITLES[r]} / {TITLES[peer]}" for r in own for peer in peers]
    rows = []
    for case in dict.fromkeys((r["network"], r["pooling"], r["batch"]) for r in records):
        row = {r["runtime"]: r for r in records if (r["network"], r["pooling"], r["batch"]) == case}
        cells = [str(part) for part in case]
        for r in runtimes:
            cells.append(f"{measure.shown(row[r]['images_per_second'])}, {row[r]['flops'] / peak:.0%}")
        speed = {r: row[r]["images_per_second"]["median"] for r in runtimes}
        rows.append([*cells, *(f"{speed[r] / speed[peer]:.2f}" for r in own for peer in peers)])
    worst = max(r["difference"] for r in records)
    lines = [
        "# Inference from exported files",
        "",
        *measure.heading(report["about"]),
        "Images per second: median (± half of the rounds' interquartile range), share of the best matrix product.",
        "",
        *measure.table(head, rows),
        "",
        f"Largest difference between the logits of all: {worst:.1e} of the largest logit.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--poolings", nargs="+", default=["gap", "dropcov", "fast_mpn"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default: 12)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each runtime in each round (default: 1)")
    parser.add_argument("--image_size", type=int, default=224)
    arguments = parser.parse_args()
    about = measure.environment(PACKAGES, size=arguments.image_size, rounds=arguments.rounds)
    measure.compare_networks(arguments, "inference", about, compare, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
