"""Inference from exported files against PyTorch: the same network, weights and images, in interleaved runs.

    python benchmarks/inference.py --output docs/inference            writes docs/inference.json and docs/inference.md

Every runtime lives in a process of its own, so that no thread of one spins while another is measured. In each round
every runtime computes for about the same time; the rounds' medians are reported. All logits are compared first.
Needs torch beside the project's requirements; torch.compile needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RUNTIMES = ("mindir", "onnx", "torch", "torch_compile")
TITLES = {
    "mindir": "MindIR, MindSpore",
    "onnx": "ONNX, ONNX Runtime",
    "torch": "PyTorch eager, channels-last",
    "torch_compile": "PyTorch torch.compile",
}
CORES = len(os.sched_getaffinity(0))
PACKAGES = ("mindspore", "onnx", "onnxruntime", "torch", "numpy")
Run = Callable[[], np.ndarray]


def images(batch: int, size: int) -> np.ndarray:
    """Normally distributed images, the same in every process."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)


def prepare(connection: Connection, folder: Path, name: str, pooling: str, size: int) -> None:
    """Write both files and the weights of a freshly initialised network; send what the check of the files says."""
    from src.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from src.export import export_network
    from src.models import create_model

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    network = create_model(name, pooling=pooling)
    np.savez(folder / "weights.npz", **{p.name: p.asnumpy() for p in network.get_parameters()})
    for file_format in ("MINDIR", "ONNX"):
        export_network(network, folder / "net", file_format, images(6, size), {})
    connection.send("ready")


def exported(path: Path) -> Callable[[np.ndarray], Run]:
    """A runner of an exported file."""
    from src.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from src.export import open_exported

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


def serve(connection: Connection, runtime: str, folder: Path, name: str, pooling: str, size: int) -> None:
    """Answer ("load", batch) with logits and ("time", seconds) with seconds per batch, until None comes."""
    if runtime in ("mindir", "onnx"):
        runner = exported(folder / f"net.{runtime}")
    else:
        runner = pytorch(folder, name, pooling, runtime == "torch_compile")
    run: Run = lambda: np.empty(0)  # noqa: E731 - replaced by the first "load"
    for command, value in iter(connection.recv, None):
        if command == "load":
            run = runner(images(value, size))
            run()
            connection.send(run())
            continue
        run()  # wakes the threads up
        times: list[float] = []
        while not times or sum(times) < value:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        connection.send(statistics.median(times))


def machine_peak(connection: Connection) -> None:
    """Send the rate of a product of float32 matrices, in FLOP per second."""
    import torch

    torch.set_num_threads(CORES)
    a = torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    connection.send(2 * 2048**3 / best)


def work(connection: Connection, name: str, pooling: str, size: int) -> None:
    """Send the FLOP of one image (a multiply-add is two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.torch_networks import Network

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        Network(name, pooling).eval()(torch.zeros(1, 3, size, size))
    connection.send(counter.get_total_flops())


class Worker:
    """A function in a process of its own, with a connection as its first argument."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=function, args=(other, *arguments), daemon=True)
        self.process.start()
        other.close()

    def ask(self, *command: Any) -> Any:
        """Send a command (if any) and wait for the answer."""
        if command:
            self.connection.send(command)
        try:
            return self.connection.recv()
        except EOFError:
            raise SystemExit("a process of the benchmark has ended; its error is above") from None

    def stop(self) -> None:
        """Tell the process to end and wait for it."""
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()


def measure(arguments: argparse.Namespace, name: str, pooling: str) -> list[dict[str, Any]]:
    """All batch sizes of one network."""
    records = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        Worker(prepare, folder, name, pooling, arguments.image_size).ask()
        flop = Worker(work, name, pooling, arguments.image_size).ask()
        case = (folder, name, pooling, arguments.image_size)
        workers = {runtime: Worker(serve, runtime, *case) for runtime in arguments.runtimes}
        for batch in arguments.batches:
            logits = {runtime: worker.ask("load", batch) for runtime, worker in workers.items()}
            expected = logits[arguments.runtimes[-1]]
            times: dict[str, list[float]] = {runtime: [] for runtime in workers}
            for index in range(arguments.rounds):
                shift = index % len(workers)  # nobody always comes after the same one
                order = [*arguments.runtimes[shift:], *arguments.runtimes[:shift]]
                for runtime in order:
                    times[runtime].append(workers[runtime].ask("time", arguments.seconds))
            for runtime, seconds in times.items():
                middle = statistics.median(seconds)
                lower, _, upper = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (middle,) * 3
                difference = np.abs(logits[runtime] - expected).max() / np.abs(expected).max()
                records.append(
                    {
                        "network": name,
                        "pooling": pooling,
                        "batch": batch,
                        "runtime": runtime,
                        "milliseconds": 1e3 * middle,
                        "spread": (upper - lower) / middle,
                        "rounds": seconds,
                        "images_per_second": batch / middle,
                        "flops": flop * batch / middle,
                        "difference": float(difference),
                    }
                )
                print(json.dumps({k: v for k, v in records[-1].items() if k != "rounds"}), flush=True)
        for worker in workers.values():
            worker.stop()
    return records


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, a line for each network, pooling and batch size."""
    records = report["results"]
    runtimes = list(dict.fromkeys(r["runtime"] for r in records))
    peers = [r for r in ("torch", "torch_compile") if r in runtimes]
    lines = [
        f"{report['date']}, {report['machine']}, {report['cores']} cores, {report['image_size']} x "
        f"{report['image_size']} pixels, {report['rounds']} interleaved rounds; "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
        + f". Best rate of a float32 matrix product: {report['peak_flops'] / 1e9:.0f} GFLOP/s.",
        "",
        "Images per second, median (spread: interquartile range of the rounds; share of the machine's peak).",
        "",
    ]
    ratios = [f"{TITLES[own]} / {TITLES[peer]}" for own in ("mindir", "onnx") if own in runtimes for peer in peers]
    head = ["network", "pooling", "batch", *(TITLES[r] for r in runtimes), *ratios]
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    cases = list(dict.fromkeys((r["network"], r["pooling"], r["batch"]) for r in records))
    for case in cases:
        row = {r["runtime"]: r for r in records if (r["network"], r["pooling"], r["batch"]) == case}
        cells = [str(part) for part in case]
        for runtime in runtimes:
            r = row[runtime]
            cells.append(
                f"{r['images_per_second']:.1f} (±{r['spread'] / 2:.0%}; {r['flops'] / report['peak_flops']:.0%})"
            )
        for own in ("mindir", "onnx"):
            if own in row:
                cells += [f"{row[own]['images_per_second'] / row[peer]['images_per_second']:.2f}" for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    worst = max(r["difference"] for r in records)
    lines += ["", f"Largest difference between the logits of all: {worst:.1e} of the largest logit."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--poolings", nargs="+", default=["gap", "dropcov", "fast_mpn"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds (default: 12)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each runtime in each round (default: 1)")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    arguments = parser.parse_args()
    peaks = [Worker(machine_peak).ask()]
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {_processor()}",
        "cores": CORES,
        "image_size": arguments.image_size,
        "rounds": arguments.rounds,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "results": [],
    }
    for name in arguments.networks:
        for pooling in arguments.poolings:
            report["results"] += measure(arguments, name, pooling)
            peaks.append(Worker(machine_peak).ask())
    report["peak_flops"] = max(peaks)
    print("\n" + markdown(report))
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    return 0


def _processor() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
