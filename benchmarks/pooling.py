"""Poolings against PyTorch: the same features, in interleaved runs, values and gradients compared first.

Evaluation is a forward pass; training is a forward pass and a backward pass, from a given gradient of the result to the
features and all parameters. In every round each runtime works for the same time on the same case; figures are
microseconds per image, medians over rounds of the medians of the calls of a round. Writes pooling.md, pooling.json and
pooling.png. Needs torch beside the requirements.
"""

from __future__ import annotations

import argparse
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

import numpy as np

from benchmarks.measure import (
    CORES,
    Worker,
    arguments_of,
    environment,
    interleave,
    memory,
    report,
    say,
    serve,
)
from benchmarks.pooling_report import OURS, PEERS, RATIOS, RUNTIMES, chart, markdown, overhead

RELEASED = ("gcp", "dropcov", "fast_mpn")
PACKAGES = ("mindspore", "torch", "numpy")
SIDE = 14
Run = Callable[[], Any]


def data(batch: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Features as a network gives them (rectified, correlated) and a gradient of the result."""
    rng = np.random.default_rng(0)
    mixing = np.eye(d) + 0.5 * rng.standard_normal((d, d)) / np.sqrt(d)
    x = np.maximum(mixing @ rng.standard_normal((batch, d, SIDE * SIDE)) + 0.3, 0)
    return x.reshape(batch, d, SIDE, SIDE).astype(np.float32), rng.standard_normal((batch, d * (d + 1) // 2))


def gradient_step(pooling: Any) -> Any:
    """A cell that gives the pooling's result and the gradients with respect to features and parameters."""
    import mindspore as ms
    from mindspore import nn, ops

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

    return Step(pooling)


def mindspore_runner(threads: int, kernels: str) -> Callable[[str, int, int, bool], Run]:
    """Makes runs of the project's poolings in graph mode: `(name, d, batch, training) -> run`."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms
    from mindspore import nn

    from covpool.kernels import apply_cpu_kernels, find_kernels
    from covpool.pooling import create_pooling

    ms.set_context(mode=ms.GRAPH_MODE, runtime_num_threads=threads)

    def make(name: str, d: int, batch: int, training: bool) -> Run:
        x, g = data(batch, d)
        if name == "nothing":
            one, empty = ms.Tensor(np.zeros(1, np.float32)), nn.ReLU()
            return lambda: (empty(one),)
        cell = create_pooling(name, d).set_train(training)
        apply_cpu_kernels(cell, find_kernels(kernels), threads)
        if name == "dropcov":
            cell.conv.weight.set_data(ms.Tensor(np.array([[[0.3, -0.2, 0.5]]], np.float32)))
        features, weights = ms.Tensor(x), ms.Tensor(g[:, : cell.out_features].astype(np.float32))
        if not training:
            return lambda: (cell(features),)
        step = gradient_step(cell)
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

        def evaluate() -> tuple[torch.Tensor]:
            with torch.no_grad():
                return (function(features, False),)

        def train() -> tuple[torch.Tensor, torch.Tensor | None]:
            leaf.grad = None
            out = function(leaf, True)
            out.backward(weights)
            return out.detach(), leaf.grad

        return train if training else evaluate

    return make


def runner(runtime: str, threads: int) -> Callable[[str, int, int, bool], Run]:
    """The maker of runs of a runtime."""
    if runtime in OURS:
        return mindspore_runner(threads, runtime)
    return torch_runner(threads, runtime == "released")


def array(tensor: Any) -> np.ndarray:
    """A result as an array, gradients flattened over positions."""
    value = tensor.asnumpy() if hasattr(tensor, "asnumpy") else tensor.numpy()
    return value.reshape(*value.shape[:2], -1) if value.ndim > 2 else value


def worker(connection: Connection, runtime: str, threads: int, batch: int) -> None:
    """Prepares cases, and runs the last one for a while on demand."""
    make, runs = runner(runtime, threads), {}

    def prepare(name: str, d: int, training: bool) -> list[np.ndarray]:
        runs["last"] = make(name, d, batch, training)
        results = runs["last"]()
        return [array(t) for t in results] if d else []

    def times(seconds: float) -> list[float]:
        """Median and shortest time of a call."""
        found: list[float] = []
        end = time.perf_counter() + seconds
        while len(found) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            runs["last"]()
            found.append(time.perf_counter() - start)
        return [statistics.median(found), min(found)]

    serve(connection, prepare=prepare, times=times)


def peak_memory(connection: Connection, runtime: str, threads: int, name: str, d: int, batch: int) -> None:
    """Bytes that training steps take beyond a process that has run the same ones with a single image."""
    make = runner(runtime, threads)
    small = make(name, d, 1, True)
    for _ in range(3):
        small()
    large = make(name, d, batch, True)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for _ in range(5):
        large()
    connection.send(memory("VmHWM") - before)


def differences(results: dict[str, list[np.ndarray]]) -> list[float]:
    """Largest difference to the peer for value and gradient, relative to the largest entry."""
    peer = results["torch"]
    return [max(float(np.abs(results[r][i] - p).max() / np.abs(p).max()) for r in OURS) for i, p in enumerate(peer)]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases, interleaved."""
    workers = {r: Worker(worker, r, args.threads, args.batch) for r in RUNTIMES}
    cases = [measure_case(workers, args, "nothing", 0, False)]
    for d in args.channels:
        for name in args.poolings:
            cases += [measure_case(workers, args, name, d, training) for training in (False, True)]
    for process in workers.values():
        process.stop()
    return cases


def measure_case(
    workers: dict[str, Worker], args: argparse.Namespace, name: str, d: int, training: bool
) -> dict[str, Any]:
    """Times, ratios and differences of one case; d = 0 is a call that does nothing."""
    used = {r: w for r, w in workers.items() if r != "released" or name in RELEASED or not d}
    results = {r: w.ask("prepare", name, d, training) for r, w in used.items()}
    interleave(used, 1, "times", args.seconds)  # warms up
    rounds = interleave(used, args.rounds, "times", args.seconds)
    scale = 1e6 / (args.batch if d else 1)
    case: dict[str, Any] = {"pooling": name, "d": d, "phase": "training" if training else "evaluation"}
    for r in used:
        low, middle, high = np.quantile([median for median, _ in rounds[r]], [0.1, 0.5, 0.9]) * scale
        best = min(shortest for _, shortest in rounds[r]) * scale
        case[r] = {"median": middle, "p10": low, "p90": high, "best": best, "n": args.rounds}
    for ours in OURS:
        for peer in set(PEERS) & set(used):
            case[f"{ours} / {peer}"] = case[ours]["median"] / case[peer]["median"]
            case[f"best {ours} / {peer}"] = case[ours]["best"] / case[peer]["best"]
    if d and not (name == "dropcov" and training):  # masks differ
        case["differences"] = differences(results)
    times = "  ".join(f"{r} {case[r]['median']:.1f}" for r in used)
    say(f"{name} d={d} {case['phase']}: {times}  " + "  ".join(f"{k} {case[k]:.2f}" for k in RATIOS if k in case))
    return case


def measure_memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of training at the largest d, one process for each number."""
    d, found = max(args.channels), []
    for name in (n for n in RELEASED if n in args.poolings and args.memory_batch):
        entry: dict[str, Any] = {"pooling": name, "d": d, "batch": args.memory_batch}
        for r in RUNTIMES:
            process = Worker(peak_memory, r, args.threads, name, d, args.memory_batch)
            entry[r] = process.ask()
            process.process.join()
        found.append(entry)
        say(f"memory of {name}: " + ", ".join(f"{r} {entry[r] / 2**20:.0f} MiB" for r in RUNTIMES))
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, write the three files."""
    from covpool.pooling import list_poolings

    parser = arguments_of(__doc__)
    parser.add_argument("--poolings", nargs="+", default=list_poolings(), choices=list_poolings())
    parser.add_argument("--channels", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory_batch", type=int, default=64, help="0 leaves the memory out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.08, help="work of a runtime in one round")
    parser.add_argument("--threads", type=int, default=CORES)
    args = parser.parse_args(argv)
    settings = {key: getattr(args, key) for key in ("threads", "batch", "rounds", "seconds")}
    found: dict[str, Any] = {"about": environment(PACKAGES, positions=SIDE**2, **settings)}
    found["cases"] = measure(args)
    found["dropcov over plain"] = overhead(found["cases"])
    found["memory"] = measure_memory(args)
    report(args.output, "pooling", found, markdown)
    if args.output:
        chart(found["cases"][1:], args.output / "pooling.png")


if __name__ == "__main__":
    main()
