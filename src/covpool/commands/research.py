"""What papers need: studies of several runs, loss landscapes, and comparisons of what runs have left."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from covpool.config import Config, load_config
from covpool.config.command_line import open_session
from covpool.data import open_source, steps_per_epoch
from covpool.errors import UserError
from covpool.research.robustness.metrics import plot_groups, relative_errors
from covpool.research.study.report import markdown, plot_final, plot_study, write_summary
from covpool.research.study.runner import State, run_study, states
from covpool.research.study.spec import Run, Study, read_study
from covpool.research.tables import comparison_table, plot_comparison, read_epochs, spread, spread_text, table
from covpool.runtime.command import clock, count, named_paths, new_parser, progress_bar, shows_bar
from covpool.runtime.files import read_text, write_json
from covpool.runtime.signals import StopRequest


def write_results(study: Study, known: dict[Run, State], output: Path) -> str:
    """Write tables and plots; the Markdown table."""
    groups = write_summary(study, known, output)
    plot_study(study, known, output / "curves.png")
    plot_final(study, known, output / "final.png")
    return markdown(study, groups)


class Reporter:
    """Shows the progress over the whole grid and keeps the results up to date."""

    def __init__(self, study: Study, output: Path, shown: bool) -> None:
        self.study, self.output = study, output
        self.bar = progress_bar(None, None, study.name, "epoch", shown=shown)
        self.started = time.monotonic()
        self.at_start: Optional[int] = None
        self.finished, self.told = -1, -math.inf

    def __call__(self, known: dict[Run, State], running: list[Run]) -> None:
        """Report when a run is done, and now and then."""
        epochs = sum(min(len(state.epochs), state.wanted) for state in known.values())
        wanted = sum(state.wanted for state in known.values())
        finished = sum(state.done or bool(state.failure) for state in known.values())
        names, now = ", ".join(run.name for run in running), time.monotonic()
        self.at_start = epochs if self.at_start is None else self.at_start
        if finished != self.finished:
            write_results(self.study, known, self.output)
        if not self.bar.disable:
            self.bar.total = wanted
            self.bar.update(epochs - self.bar.n)
            self.bar.set_postfix_str(f"{finished}/{len(known)} runs; {names}")
        elif finished != self.finished or now - self.told > 30:
            self.told = now
            new = epochs - self.at_start
            left = (now - self.started) / new * (wanted - epochs) if new else math.nan
            print(
                f"{finished}/{len(known)} runs, {epochs}/{wanted} epochs, {clock(now - self.started)} so far, "
                f"{clock(left)} left; running: {names or 'none'}",
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
    parser.add_argument("--jobs", type=count, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--summary", action="store_true", help="run nothing, only write the results again")
    parser.add_argument("--progress", choices=("auto", "bar", "plain"), default="auto")
    arguments, rest = parser.parse_known_args(argv)
    if wrong := [text for text in rest if not text.startswith("--") or "=" not in text]:
        raise UserError(f"{wrong[0]}: must have the form --key=value, for a key of the configuration", 2)
    plan, output, overrides = read_study(arguments.study), arguments.output, [text[2:] for text in rest]
    if arguments.summary:
        print(write_results(plan, states(plan, output, overrides), output))
        return 0
    stop = StopRequest()
    with stop.listening(), stop.deferring():
        report = Reporter(plan, output, shows_bar(arguments.progress))
        known = run_study(plan, output, overrides, arguments.jobs, stop, report)
    if stop.received:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + stop.received
    print(write_results(plan, known, output))
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
    parser.add_argument("--every", type=count, default=10, help="training steps between two measurements")
    arguments, rest = parser.parse_known_args(argv)
    runs: dict[str, list[Records]] = {}
    for pooling in arguments.poolings:
        runs[pooling] = []
        for seed in arguments.seeds or [None]:
            settings = [f"pooling={pooling}"] + ([] if seed is None else [f"seed={seed}"])
            config = load_config(arguments.config_path, [*rest, *settings])
            path = arguments.output / f"{pooling}-seed-{config.seed}.json"
            with open_session(config):
                runs[pooling].append(_landscape_records(config, path, arguments.every))
    from covpool.research.landscape import band_widths, mean_records, plot_landscape

    head = ("pooling", "n", "probed steps", "mean width of the loss band", "mean width of the gradient band")
    rows = []
    for pooling, records in runs.items():
        widths = [band_widths(found) for found in records]
        cells = [spread_text(spread([width[key] for width in widths]), 1, 3) for key in ("loss", "gradient")]
        rows.append((pooling, len(records), len(records[0]), *cells))
    print("\n".join(table(head, rows)))
    means = {pooling: mean_records(records) for pooling, records in runs.items()}
    seeds = f" (mean of {len(records)} seeds)" if len(records) > 1 else ""
    title = f"{config.net_name}, loss along the gradient at the stem's output{seeds}"
    plot_landscape(means, arguments.output / "landscape.png", title)
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
    bar = progress_bar(record_landscape(config, every), total, path.stem, "step")
    found = [record for record in bar if len(record) > 1]
    write_json(path, {"config": settings, "band_widths": band_widths(found), "records": found})
    return found


def compare(argv: Sequence[str]) -> int:
    """Compare run folders: covpool compare NAME=FOLDER ... [--plot FILE.png] [--title TEXT]."""
    parser = new_parser("covpool compare", compare.__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run folder and what to call it")
    parser.add_argument("--plot", type=Path, help="PNG file for loss and accuracy over epochs")
    parser.add_argument("--title", default="", help="title of the plot")
    arguments = parser.parse_args(argv)
    runs = {}
    for run in arguments.runs:
        name, separator, folder = run.partition("=")
        runs[name if separator else Path(name).name] = read_epochs(Path(folder if separator else name))
    print(comparison_table(runs))
    if arguments.plot:
        plot_comparison(runs, arguments.plot, arguments.title)
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
    base = {name: statistics.fmean(run[name] for run in networks[reference]) for name in networks[reference][0]}
    figures: dict[str, Any] = {}
    for name, runs in networks.items():
        try:
            relative = [statistics.fmean(relative_errors(run, base).values()) for run in runs]
        except ValueError as error:
            raise UserError(str(error)) from error
        figures[name] = {
            "n": len(runs),
            "mean_error": spread([statistics.fmean(run.values()) for run in runs]),
            "relative_mce": spread(relative),
            "corruptions": {corruption: spread([run[corruption] for run in runs]) for corruption in runs[0]},
        }
    rows = [
        (name, entry["n"], spread_text(entry["mean_error"], 100, 2), spread_text(entry["relative_mce"], 1, 1))
        for name, entry in figures.items()
    ]
    print("\n".join(table(("network", "n", "mean error (%)", f"mCE relative to {reference} (%)"), rows)))
    if arguments.output:
        write_json(arguments.output, figures)
    if arguments.plot:
        bars = {
            name: {corruption: [100 * run[corruption] for run in runs] for corruption in runs[0]}
            for name, runs in networks.items()
        }
        plot_groups(bars, arguments.plot, "top-1 error (%)", "Error by corruption, mean over severities and seeds")
    return 0


def _corruption_errors(path: Path) -> dict[str, float]:
    try:
        content = json.loads(read_text(path))
        return {name: entry["error"] for name, entry in content["corruptions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of eval.py --robustness=imagenet_c: {error}") from error


def dropcov_rate(argv: Sequence[str]) -> int:
    """The adaptive rate of DropCov over training: covpool dropcov-rate NAME=RUN[,RUN ...] ... --plot FILE.png.

    Each RUN is the run folder of a training with DropCov, with the checkpoints of its epochs (keep_checkpoint_max).
    """
    parser = new_parser("covpool dropcov-rate", dropcov_rate.__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN ...]", help="name, and its run folders")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--batches", type=count, default=20, help="batches over which a rate is averaged")
    parser.add_argument("--data_path", default="", help="the data set, if not where the runs had it")
    arguments = parser.parse_args(argv)
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


def few_shot(argv: Sequence[str]) -> int:
    """Few-shot accuracy on new classes: covpool few-shot NAME=CKPT[,CKPT ...] ... --data_path=DIR.

    Each CKPT is a checkpoint of a training on other classes; several of a name are its seeds. An image gets the class
    whose mean is nearest to its pooled vector, of length 1. Columns: mean over seeds of the accuracy in %, half of the
    95 % confidence interval over episodes (the widest of the seeds), and the standard deviation over seeds.
    """
    parser = new_parser("covpool few-shot", few_shot.__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CKPT[,CKPT ...]", help="name, and its checkpoints")
    parser.add_argument("--data_path", required=True, help="the data set of the new classes")
    parser.add_argument("--split", default="val", help="its part (default: val)")
    parser.add_argument("--ways", type=count, default=5, help="classes of an episode (default: 5)")
    parser.add_argument("--shots", type=count, nargs="+", default=[1, 5], help="known images of a class (default: 1 5)")
    parser.add_argument("--queries", type=count, default=15, help="images of a class that are asked for (default: 15)")
    parser.add_argument("--episodes", type=count, default=600, help="episodes (default: 600)")
    parser.add_argument("--seed", type=int, default=1, help="of the episodes")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args(argv)
    named = named_paths(arguments.checkpoints, "NAME=CKPT[,CKPT ...]")
    config = Config(data_path=arguments.data_path, split=arguments.split)
    with open_session(config):
        from covpool.research.few_shot import episode_accuracies, half_width, pooled_vectors

        results: dict[str, dict[str, dict[str, list[float]]]] = {}
        for name, files in named.items():
            results[name] = {f"{shots}-shot": {"accuracy": [], "half_width": []} for shots in arguments.shots}
            for file in files:
                vectors, classes = pooled_vectors(file, config)
                for shots in arguments.shots:
                    counts = (arguments.ways, shots, arguments.queries, arguments.episodes, arguments.seed)
                    found = episode_accuracies(vectors, classes, *counts)
                    results[name][f"{shots}-shot"]["accuracy"].append(float(found.mean()))
                    results[name][f"{shots}-shot"]["half_width"].append(half_width(found))
    rows = []
    for name, by_shots in results.items():
        cells = []
        for entry in by_shots.values():
            spread_over = f"; {100 * statistics.stdev(entry['accuracy']):.2f}" if len(entry["accuracy"]) > 1 else ""
            mean, half = statistics.fmean(entry["accuracy"]), max(entry["half_width"])
            cells.append(f"{100 * mean:.2f} ± {100 * half:.2f}{spread_over}")
        rows.append((name, str(len(named[name])), *cells))
    print("\n".join(table(["", "n", *(f"{shots}-shot (%)" for shots in arguments.shots)], rows)))
    if arguments.output:
        write_json(arguments.output, results)
    return 0
