"""Studies of several runs, and loss landscapes."""

from __future__ import annotations

import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from covpool.config import Config, load_config
from covpool.config.entry import open_session
from covpool.data import open_source, steps_per_epoch
from covpool.errors import UserError
from covpool.research.study.report import markdown, plot_final, plot_study, spread, spread_text, write_summary
from covpool.research.study.runner import State, run_study, states
from covpool.research.study.spec import Run, Study, read_study
from covpool.research.tables import table
from covpool.runtime.command import new_parser
from covpool.runtime.files import write_json
from covpool.runtime.signals import StopRequest


def clock(seconds: float) -> str:
    """h:mm:ss; a dash where unknown."""
    return str(datetime.timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "-"


def write_results(study: Study, known: dict[Run, State], output: Path) -> str:
    """Write tables and plot; the Markdown table."""
    groups = write_summary(study, known, output)
    plot_study(study, known, output / "curves.png")
    plot_final(study, known, output / "final.png")
    return markdown(study, groups)


class Reporter:
    """Shows the progress over the whole grid and keeps the results up to date."""

    def __init__(self, study: Study, output: Path, bar: bool) -> None:
        self.study, self.output = study, output
        self.bar = tqdm(unit="epoch", desc=study.name) if bar else None
        self.started = time.monotonic()
        self.at_start: Optional[int] = None
        self.finished = -1
        self.told = -1e9

    def __call__(self, known: dict[Run, State], running: list[Run]) -> None:
        """Report when a run is done, and now and then."""
        epochs = sum(min(len(state.epochs), state.wanted) for state in known.values())
        wanted = sum(state.wanted for state in known.values())
        finished = sum(state.done or bool(state.failure) for state in known.values())
        if self.at_start is None:
            self.at_start = epochs
        if finished != self.finished:
            write_results(self.study, known, self.output)
        if self.bar is not None:
            self.bar.total = wanted
            self.bar.update(epochs - self.bar.n)
            self.bar.set_postfix_str(f"{finished}/{len(known)} runs; " + ", ".join(run.name for run in running))
        elif finished != self.finished or time.monotonic() - self.told > 30:
            self.told = time.monotonic()
            new = epochs - self.at_start
            left = (self.told - self.started) / new * (wanted - epochs) if new else float("nan")
            print(
                f"{finished}/{len(known)} runs, {epochs}/{wanted} epochs, {clock(self.told - self.started)} so far, "
                f"{clock(left)} left; running: {', '.join(run.name for run in running) or 'none'}",
                flush=True,
            )
        self.finished = finished


def study(argv: Sequence[str]) -> int:
    """Run a study: covpool study --study config/studies/NAME.yaml --output DIR [--jobs N] [--key=value ...].

    Every combination of the study's grid and seeds is trained by train.py in a run folder of its own below DIR. A study
    that was stopped or killed goes on where it was when the same command is given again. At the end, and after every
    run, DIR holds results.md, results.csv, results.json, curves.png and final.png.
    """
    parser = new_parser("covpool study", study.__doc__)
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the results again")
    parser.add_argument("--progress", choices=("auto", "bar", "plain"), default="auto")
    arguments, rest = parser.parse_known_args(argv)
    return _run(arguments, rest)


def _run(arguments: Any, rest: Sequence[str]) -> int:
    """The study of these arguments; 1 if a run failed, 128 plus the signal's number after a signal."""
    if wrong := [text for text in rest if not text.startswith("--") or "=" not in text]:
        raise UserError(f"{wrong[0]}: must have the form --key=value, for a key of the configuration", 2)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1", 2)
    study = read_study(arguments.study)
    overrides = [text[2:] for text in rest]
    if arguments.summary:
        print(write_results(study, states(study, arguments.output, overrides), arguments.output))
        return 0
    bar = arguments.progress == "bar" or (arguments.progress == "auto" and sys.stderr.isatty())
    stop = StopRequest()
    with stop.listening(), stop.deferring():
        known = run_study(
            study, arguments.output, overrides, arguments.jobs, stop, Reporter(study, arguments.output, bar)
        )
    if stop.received:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stop.received
    print(write_results(study, known, arguments.output))
    failures = {run: state.failure for run, state in known.items() if not state.done}
    for failed, why in failures.items():
        print(f"failed: {failed.name}: {why or 'ended early'}", file=sys.stderr)
    return 1 if failures else 0


Records = list[dict[str, float]]  # of the probed steps


def landscape(argv: Sequence[str]) -> int:
    """Loss landscapes of poolings: covpool landscape --config_path FILE --output DIR [--key=value ...].

    Trains the configured network with each pooling and seed and records, every few steps, how loss and gradient change
    along the gradient at the stem's output (CVPR 2020). DIR gets POOLING-seed-N.json for each, and landscape.png with
    the mean over the seeds of the bands' edges; what has its file already is not trained again.
    """
    parser = new_parser("covpool landscape", landscape.__doc__)
    parser.add_argument("--config_path", type=Path, required=True, help="configuration of the training")
    parser.add_argument("--output", type=Path, required=True, help="folder for JSON and picture")
    parser.add_argument("--poolings", nargs="+", default=["gap", "fast_mpn"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: the configuration's")
    parser.add_argument("--every", type=int, default=10, help="training steps between two measurements")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.every < 1:
        parser.error("--every must be at least 1")
    runs: dict[str, list[Records]] = {}
    for pooling in arguments.poolings:
        runs[pooling] = []
        for seed in arguments.seeds or [None]:
            settings = [f"pooling={pooling}"] + ([] if seed is None else [f"seed={seed}"])
            config = load_config(arguments.config_path, [*rest, *settings])
            path = arguments.output / f"{pooling}-seed-{config.seed}.json"
            with open_session(config):
                runs[pooling].append(_landscape_records(config, path, arguments.every))
    _finish_landscape(runs, config.net_name, arguments.output / "landscape.png")
    return 0


def _landscape_records(config: Config, path: Path, every: int) -> Records:
    """Measure, or read what was measured."""
    from covpool.research.landscape import band_widths, read_records, record_landscape

    settings = {**config.to_dict(), "every": every}
    if path.is_file():
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            if content["config"] == settings:
                return read_records(content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no landscape: {error}") from error
        raise UserError(f"{path} was measured with other settings: give another --output, or remove it")
    listed, held = config.image_list or None, config.val_fraction
    images = open_source(config.dataset, config.data_path, "train", listed, val_fraction=held).num_samples
    total = config.epoch_size * steps_per_epoch(config.train_images or images, config.batch_size)
    found = []
    for record in tqdm(record_landscape(config, every), total=total, desc=path.stem, unit="step"):
        if len(record) > 1:
            found.append(record)
    write_json(path, {"config": settings, "band_widths": band_widths(found), "records": found})
    return found


def _finish_landscape(runs: dict[str, list[Records]], name: str, path: Path) -> None:
    from covpool.research.landscape import band_widths, mean_records, plot_landscape

    head = ("pooling", "n", "probed steps", "mean width of the loss band", "mean width of the gradient band")
    rows = []
    for pooling, records in runs.items():
        widths = [band_widths(found) for found in records]
        cells = [spread_text(spread([width[key] for width in widths]), 1, 3) for key in ("loss", "gradient")]
        rows.append((pooling, len(records), len(records[0]), *cells))
    print("\n".join(table(head, rows)))
    means = {pooling: mean_records(records) for pooling, records in runs.items()}
    seeds = len(next(iter(runs.values())))
    count = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    plot_landscape(means, path, f"{name}, loss along the gradient at the stem's output{count}")
