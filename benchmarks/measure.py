"""What the benchmarks share: processes of their own, interleaved rounds, statistics, the machine, reports.

What is compared lives in processes of their own, so that no thread of one spins while another is measured. In every
round each of them works once, in rotating order; figures are medians over the rounds, the spread is the interquartile
range of the rounds divided by their median.
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

import numpy as np

from covpool.research.tables import table as markdown_table
from covpool.runtime.command import new_parser
from covpool.runtime.environment import available_cores

ROOT = Path(__file__).resolve().parent.parent
CORES = available_cores()


class Worker:
    """A function in a process of its own, with a connection as its first argument; none outlives the benchmark."""

    _started: list[Worker] = []

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._started:  # after multiprocessing's own, so called before it, which would wait for ever
            atexit.register(self._end_all)
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=function, args=(other, *arguments))
        self.process.start()
        other.close()
        self._started.append(self)

    @classmethod
    def _end_all(cls) -> None:
        for worker in cls._started:
            if worker.process.is_alive():
                worker.process.terminate()

    def ask(self, *command: Any) -> Any:
        """Send a command (if any) and wait for the answer."""
        if command:
            self.connection.send(command)
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise SystemExit("a process of the benchmark has ended; its error is above") from None

    def stop(self) -> None:
        """Tell the process to end and wait for it."""
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()


def serve(connection: Connection, **functions: Callable[..., Any]) -> None:
    """Answer commands ``(name, *arguments)`` by calling functions, until None comes."""
    for name, *arguments in iter(connection.recv, None):
        connection.send(functions[name](*arguments))


def interleave(workers: Mapping[str, Worker], rounds: int, *command: Any) -> dict[str, list[Any]]:
    """Every worker's answers to a command, one a round; nobody always comes after the same one."""
    names = list(workers)
    answers: dict[str, list[Any]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in [*names[shift:], *names[:shift]]:
            answers[name].append(workers[name].ask(*command))
    return answers


def median_time(run: Callable[[], Any], seconds: float) -> float:
    """Median duration of calls over about this many seconds, at least one; one call before wakes the threads up."""
    run()
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, number and spread of the rounds, and the rounds."""
    middle = statistics.median(values)
    lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else (middle,) * 3
    return {"median": middle, "n": len(values), "spread": (upper - lower) / middle, "rounds": list(values)}


def shown(found: Mapping[str, Any], form: str = ".1f", scale: float = 1.0) -> str:
    """A summary for a table: the median and half of the spread."""
    return f"{found['median'] * scale:{form}} (±{found['spread'] / 2:.0%})"


def machine_peak(connection: Connection) -> None:
    """Send the best rate of a large float32 matrix product on all cores, in FLOP/s.

    By the libraries at hand: that of NumPy, that of PyTorch, and oneDNN, which computes it as a 1x1 convolution. On
    some processors one of them reaches but half of another.
    """
    import torch

    torch.set_num_threads(CORES)
    n = 2048
    a = torch.randn(n, n)
    as_image = a.reshape(1, n, n // 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = a.reshape(n, n, 1, 1).contiguous(memory_format=torch.channels_last)
    array = a.numpy()
    products = (
        lambda: torch.mm(a, a),
        lambda: torch.nn.functional.conv2d(as_image, kernel),
        lambda: np.matmul(array, array),
    )
    best = float("inf")
    with torch.inference_mode():
        for product in products:
            for _ in range(8):
                start = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - start)
    connection.send(2 * n**3 / best)


def network_work(connection: Connection, name: str, pooling: str, size: int, **options: Any) -> None:
    """Send the FLOP of one image, (evaluation, training); a multiply-add is two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.torch_networks import plain_network

    network, images = plain_network(name, pooling, **options), torch.zeros(2, 3, size, size)
    with FlopCounterMode(display=False) as training:
        network(images).sum().backward()
    with FlopCounterMode(display=False) as evaluation, torch.inference_mode():
        network.eval()(images)
    connection.send((evaluation.get_total_flops() / 2, training.get_total_flops() / 2))


def memory(key: str) -> int:
    """Bytes of this process: 'VmRSS' now, 'VmHWM' at most so far."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{key}:\s+(\d+) kB", text)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {key}")
    return int(found.group(1)) * 1024


def environment(packages: Sequence[str], **settings: Any) -> dict[str, Any]:
    """What figures depend on: date, command, machine, versions, and the settings given."""
    _at_start[:] = [time.monotonic(), _busy_seconds(), _own_seconds()]
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {_processor()}",
        "cores": CORES,
        "load at start": round(os.getloadavg()[0], 2),
        **settings,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


_at_start: list[float] = []  # time, busy and own processor seconds when the benchmark began


def _busy_seconds() -> float:
    """Processor seconds of all processes since the machine started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Processor seconds of this process and its children, those that have ended included."""
    import psutil

    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    alive = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    ended = sum(t.ru_utime + t.ru_stime for t in times)
    return ended + sum(t.user + t.system + t.children_user + t.children_system for t in alive)


def _others() -> float:
    """Share of the machine's processor time since the start that went to processes of others."""
    begun, busy, own = _at_start
    spent = _busy_seconds() - busy - (_own_seconds() - own)
    return max(0.0, spent / ((time.monotonic() - begun) * CORES))


def heading(about: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown that say what figures depend on."""
    lines = ["    " + str(about["command"]), ""]
    facts = [f"{about['date']}, {about['machine']}, {about['cores']} cores"]
    facts += [f"{name} {version}" for name, version in about["versions"].items()]
    hidden = ("date", "command", "machine", "cores", "versions", "peak_flops")
    facts += [f"{key} {value}" for key, value in about.items() if key not in hidden]
    if "peak_flops" in about:
        facts.append(f"best rate of a float32 matrix product on all cores {about['peak_flops'] / 1e9:.0f} GFLOP/s")
    return [*lines, "; ".join(facts) + ".", ""]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return markdown_table(head, rows)


def arguments_of(description: str) -> argparse.ArgumentParser:
    """A parser with what all benchmarks understand."""
    parser = new_parser(f"python -m benchmarks.{Path(sys.argv[0]).stem}", description)
    parser.add_argument("--output", type=Path, help="folder for a report in Markdown and one in JSON")
    return parser


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def report(folder: Path | None, name: str, values: dict[str, Any], markdown: Callable[[dict[str, Any]], str]) -> None:
    """Print a report and write it to ``folder/name.md`` and ``.json``; ``about`` gets a note on what else ran."""
    if _at_start:
        values["about"]["processor time that went to other processes"] = f"{_others():.0%}"
    text = markdown(values)
    print("\n" + text, flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def compare_networks(
    arguments: argparse.Namespace,
    name: str,
    about: dict[str, Any],
    compare: Callable[[argparse.Namespace, str, str], list[dict[str, Any]]],
    markdown: Callable[[dict[str, Any]], str],
) -> None:
    """Compare runtimes on every network with every pooling of the arguments, and report it.

    Args:
        arguments: Of the command line, with ``networks``, ``poolings`` and ``output``.
        name: Of the report.
        about: From :func:`environment`.
        compare: Gives the records of a network and a pooling.
        markdown: The report as text.
    """
    peaks, results = [Worker(machine_peak).ask()], []
    for network in arguments.networks:
        for pooling in arguments.poolings:
            results += compare(arguments, network, pooling)
            peaks.append(Worker(machine_peak).ask())
    report(arguments.output, name, {"about": {**about, "peak_flops": max(peaks)}, "results": results}, markdown)


def _processor() -> str:
    names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return names[0] if names else platform.processor()
