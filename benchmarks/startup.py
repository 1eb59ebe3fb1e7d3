"""From the command to the first training step: train.py, first and second start, against PyTorch.

    python -m benchmarks.startup --output docs/benchmarks          writes startup.json and startup.md there

A start is `python train.py` on JPEG files of 500 x 375 pixels, from the call to the record of the first step's loss:
imports, listing, network, pipeline, compilation, step. The peer does the same in PyTorch: import, network, DataLoader,
one step. First starts compile the graph (`keep_graphs=False`), second ones find it compiled. Starts take turns; files
are in the system's memory cache after the first round, which is not counted. Needs torch beside the requirements.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.data import write_images
from benchmarks.measure import CORES, ROOT

KINDS = {
    "first": "train.py, first start",
    "second": "train.py, second start",
    "torch": "PyTorch",
}
PACKAGES = ("mindspore", "torch", "numpy")
TARGETS = {"resnet18": 10.0, "resnet50": 20.0}
LIMIT_S = 300


def torch_start(network: str, pooling: str, folder: Path, batch: int, size: int) -> None:
    """The peer's start: runs in a process of its own and prints the loss of its first step."""
    import torch
    from torch.utils.data import DataLoader

    from benchmarks.data import TorchImages
    from benchmarks.torch_networks import TrainedNetwork

    torch.set_num_threads(CORES)
    net = TrainedNetwork(network, pooling).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    loader = DataLoader(TorchImages(folder / "train", True, size, 1), batch, shuffle=True, num_workers=CORES)
    images, labels = next(iter(loader))
    images = images.contiguous(memory_format=torch.channels_last)
    loss = torch.nn.functional.cross_entropy(net(images), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    print(float(loss.detach()), flush=True)


class Starts:
    """Starts of one network."""

    def __init__(self, arguments: argparse.Namespace, network: str, data: Path, work: Path) -> None:
        self.arguments, self.network, self.data, self.work = arguments, network, data, work
        self.count = 0

    def train(self, keep_graphs: bool) -> dict[str, float]:
        """Seconds of train.py: to its first step, and in that the part from the pipeline on."""
        self.count += 1
        run = self.work / f"run{self.count}"
        settings = {
            "config_path": ROOT / "config" / "resnet18_imagenet2012_config.yaml",
            "net_name": self.network,
            "pooling": self.arguments.pooling,
            "batch_size": self.arguments.batch_size,
            "train_image_size": self.arguments.image_size,
            "data_path": self.data,
            "output_path": run,
            "epoch_size": 1,
            "log_interval": 1,
            "run_eval": False,
            "save_checkpoint": False,
            "keep_graphs": keep_graphs,
        }
        command = [sys.executable, str(ROOT / "train.py"), *(f"--{key}={value}" for key, value in settings.items())]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self.work / "cache")}
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=self.work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            first_step = self._wait(run / "metrics.jsonl", process, start)
            said, _ = process.communicate(timeout=LIMIT_S)
        if process.returncode or first_step is None:
            raise SystemExit(f"train.py ended with exit code {process.returncode}:\n{said}")
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {"seconds": first_step, "first_step_s": records[-1]["first_step_s"]}

    def _wait(self, metrics: Path, process: subprocess.Popen[str], start: float) -> float | None:
        while time.perf_counter() - start < LIMIT_S:
            ended = process.poll() is not None
            if metrics.exists() and metrics.stat().st_size:
                return time.perf_counter() - start
            if ended:
                return None
            time.sleep(0.01)
        process.kill()
        return None

    def torch(self) -> dict[str, float]:
        """Seconds of the peer."""
        a = self.arguments
        code = (
            "import sys; from pathlib import Path; from benchmarks.startup import torch_start; torch_start("
            f"{self.network!r}, {a.pooling!r}, Path({str(self.data)!r}), {a.batch_size}, {a.image_size})"
        )
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            line = process.stdout.readline() if process.stdout else ""
            seconds = time.perf_counter() - start
            process.communicate(timeout=LIMIT_S)
        if process.returncode or not line:
            raise SystemExit("the PyTorch start failed; its error is above")
        return {"seconds": seconds}

    def measure(self) -> dict[str, Any]:
        """All kinds, interleaved, after one start of each that compiles kernels and graph."""
        runs = {"first": lambda: self.train(False), "second": lambda: self.train(True), "torch": self.torch}
        for run in runs.values():
            run()
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in runs}
        for _ in range(self.arguments.rounds):
            for kind, run in runs.items():
                found[kind].append(run())
                measure.say(f"{self.network} {kind}: {found[kind][-1]['seconds']:.2f} s to the first step")
        result = {kind: measure.summary([entry["seconds"] for entry in entries]) for kind, entries in found.items()}
        parts = {
            kind: measure.summary([entry["first_step_s"] for entry in found[kind]]) for kind in KINDS if kind != "torch"
        }
        return {**result, "from the pipeline on": parts}


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = []
    for name, found in report["results"].items():
        times = [measure.shown(found[kind], ".2f") for kind in KINDS]
        target = f"{TARGETS[name]:.0f}" if name in TARGETS else ""
        ratios = [f"{found[kind]['median'] / found['torch']['median']:.2f}" for kind in ("first", "second")]
        parts = [measure.shown(found["from the pipeline on"][kind], ".2f") for kind in ("first", "second")]
        rows.append([name, target, *times, *ratios, *parts])
    head = [
        "network",
        "target (s)",
        *(f"{title} (s)" for title in KINDS.values()),
        "first / PyTorch",
        "second / PyTorch",
    ]
    head += [f"of the {kind}: pipeline, compilation, step (s)" for kind in ("first", "second")]
    lines = ["# Start", "", *measure.heading(report["about"])]
    lines += ["Seconds from the command to the loss of the first step: median (± half of the interquartile range).", ""]
    lines += [*measure.table(head, rows), ""]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--pooling", choices=("gap", "dropcov", "fast_mpn"), default="dropcov")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind (default: 3)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    arguments = parser.parse_args()
    about = measure.environment(
        PACKAGES, pooling=arguments.pooling, batch=arguments.batch_size, size=arguments.image_size, n=arguments.rounds
    )
    results = {}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "data"
        write_images(data, arguments.batch_size, 375, 500)
        for name in arguments.networks:
            work = Path(place) / name
            work.mkdir()
            results[name] = Starts(arguments, name, data, work).measure()
    report = {"about": about, "results": results}
    measure.report(arguments.output, "startup", report, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
