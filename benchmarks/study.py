"""Run a study: python benchmarks/study.py --study config/studies/NAME.yaml --output DIR [--jobs N] [--key=value ...].

Every combination of the study's grid and seeds is trained by train.py in a run folder of its own below DIR. A study
that was stopped or killed goes on where it was when the same command is given again. At the end, and after every run,
DIR holds results.md, results.csv, results.json, curves.png and final.png.
"""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from covpool.errors import UserError
from covpool.research.study.runner import run_study, states
from covpool.research.study.runs import State
from covpool.research.study.spec import Run, Study, read_study
from covpool.research.study.summary import markdown, write_summary
from covpool.runtime.command import new_parser
from covpool.runtime.signals import StopRequest


def clock(seconds: float) -> str:
    """h:mm:ss; a dash where unknown."""
    return str(datetime.timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "-"


def write_results(study: Study, known: dict[Run, State], output: Path) -> str:
    """Write tables and plot; the Markdown table."""
    from covpool.research.study import plots  # here: NumPy's threads must not start before signals are received

    groups = write_summary(study, known, output)
    plots.plot_study(study, known, output / "curves.png")
    plots.plot_final(study, known, output / "final.png")
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


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, run what is left, print the table."""
    parser = new_parser(__doc__)
    parser.add_argument("--study", type=Path, required=True, help="study file")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the results")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the results again")
    parser.add_argument("--progress", choices=("auto", "bar", "plain"), default="auto")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments, rest = parser.parse_known_args(argv)
    try:
        return run(arguments, rest)
    except UserError as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def run(arguments: Any, rest: Sequence[str]) -> int:
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


if __name__ == "__main__":
    sys.exit(main())
