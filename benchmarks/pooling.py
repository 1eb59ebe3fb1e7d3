"""Poolings against PyTorch: the same features, in interleaved runs, values and gradients compared first.

    python benchmarks/pooling.py --output docs/benchmarks     writes pooling.json, pooling.md and pooling.png there

Each runtime lives in a process of its own, so that no thread of one spins while another is measured. In every round
each of them works for the same time on the same case; a round gives the median of its calls, a case the median over
rounds. Evaluation is a forward pass; training is a forward pass and a backward pass, from a given gradient of the
result to the features and all parameters. Times are microseconds per image. Needs torch beside the requirements.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RUNTIMES = {"mindspore": "MindSpore", "torch": "PyTorch, eager", "released": "PyTorch, released steps"}
RELEASED = ("gcp", "dropcov", "fast_mpn")
PACKAGES = ("mindspore", "torch", "numpy")
SIDE = 14
Run = Callable[[], Any]


def data(batch: int, d: int) -> Tuple[np.ndarray, np.ndarray]:
    """Features as a network gives them (rectified, correlated) and a gradient of the result."""
    rng = np.random.default_rng(0)
    mixing = np.eye(d) + 0.5 * rng.standard_normal((d, d)) / np.sqrt(d)
    x = np.maximum(mixing @ rng.standard_normal((batch, d, SIDE * SIDE)) + 0.3, 0)
    return x.reshape(batch, d, SIDE, SIDE).astype(np.float32), rng.standard_normal((batch, d * (d + 1) // 2))


def mindspore_runner(threads: int) -> Callable[[str, int, int, bool], Run]:
    """Makes runs of the project's poolings in graph mode: `(name, d, batch, training) -> run`."""
    from src.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms
    from mindspore import nn, ops

    from src.pooling import create_pooling

    ms.set_context(mode=ms.GRAPH_MODE, runtime_num_threads=threads)

    class Step(nn.Cell):
        """The result and the gradients with respect to features and parameters."""

        def __init__(self, pooling: nn.Cell) -> None:
            super().__init__(auto_prefix=False)
            self.pooling = pooling
            self.weights = ms.ParameterTuple(pooling.trainable_params())

        def construct(self, x: Any, g: Any) -> Any:
            if not self.weights:
                out, backward = ops.vjp(self.pooling, x)
                return out, backward(g)[0]
            out, backward = ops.vjp(self.pooling, x, weights=self.weights)
            grads, of_weights = backward(g)
            return out, grads[0], of_weights

    def make(name: str, d: int, batch: int, training: bool) -> Run:
        x, g = data(batch, d)
        if name == "nothing":
            one, empty = ms.Tensor(np.zeros(1, np.float32)), nn.ReLU()
            return lambda: (empty(one),)
        cell = create_pooling(name, d).set_train(training)
        if name == "dropcov":
            cell.conv.weight.set_data(ms.Tensor(np.array([[[0.3, -0.2, 0.5]]], np.float32)))
        features, weights = ms.Tensor(x), ms.Tensor(g[:, : cell.out_features].astype(np.float32))
        if not training:
            return lambda: (cell(features),)
        step = Step(cell)
        return lambda: step(features, weights)[:2]

    return make


def torch_runner(threads: int, released: bool) -> Callable[[str, int, int, bool], Run]:
    """Makes runs of PyTorch's poolings: `(name, d, batch, training) -> run`."""
    import torch

    torch.set_num_threads(threads)
    if released:
        from benchmarks.torch_released import poolings
    else:
        from benchmarks.torch_poolings import poolings

    def make(name: str, d: int, batch: int, training: bool) -> Run:
        if name == "nothing":
            one = torch.zeros(1)
            return lambda: (torch.relu(one),)
        x, g = data(batch, d)
        function = poolings(d)[name]
        features = torch.from_numpy(x).flatten(2)
        with torch.no_grad():
            length = function(features[:2], False).shape[1]
        weights = torch.from_numpy(g[:, :length].astype(np.float32))
        leaf = features.clone().requires_grad_()

        def evaluate() -> Tuple[torch.Tensor]:
            with torch.no_grad():
                return (function(features, False),)

        def train() -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
            leaf.grad = None
            out = function(leaf, True)
            out.backward(weights)
            return out.detach(), leaf.grad

        return train if training else evaluate

    return make


def runner(runtime: str, threads: int) -> Callable[[str, int, int, bool], Run]:
    """The maker of runs of a runtime."""
    return mindspore_runner(threads) if runtime == "mindspore" else torch_runner(threads, runtime == "released")


def array(tensor: Any) -> np.ndarray:
    """A result as an array, gradients flattened over positions."""
    value = tensor.asnumpy() if hasattr(tensor, "asnumpy") else tensor.numpy()
    return value.reshape(*value.shape[:2], -1) if value.ndim > 2 else value


def serve(connection: Connection, runtime: str, threads: int, batch: int) -> None:
    """A worker: prepares cases, runs them for a while on demand, sends times and results."""
    make = runner(runtime, threads)
    run: Run = make("nothing", 1, batch, False)
    while True:
        order, argument = connection.recv()
        if order == "stop":
            return
        if order == "prepare":
            name, d, training = argument
            run = make(name, d, batch, training)
            connection.send([array(t) for t in run()] if d else [])
        else:
            times: List[float] = []
            end = time.perf_counter() + argument
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            connection.send(times)


def peak_memory(connection: Connection, runtime: str, threads: int, name: str, d: int, batch: int) -> None:
    """Bytes that training steps take beyond a process that has run the same ones with a single image."""
    make = runner(runtime, threads)
    small = make(name, d, 1, True)
    for _ in range(3):
        small()
    large = make(name, d, batch, True)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for _ in range(5):
        large()
    connection.send(_status("VmHWM") - before)


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {key}.")
    return int(found.group(1)) * 1024


def start(target: Callable, *arguments: Any) -> Tuple[Any, Connection]:
    """A process of its own and the connection to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    return process, here


def differences(results: Dict[str, List[np.ndarray]]) -> List[float]:
    """Largest difference to the peer for value and gradient, relative to the largest entry."""
    ours, peer = results["mindspore"], results["torch"]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, peer)]


def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """All cases, interleaved."""
    workers = {r: start(serve, r, args.threads, args.batch)[1] for r in RUNTIMES}
    cases: List[Dict[str, Any]] = []
    plan = [("nothing", 0, False)] + [
        (name, d, training) for d in args.channels for name in args.poolings for training in (False, True)
    ]
    for name, d, training in plan:
        used = [r for r in workers if r != "released" or name in RELEASED or not d]
        results = {}
        for r in used:
            workers[r].send(("prepare", (name, d, training)))
            results[r] = workers[r].recv()
        rounds: Dict[str, List[float]] = {r: [] for r in used}
        best = {r: float("inf") for r in used}
        for i in range(args.rounds + 1):
            for r in used:
                workers[r].send(("time", args.seconds))
                times = workers[r].recv()
                if i:  # the first round warms up
                    rounds[r].append(statistics.median(times))
                    best[r] = min(best[r], *times)
        scale = 1e6 / (args.batch if d else 1)
        case: Dict[str, Any] = {"pooling": name, "d": d, "phase": "training" if training else "evaluation"}
        for r in used:
            low, middle, high = np.quantile(rounds[r], [0.1, 0.5, 0.9]) * scale
            case[r] = {"median": middle, "p10": low, "p90": high, "best": best[r] * scale, "rounds": len(rounds[r])}
        for r in used[1:]:
            case[f"ratio to {r}"] = case["mindspore"]["median"] / case[r]["median"]
            case[f"best ratio to {r}"] = case["mindspore"]["best"] / case[r]["best"]
        if d and not (name == "dropcov" and training):  # masks differ
            case["differences"] = differences(results)
        cases.append(case)
        print(summary(case), flush=True)
    for connection in workers.values():
        connection.send(("stop", None))
    return {"cases": cases}


def measure_memory(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Peak memory of training, one process for each number."""
    d, found = max(args.channels), []
    for name in (n for n in RELEASED if n in args.poolings):
        entry: Dict[str, Any] = {"pooling": name, "d": d, "batch": args.memory_batch}
        for r in RUNTIMES:
            process, connection = start(peak_memory, r, args.threads, name, d, args.memory_batch)
            entry[r] = connection.recv()
            process.join()
        found.append(entry)
        print(entry, flush=True)
    return found


def summary(case: Dict[str, Any]) -> str:
    """One line for a case."""
    parts = [f"{case['pooling']:>10} d={case['d']:<4} {case['phase']:<10}"]
    parts += [f"{r} {case[r]['median']:8.1f}" for r in RUNTIMES if r in case]
    parts += [f"/{r} {case[f'ratio to {r}']:.2f}" for r in RUNTIMES if f"ratio to {r}" in case]
    if "differences" in case:
        parts.append("differences " + " ".join(f"{e:.0e}" for e in case["differences"]))
    return "  ".join(parts)


def environment(args: argparse.Namespace) -> Dict[str, Any]:
    """What the numbers depend on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "batch": args.batch,
        "positions": SIDE * SIDE,
        "seconds per round": args.seconds,
        "load at start": os.getloadavg()[0],
        "python": platform.python_version(),
        **{p: importlib.metadata.version(p) for p in PACKAGES},
    }


def overhead(cases: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """DropCov over plain pooling, of the same run."""
    by_key = {(c["pooling"], c["d"], c["phase"]): c for c in cases}
    rows = []
    for (name, d, phase), case in by_key.items():
        plain = by_key.get(("gcp", d, phase))
        if name == "dropcov" and plain:
            rows.append({"d": d, "phase": phase} | {r: case[r]["median"] / plain[r]["median"] for r in RUNTIMES})
    return rows


def markdown(report: Dict[str, Any]) -> str:
    """The report as tables."""
    lines = ["# Poolings against PyTorch", ""]
    lines += [f"* {key}: {value}" for key, value in report["environment"].items()]
    lines += [
        "",
        "Microseconds per image: median over rounds (10th to 90th percentile); ratios below 1 favour MindSpore.",
    ]
    lines += ["The fixed cost of a call is contained in every number, divided by the batch.", ""]
    head = [
        "pooling",
        "d",
        "phase",
        *RUNTIMES.values(),
        "ratio to eager",
        "ratio to released",
        "value / gradient differ by",
    ]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for case in report["cases"]:
        if not case["d"]:
            continue
        cells = [case["pooling"], str(case["d"]), case["phase"]]
        for r in RUNTIMES:
            v = case.get(r)
            cells.append(f"{v['median']:.1f} ({v['p10']:.1f}-{v['p90']:.1f})" if v else "")
        cells += [f"{case[k]:.2f}" if k in case else "" for k in ("ratio to torch", "ratio to released")]
        cells.append(" / ".join(f"{e:.0e}" for e in case.get("differences", [])))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Fixed cost of one call, microseconds", ""]
    for case in report["cases"]:
        if not case["d"]:
            lines += [f"* {RUNTIMES[r]}: {case[r]['median']:.1f}" for r in RUNTIMES]
    lines += ["", "## DropCov over plain pooling", "", "Published: 1.03 in training, 1.00 in evaluation.", ""]
    lines += ["| d | phase | " + " | ".join(RUNTIMES.values()) + " |", "|" + " --- |" * (2 + len(RUNTIMES))]
    for row in report["dropcov over plain"]:
        lines.append(f"| {row['d']} | {row['phase']} | " + " | ".join(f"{row[r]:.2f}" for r in RUNTIMES) + " |")
    lines += ["", "## Peak memory of training, MiB beyond a run with one image", ""]
    lines += ["| pooling | d | batch | " + " | ".join(RUNTIMES.values()) + " |", "|" + " --- |" * (3 + len(RUNTIMES))]
    for row in report["memory"]:
        sizes = " | ".join(f"{row[r] / 2**20:.0f}" for r in RUNTIMES)
        lines.append(f"| {row['pooling']} | {row['d']} | {row['batch']} | {sizes} |")
    return "\n".join(lines) + "\n"


def chart(report: Dict[str, Any], path: Path) -> None:
    """A bar for each runtime and pooling, a panel for each d and phase."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [c for c in report["cases"] if c["d"]]
    widths, phases = sorted({c["d"] for c in cases}), ("evaluation", "training")
    figure, axes = pyplot.subplots(len(widths), 2, figsize=(14, 3.2 * len(widths)), squeeze=False)
    for axis, d, phase in ((axes[i][j], d, p) for i, d in enumerate(widths) for j, p in enumerate(phases)):
        shown = [c for c in cases if c["d"] == d and c["phase"] == phase]
        for k, (r, title) in enumerate(RUNTIMES.items()):
            places = [i + 0.27 * (k - 1) for i, c in enumerate(shown) if r in c]
            axis.bar(places, [c[r]["median"] for c in shown if r in c], 0.27, label=title)
        axis.set_xticks(range(len(shown)), [c["pooling"] for c in shown], rotation=45, ha="right")
        axis.set_yscale("log")
        axis.set_title(f"d = {d}, {phase}")
        axis.set_ylabel("µs per image")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: Optional[List[str]] = None) -> None:
    """Measure, write the three files."""
    from src.pooling import list_poolings

    parser = argparse.ArgumentParser(description="Poolings against PyTorch.")
    parser.add_argument("--output", type=Path, help="folder for pooling.json, pooling.md and pooling.png")
    parser.add_argument("--poolings", nargs="+", default=list_poolings(), choices=list_poolings())
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory_batch", type=int, default=64, help="0 leaves the memory out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.15, help="work of a runtime in one round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    report = {"environment": environment(args), **measure(args)}
    report["dropcov over plain"] = overhead(report["cases"])
    report["memory"] = measure_memory(args) if args.memory_batch else []
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "pooling.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (args.output / "pooling.md").write_text(markdown(report), encoding="utf-8")
        chart(report, args.output / "pooling.png")


if __name__ == "__main__":
    main()
