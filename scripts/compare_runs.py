"""Compare run folders: python scripts/compare_runs.py NAME=FOLDER ... [--plot FILE.png] [--title TEXT]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.research.compare_runs import comparison_table, plot_comparison, read_epochs
from covpool.runtime.command import reports_errors


@reports_errors
def main() -> int:
    """Print a Markdown table; draw the curves."""
    parser = argparse.ArgumentParser(description="Compare the runs in several run folders.")
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run folder and what to call it")
    parser.add_argument("--plot", type=Path, help="PNG file for loss and accuracy over epochs")
    parser.add_argument("--title", default="", help="title of the plot")
    args = parser.parse_args()
    runs = {}
    for run in args.runs:
        name, separator, folder = run.partition("=")
        runs[name if separator else Path(name).name] = read_epochs(Path(folder if separator else name))
    print(comparison_table(runs))
    if args.plot:
        plot_comparison(runs, args.plot, args.title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
