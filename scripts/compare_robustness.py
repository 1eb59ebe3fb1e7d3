"""Compare networks on corrupted images: python scripts/compare_robustness.py NAME=RESULT.json[,RESULT.json ...] ...

Each RESULT.json is what eval.py --robustness=imagenet_c --result_path writes; several of a name are its seeds. Prints a
Markdown table with the mean error and the mean corruption error relative to the reference's mean (100 = as good).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.errors import UserError
from covpool.research.robustness.metrics import relative_errors
from covpool.research.robustness.plot import plot_groups
from covpool.research.study.summary import spread, spread_text
from covpool.runtime.command import named_paths, new_parser, reports_errors


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, print the table, draw the bars."""
    parser = new_parser(__doc__)
    parser.add_argument("networks", nargs="+", metavar="NAME=FILES", help="name, and its results separated by commas")
    parser.add_argument("--reference", help="name whose errors are 100; the first by default")
    parser.add_argument("--plot", type=Path, help="PNG file for the errors by corruption")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args(argv)
    named = named_paths(arguments.networks, "NAME=FILE[,FILE ...]")
    networks = {name: [_errors(file) for file in files] for name, files in named.items()}
    reference = arguments.reference or next(iter(networks))
    if reference not in networks:
        raise UserError(f"--reference {reference}: is none of {', '.join(networks)}", 2)
    try:
        figures = compare(networks, reference)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(_table(figures, reference))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        bars = {
            name: {corruption: [100 * run[corruption] for run in runs] for corruption in runs[0]}
            for name, runs in networks.items()
        }
        plot_groups(bars, arguments.plot, "top-1 error (%)", "Error by corruption, mean over severities and seeds")
    return 0


def compare(networks: dict[str, list[dict[str, float]]], reference: str) -> dict[str, Any]:
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


def _errors(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry["error"] for name, entry in content["corruptions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of eval.py --robustness=imagenet_c: {error}") from error


def _table(figures: dict[str, Any], reference: str) -> str:
    lines = [
        f"| network | n | mean error (%) | mCE relative to {reference} (%) |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in figures.items():
        error, relative = entry["mean_error"], entry["relative_mce"]
        lines.append(f"| {name} | {entry['n']} | {spread_text(error, 100, 2)} | {spread_text(relative, 1, 1)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
