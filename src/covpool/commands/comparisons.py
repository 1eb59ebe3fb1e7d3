"""Comparison of what runs have left."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covpool.config import load_config
from covpool.config.entry import open_session
from covpool.errors import UserError
from covpool.research.compare_runs import comparison_table, plot_comparison, read_epochs
from covpool.research.robustness.metrics import plot_groups, relative_errors
from covpool.research.study.report import spread, spread_text
from covpool.research.tables import table
from covpool.runtime.command import named_paths, new_parser
from covpool.runtime.files import read_text, write_json


def compare(argv: Sequence[str]) -> int:
    """Compare run folders: covpool compare NAME=FOLDER ... [--plot FILE.png] [--title TEXT]."""
    parser = new_parser("covpool compare", compare.__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run folder and what to call it")
    parser.add_argument("--plot", type=Path, help="PNG file for loss and accuracy over epochs")
    parser.add_argument("--title", default="", help="title of the plot")
    args = parser.parse_args(argv)
    runs = {}
    for run in args.runs:
        name, separator, folder = run.partition("=")
        runs[name if separator else Path(name).name] = read_epochs(Path(folder if separator else name))
    print(comparison_table(runs))
    if args.plot:
        plot_comparison(runs, args.plot, args.title)
    return 0


def compare_robustness(argv: Sequence[str]) -> int:
    """Compare networks on corrupted images: covpool compare-robustness NAME=RESULT.json[,RESULT.json ...] ...

    Each RESULT.json is what eval.py --robustness=imagenet_c --result_path writes; several of a name are its seeds.
    Prints a Markdown table with the mean error and the mean corruption error relative to the reference's mean (100 = as
    good).
    """
    parser = new_parser("covpool compare-robustness", compare_robustness.__doc__)
    parser.add_argument("networks", nargs="+", metavar="NAME=FILES", help="name, and its results separated by commas")
    parser.add_argument("--reference", help="name whose errors are 100; the first by default")
    parser.add_argument("--plot", type=Path, help="PNG file for the errors by corruption")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(argv)
    named = named_paths(arguments.networks, "NAME=FILE[,FILE ...]")
    networks = {name: [_corruption_errors(file) for file in files] for name, files in named.items()}
    reference = arguments.reference or next(iter(networks))
    if reference not in networks:
        raise UserError(f"--reference {reference}: is none of {', '.join(networks)}", 2)
    try:
        figures = compare_errors(networks, reference)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(_robustness_table(figures, reference))
    if arguments.output:
        write_json(arguments.output, figures)
    if arguments.plot:
        bars = {
            name: {corruption: [100 * run[corruption] for run in runs] for corruption in runs[0]}
            for name, runs in networks.items()
        }
        plot_groups(bars, arguments.plot, "top-1 error (%)", "Error by corruption, mean over severities and seeds")
    return 0


def compare_errors(networks: dict[str, list[dict[str, float]]], reference: str) -> dict[str, Any]:
    """Mean error and relative corruption error of every network, over seeds.

    Args:
        networks: Name: for every seed, corruption: error in [0, 1].
        reference: Name of the network whose errors, averaged over its seeds, are 100.

    Raises:
        ValueError: The results are not over the same corruptions.
    """
    base = {name: statistics.fmean(run[name] for run in networks[reference]) for name in networks[reference][0]}
    figures = {}
    for name, runs in networks.items():
        relative = [statistics.fmean(relative_errors(run, base).values()) for run in runs]
        figures[name] = {
            "n": len(runs),
            "mean_error": spread([statistics.fmean(run.values()) for run in runs]),
            "relative_mce": spread(relative),
            "corruptions": {corruption: spread([run[corruption] for run in runs]) for corruption in runs[0]},
        }
    return figures


def _corruption_errors(path: Path) -> dict[str, float]:
    try:
        content = json.loads(read_text(path))
        return {name: entry["error"] for name, entry in content["corruptions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of eval.py --robustness=imagenet_c: {error}") from error


def _robustness_table(figures: dict[str, Any], reference: str) -> str:
    rows = [
        (name, entry["n"], spread_text(entry["mean_error"], 100, 2), spread_text(entry["relative_mce"], 1, 1))
        for name, entry in figures.items()
    ]
    return "\n".join(table(("network", "n", "mean error (%)", f"mCE relative to {reference} (%)"), rows))


def dropcov_rate(argv: Sequence[str]) -> int:
    """The adaptive rate of DropCov over training: covpool dropcov-rate NAME=RUN[,RUN ...] ... --plot FILE.png.

    Each RUN is the run folder of a training with DropCov, with the checkpoints of its epochs (keep_checkpoint_max).
    """
    parser = new_parser("covpool dropcov-rate", dropcov_rate.__doc__)
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
        from covpool.research.dropcov_rate import plot_rates, rate_course

        courses = {
            name: [rate_course(run, arguments.batches, arguments.data_path) for run in runs]
            for name, runs in named.items()
        }
        if arguments.plot:
            plot_rates(courses, arguments.plot, "DropCov's adaptive rate over training")
    head = ["run", *(f"epoch {record['epoch']}" for record in next(iter(courses.values()))[0])]
    rows = [
        (f"{name} {folder.name}", *(f"{record['rate']:.3f}" for record in run))
        for name, runs in courses.items()
        for run, folder in zip(runs, named[name])
    ]
    print("\n".join(table(head, rows)))
    if arguments.output:
        write_json(arguments.output, courses)
    return 0
