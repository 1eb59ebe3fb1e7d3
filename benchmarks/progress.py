"""What following a training costs the host: microseconds per step of progress bar, log lines and records.

    python -m benchmarks.progress --output docs/benchmarks          writes progress.json and progress.md there

`Model.train` runs a network of one small layer from memory, so that a step is little more than its host code: without
the project's callbacks, with lines, and with the bar, for several `log_interval`. The passes take turns. The cost of
following is the difference to the pass without callbacks; its share is given of the step of `config/quickstart.yaml`,
the smallest network of the configurations, by its `--step_ms`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

PACKAGES = ("mindspore", "numpy", "tqdm")
WAYS = {"none": "no callbacks", "lines": "lines", "bar": "bar"}


class Passes:
    """Epochs of a tiny training."""

    def __init__(self, steps: int, folder: Path) -> None:
        from covpool.runtime.environment import prepare_environment

        prepare_environment()
        import mindspore as ms
        import mindspore.dataset as ds
        from mindspore import nn
        from mindspore.train import Model

        from covpool.runtime.distributed import set_context
        from covpool.training.optimizers import build_optimizer

        logging.getLogger("covpool").setLevel(logging.INFO)
        logging.getLogger("covpool").addHandler(logging.StreamHandler(io.StringIO()))
        set_context("GRAPH", "CPU")
        ms.set_seed(0)
        self.steps, self.folder = steps, folder
        network = nn.Dense(4, 4)
        optimizer = build_optimizer(list(network.trainable_params()), np.full(10**6, 1e-3, np.float32))
        self.model = Model(network, loss_fn=nn.MSELoss(), optimizer=optimizer)
        values = np.ones((steps, 4), np.float32)
        self.data = ds.NumpySlicesDataset({"x": values, "y": values}, shuffle=False).batch(1)

    def run(self, way: str, interval: int) -> float:
        """Seconds per step."""
        from covpool.checkpoints.state import Progress
        from covpool.training.progress import EpochProgress, Plan
        from covpool.training.run_folder import RunFolder

        callbacks: list[Any] = []
        with contextlib.redirect_stderr(io.StringIO()):  # where tqdm writes
            if way != "none":
                rates = np.full(self.steps, 1e-3)
                folder = RunFolder(self.folder)
                plan = Plan(1, self.steps, rates, 1, interval)
                callbacks.append(EpochProgress(plan, Progress(), folder, way == "bar"))
            start = time.perf_counter()
            self.model.train(1, self.data, callbacks=callbacks, dataset_sink_mode=False)
            seconds = time.perf_counter() - start
            for callback in callbacks:
                callback.close()
        return seconds / self.steps


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    step = report["about"]["step_ms"] * 1e-3
    rows = []
    for found in report["results"]:
        cost = found["cost"]
        share = [f"{cost[way] * 1e6:.0f}" for way in ("lines", "bar")] + [f"{cost['bar'] / step:.3%}"]
        rows.append([found["interval"], *(measure.shown(found[way], ".0f", 1e6) for way in WAYS), *share])
    head = ["log_interval", *(f"{title}, us per step" for title in WAYS.values()), "lines cost (us)", "bar costs (us)"]
    head += [f"bar, share of a step of {report['about']['step_ms']:g} ms"]
    lines = ["# Following a training", "", *measure.heading(report["about"])]
    return "\n".join([*lines, *measure.table(head, rows)]) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--intervals", nargs="+", type=int, default=[1, 10, 100], help="values of log_interval")
    parser.add_argument("--steps", type=int, default=1000, help="of a pass (default: 1000)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved passes (default: 7)")
    parser.add_argument("--step_ms", type=float, default=100.0, help="step to compare with (default: 100 ms)")
    arguments = parser.parse_args()
    about = measure.environment(PACKAGES, steps=arguments.steps, n=arguments.rounds, step_ms=arguments.step_ms)
    results = []
    with tempfile.TemporaryDirectory() as place:
        passes = Passes(arguments.steps, Path(place))
        for interval in arguments.intervals:
            for way in WAYS:
                passes.run(way, interval)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for index in range(arguments.rounds):
                for way in [*list(WAYS)[index % 3 :], *list(WAYS)[: index % 3]]:
                    seconds[way].append(passes.run(way, interval))
            found: dict[str, Any] = {way: measure.summary(values) for way, values in seconds.items()}
            cost = {way: found[way]["median"] - found["none"]["median"] for way in WAYS}
            results.append({"interval": interval, **found, "cost": cost})
            measure.say(f"log_interval {interval}: the bar costs {cost['bar'] * 1e6:.0f} us a step")
    report = {"about": about, "results": results}
    measure.report(arguments.output, "progress", report, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
