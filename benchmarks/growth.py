"""How time and memory of a training step grow: with batch, resolution, d, classes and depth; fitted exponents, a plot.

    python -m benchmarks.growth --output docs/benchmarks          writes growth.json, growth.md and growth.png there

One setting grows at a time, the others stay as they are given (ResNet-18 + DropCov, d = 128, 1000 classes, 224 pixels,
batch 8; the axis of classes has d = 256, whose classifier has 32 896 inputs). Every point is a process of its own that
trains as train.py does; time is the median step divided by the batch, memory the peak of the process less what it had
before the network was built, divided by the batch. Exponents are fitted to the last three points by least squares of
logarithms. There is no peer. `--axes` measures some of them; `--from_json` draws and tabulates earlier results again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Worker
from covpool.plots import COLOURS, new_figure, save

PACKAGES = ("mindspore", "numpy")
BASE = {"network": "resnet18", "d": 128, "classes": 1000, "size": 224, "batch": 8}
AXES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "batch": ("images per batch", [1, 4, 16, 64], {}),
    "size": ("height and width (pixels)", [96, 160, 224, 320], {}),
    "d": ("reduced channels d", [64, 128, 256, 512], {}),
    "classes": ("classes, d = 256", [10, 1000, 5000, 21841], {"d": 256}),
    "network": ("layers with weights", ["resnet18", "resnet50", "resnet101", "resnet152"], {}),
}


def depth(network: str) -> int:
    """Layers with weights, which the name says."""
    return int(network.removeprefix("resnet"))


def train(connection: Connection, point: dict[str, Any], pooling: str, steps: int) -> None:
    """Send the seconds of each step, the peak of memory beyond the process before, and the classifier's share."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from benchmarks.network import batch_of, training_step
    from covpool.runtime.distributed import set_context

    set_context("GRAPH", "CPU")
    ms.set_seed(0)
    before = measure.memory("VmRSS")
    images = batch_of(point["size"], point["batch"], point["classes"])
    kernels, name, classes, d = (point[key] for key in ("cpu_kernels", "network", "classes", "d"))
    step, network = training_step(name, pooling, classes, images, kernels, reduction_dim=d)
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    sizes = {p.name: p.size for p in network.trainable_params()}
    share = sum(size for name, size in sizes.items() if name.startswith("fc.")) / sum(sizes.values())
    connection.send((seconds, measure.memory("VmHWM") - before, share))


def measure_axis(axis: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All points of an axis."""
    _, values, other = AXES[axis]
    points = []
    for value in values[: arguments.points]:
        point = {**BASE, "size": arguments.image_size, "batch": arguments.batch_size, **other, axis: value}
        point["cpu_kernels"] = arguments.cpu_kernels
        worker = Worker(train, point, arguments.pooling, arguments.steps)
        seconds, peak, share = worker.ask()
        worker.process.join()
        found = {**point, "seconds": measure.summary(seconds), "peak bytes": peak, "classifier share": share}
        points.append(found)
        median = found["seconds"]["median"]
        measure.say(f"{axis} {value}: {1e3 * median / point['batch']:.1f} ms, {peak / 2**20:.0f} MiB a batch")
    return points


def place(axis: str, point: dict[str, Any]) -> float:
    """Where a point stands on its axis."""
    return float(depth(point[axis]) if axis == "network" else point[axis])


def per_image(point: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds and MiB per image."""
    return 1e3 * point["seconds"]["median"] / point["batch"], point["peak bytes"] / 2**20 / point["batch"]


def exponents(axis: str, points: list[dict[str, Any]]) -> tuple[float, float]:
    """Powers of the axis that time and memory per image follow over its last three points."""
    last = points[-3:]
    x = [math.log(place(axis, point)) for point in last]
    y = [[math.log(value) for value in per_image(point)] for point in last]
    if len(last) < 2:
        return math.nan, math.nan
    time_power, memory_power = np.polyfit(x, np.array(y), 1)[0]
    return float(time_power), float(memory_power)


def dominance(points: list[dict[str, Any]]) -> dict[str, float]:
    """From the axis of classes: time and memory per class and of the rest, and where both are equal."""
    classes = np.array([point["classes"] for point in points], float)
    found = {}
    for name, values in (
        ("time", [point["seconds"]["median"] for point in points]),
        ("memory", [point["peak bytes"] for point in points]),
    ):
        slope = (values[-1] - values[0]) / (classes[-1] - classes[0])
        rest = statistics.median([value - slope * k for value, k in zip(values[:2], classes[:2])])
        found[f"{name} per class"], found[f"{name} of the rest"] = float(slope), float(rest)
        found[f"classes where the classifier has half of the {name}"] = float(rest / slope)
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = ["# Growth", "", *measure.heading(report["about"])]
    lines += ["Per image of a training step; time: median (± half of the interquartile range of the steps).", ""]
    rows = []
    for axis, points in report["axes"].items():
        powers = exponents(axis, points)
        for index, point in enumerate(points):
            ms, mib = per_image(point)
            row = [
                AXES[axis][0] if index == 0 else "",
                point[axis],
                f"{ms:.1f} (±{point['seconds']['spread'] / 2:.0%})",
            ]
            row += [f"{mib:.0f}", f"{point['peak bytes'] / 2**20:.0f}", f"{point['classifier share']:.0%}"]
            rows.append([*row, *(f"{p:.2f}" if index == len(points) - 1 else "" for p in powers)])
    head = [
        "axis",
        "value",
        "time (ms)",
        "memory (MiB)",
        "memory of the batch (MiB)",
        "classifier's part of the weights",
    ]
    lines += measure.table([*head, "exponent of time", "exponent of memory"], rows)
    if len(report["axes"].get("classes", [])) > 2:
        found = dominance(report["axes"]["classes"])
        batch = report["axes"]["classes"][0]["batch"]
        lines += ["", f"The classifier of 32 896 features, at batch {batch}: a class costs"]
        lines[-1] += f" {1e6 * found['time per class']:.0f} us a step and {found['memory per class'] / 2**10:.0f} KiB;"
        lines[-1] += " it has half of the step's time from"
        lines[-1] += f" {found['classes where the classifier has half of the time']:.0f} classes on, and half of the"
        lines[-1] += f" memory from {found['classes where the classifier has half of the memory']:.0f}."
    return "\n".join(lines) + "\n"


def chart(report: dict[str, Any], path: Path) -> None:
    """Time and memory per image against each axis, both logarithmic."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes = report["axes"]
    figure = new_figure(3.3 * len(axes), 5.6)
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row")
    for column, (axis, points) in enumerate(axes.items()):
        x = [place(axis, point) for point in points]
        powers = exponents(axis, points)
        for row, (unit, marker) in enumerate((("time per image (ms)", "o"), ("memory per image (MiB)", "s"))):
            panel = panels[row][column]
            y = [per_image(point)[row] for point in points]
            panel.loglog(x, y, marker=marker, color=COLOURS[row + 1])
            panel.set_title(f"exponent at the end {powers[row]:.2f}", fontsize=10)
            panel.grid(True, which="major", alpha=0.3)
            panel.xaxis.set_major_locator(FixedLocator(x))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.tick_params(axis="both", labelsize=8)
            if column == 0:
                panel.set_ylabel(unit)
            if row == 1:
                panel.set_xlabel(AXES[axis][0])
    save(figure, path)


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of several; where a point was measured again, the last one."""
    found: dict[str, dict[Any, Any]] = {}
    for axis in AXES:
        for report in reports:
            for point in report["axes"].get(axis, []):
                found.setdefault(axis, {})[point[axis]] = point
    about = {**reports[0]["about"], "command": "; ".join(report["about"]["command"] for report in reports)}
    axes = {axis: [points[v] for v in AXES[axis][1] if v in points] for axis, points in found.items()}  # ascending
    return {"about": about, "axes": axes}


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--pooling", default="dropcov")
    parser.add_argument("--cpu_kernels", choices=("mindspore", "compiled"), default="mindspore")
    parser.add_argument("--steps", type=int, default=3, help="steps of a point (default: 3)")
    parser.add_argument("--batch_size", type=int, default=BASE["batch"])
    parser.add_argument("--image_size", type=int, default=BASE["size"])
    parser.add_argument("--points", type=int, help="only the first points of each axis, to try it")
    parser.add_argument(
        "--from_json", type=Path, nargs="+", help="reports whose points are taken, the last one's first"
    )
    arguments = parser.parse_args()
    if arguments.from_json:
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.from_json]
        report = merged(reports)
    else:
        about = measure.environment(
            PACKAGES, pooling=arguments.pooling, cpu_kernels=arguments.cpu_kernels, n=arguments.steps
        )
        report = {"about": about, "axes": {axis: measure_axis(axis, arguments) for axis in arguments.axes}}
    measure.report(arguments.output, "growth", report, markdown)
    if arguments.output is not None:
        chart(report, arguments.output / "growth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
