"""Tries faults of many families on the commands, from outside, and counts what was survived.

    python -m benchmarks.faults --families command_lines yaml --count 100 --seed 1 --output outputs/faults
    python -m benchmarks.faults --all --output outputs/faults

Survived is: a correct result, or one clear line (`error: ...`) with exit code 1 or 2 (a signal's own after a saved
stop); nothing lost (checkpoints, records, results), nothing left (processes, hidden or temporary files), nothing
hidden (no traceback, no wrong result with exit code 0). None of this is taken from the commands' own word: folders are
compared before and after, results with known ones, checkpoints are read here, images with Pillow alone. A fault
depends on family, seed and number alone; `--only N` repeats one and keeps its folder. What is in `output` already is
not tried again. Exit code 1 if anything was not survived.
"""

from __future__ import annotations

import argparse
import collections
import fcntl
import json
import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

from benchmarks.fault_families import (
    checkpoints,
    configuration,
    environment,
    exports,
    foreign,
    image_files,
    jobs,
    kernels,
    pickles,
    trainings,
)
from benchmarks.fault_families.material import make_material
from benchmarks.fault_families.trial import Trial, adopt_orphans

# Each with the number of faults that --all tries: 1,755.
FAMILIES: dict[str, tuple[Callable[[Trial], None], int]] = {
    "command_lines": (configuration.command_lines, 500),
    "yaml": (configuration.yaml_files, 300),
    "images": (image_files.images, 200),
    "crafted_checkpoints": (checkpoints.crafted_checkpoints, 140),
    "crafted_exports": (exports.crafted_exports, 140),
    "pickles": (pickles.pickles, 120),
    "foreign_files": (foreign.foreign_files, 99),
    "changed_configuration": (trainings.changed_configuration, 50),
    "disks_and_paths": (environment.disks_and_paths, 50),
    "damaged_kernels": (kernels.damaged_kernels, 40),
    "launch_environments": (environment.launch_environments, 34),
    "signals": (trainings.signals, 30),
    "changed_data": (trainings.changed_data, 20),
    "pipes": (environment.pipes, 20),
    "double_faults": (jobs.double_faults, 8),
    "pauses": (jobs.pauses, 4),
}


def main() -> int:
    """Try what the arguments say; 1 if anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[], metavar="NAME", help=", ".join(FAMILIES))
    parser.add_argument("--all", action="store_true", help="every family")
    parser.add_argument("--count", type=int, help="faults of each family (default: 1,755 in all)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other faults (default: 0)")
    parser.add_argument("--only", type=int, metavar="N", help="fault N alone, again")
    parser.add_argument("--again", action="store_true", help="try again what was not survived")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.jsonl and what failed")
    arguments = parser.parse_args()
    if not arguments.families and not arguments.all:
        parser.error("--families NAME ... or --all")
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    lock = (output / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        parser.error(f"--output {output} is in use")
    _warm_up()
    log = output / "results.jsonl"
    results = _read(log)
    for family in FAMILIES if arguments.all else arguments.families:
        function, count = FAMILIES[family]
        material = make_material(output, everything=family != "yaml")
        numbers = range(arguments.count or count) if arguments.only is None else [arguments.only]
        for number in numbers:
            key = (family, arguments.seed, number)
            done = key in results and not (arguments.again and results[key]["problems"])
            if done and arguments.only is None:
                continue
            result = _try(function, Trial(output / f"{family}-{arguments.seed}-{number}", _rng(*key), material))
            results[key] = {"family": family, "seed": arguments.seed, "number": number, **result}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[key]) + "\n")
            if result["problems"] or arguments.only is not None:
                print(json.dumps(results[key], indent=1), file=sys.stderr, flush=True)
    print(table(list(results.values())))
    return 1 if any(result["problems"] for result in results.values()) else 0


def table(results: list[dict[str, Any]]) -> str:
    """Tried and survived of each family, as Markdown."""
    tried = collections.Counter(result["family"] for result in results)
    survived = collections.Counter(result["family"] for result in results if not result["problems"])
    lines = ["| family | tried | survived |", "| --- | --- | --- |"]
    lines += [f"| {name.replace('_', ' ')} | {tried[name]} | {survived[name]} |" for name in FAMILIES if tried[name]]
    return "\n".join([*lines, f"| all | {tried.total()} | {survived.total()} |"])


def _try(function: Callable[[Trial], None], trial: Trial) -> dict[str, Any]:
    """Do one fault; its folder stays if it was not survived."""
    began = time.monotonic()
    try:
        function(trial)
    except Exception:  # of the trial: the others are tried all the same
        trial.problem("script", traceback.format_exc()[-600:])
    if not trial.problems:
        shutil.rmtree(trial.folder)
    commands = [" ".join(words)[:2000] for words in trial.commands]
    seconds = round(time.monotonic() - began, 1)
    return {
        "fault": trial.fault,
        "problems": trial.problems,
        "codes": trial.codes,
        "commands": commands,
        "seconds": seconds,
    }


def _rng(family: str, seed: int, number: int) -> random.Random:
    return random.Random(f"{family} {seed} {number}")  # noqa: S311


def _read(log: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Results by family, seed and number; the last of each counts."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    found = map(json.loads, lines)
    return {(result["family"], result["seed"], result["number"]): result for result in found}


def _warm_up() -> None:
    """Import what commands import, once: each then begins as a copy of this process, without another start."""
    adopt_orphans()
    for name in [n for n in os.environ if n.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_", "CXX", "XDG_"))]:
        del os.environ[name]
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore  # noqa: F401 - before torch and onnx

    import covpool.commands.data_sets
    import covpool.commands.networks
    import covpool.evaluation.run
    import covpool.export
    import covpool.training  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
