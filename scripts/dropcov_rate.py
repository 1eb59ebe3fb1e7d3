"""The adaptive rate of DropCov over training: python scripts/dropcov_rate.py NAME=RUN[,RUN ...] ... --plot FILE.png.

Each RUN is the run folder of a training with DropCov, with the checkpoints of its epochs (keep_checkpoint_max).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.config import load_config
from covpool.config.entry import open_session
from covpool.runtime.command import named_paths, new_parser, reports_errors
from covpool.runtime.files import write_json


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, measure, print a table, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN ...]", help="name, and its run folders")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--batches", type=int, default=20, help="batches over which a rate is averaged")
    parser.add_argument("--data_path", default="", help="the data set, if not where the runs had it")
    arguments = parser.parse_args(argv)
    if arguments.batches < 1:
        parser.error("--batches must be at least 1")
    named = named_paths(arguments.runs, "NAME=RUN[,RUN ...]")
    first = next(iter(named.values()))[0] / "config.yaml"
    with open_session(load_config(first)):
        from covpool.research.study.dropcov_rate import plot_rates, rate_course

        courses = {
            name: [rate_course(run, arguments.batches, arguments.data_path) for run in runs]
            for name, runs in named.items()
        }
        if arguments.plot:
            plot_rates(courses, arguments.plot, "DropCov's adaptive rate over training")
    print("| run | " + " | ".join(f"epoch {record['epoch']}" for record in next(iter(courses.values()))[0]) + " |")
    print("| --- |" + " --- |" * len(next(iter(courses.values()))[0]))
    for name, runs in courses.items():
        for run, folder in zip(runs, named[name]):
            print(f"| {name} {folder.name} | " + " | ".join(f"{record['rate']:.3f}" for record in run) + " |")
    if arguments.output:
        write_json(arguments.output, courses)
    return 0


if __name__ == "__main__":
    sys.exit(main())
