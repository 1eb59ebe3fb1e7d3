"""Trains a small network with random faults, resumes after each, and counts what was lost.

    python -m benchmarks.soak --minutes 10 --seed 0 --output outputs/soak

Faults come in shuffled rounds of all kinds: the training is killed (SIGKILL) or asked to stop (SIGTERM, SIGUSR1); its
newest checkpoint is damaged after a kill (a flipped byte, a file cut short); an image is damaged between two starts
and repaired before the next one. After each fault the training goes on with ``--resume_ckpt=auto``. ``output`` must be
new or empty; it receives the run folder, a copy of the images, ``soak.json`` and ``soak.md``. The Markdown report goes
to standard output and the course to standard error. Exit code 1 if anything was lost or left over.

Steps lost are counted in two ways that know nothing of each other: against the newest undamaged checkpoint in the
index before the restart, and against the last multiple of SAVE_STEPS that metrics.jsonl shows to be passed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak_training import KINDS, Soak


def summary(soak: Soak, seconds: float) -> dict[str, Any]:
    """Figures of a soak."""
    starts, epochs, left = soak.starts, soak.epochs(), soak.files_left_over()
    problems = [f"start {i} ({s.kind}): {p}" for i, s in enumerate(starts, 1) for p in s.problems]
    problems += [f"left over: {name}" for name in left]
    if epochs != list(range(1, len(epochs) + 1)):
        problems.append(f"metrics.jsonl holds epochs {epochs}")
    first, last = starts[0].rss_last, starts[-1].rss_last
    growth = round((last - first) / max(1, len(starts) - 1), 2)
    return {
        "minutes": round(seconds / 60, 1),
        "starts": len(starts),
        "faults": {kind: sum(s.kind == kind and s.lost is not None for s in starts) for kind in KINDS},
        "survived": {kind: sum(s.kind == kind and s.lost == 0 and not s.problems for s in starts) for kind in KINDS},
        "steps_lost_beyond_the_last_checkpoint": sum(s.lost or 0 for s in starts),
        "steps": soak.last_step(),
        "epochs": len(epochs),
        "rss_mib": {"first_start": round(first, 1), "last_start": round(last, 1)},
        "rss_growth_per_restart_mib": growth,
        "rss_growth_within_a_start_mib": round(max(s.rss_last - s.rss_first for s in starts), 1),
        "processes_left": sum("left over: process" in p for p in problems),
        "files_left": left,
        "problems": problems,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "host": f"{platform.machine()}, {os.cpu_count()} cores, MindSpore {importlib.metadata.version('mindspore')}",
        "course": [asdict(s) for s in starts],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"Soak of {report['minutes']} minutes ({report['date']}; {report['host']}): {report['starts']} starts, "
        f"{report['steps']} steps, {report['epochs']} epochs",
        "",
        "| fault | injected | survived |",
        "| --- | --- | --- |",
        *(f"| {kind} | {count} | {report['survived'][kind]} |" for kind, count in report["faults"].items()),
        "",
        f"* steps lost beyond the last checkpoint: {report['steps_lost_beyond_the_last_checkpoint']}",
        f"* resident memory: {report['rss_mib']['first_start']} MiB in the first start, "
        f"{report['rss_mib']['last_start']} MiB in the last, {report['rss_growth_per_restart_mib']:+} MiB per restart; "
        f"at most {report['rss_growth_within_a_start_mib']:+} MiB between first step and fault of one start",
        f"* processes left: {report['processes_left']}; files left: {len(report['files_left'])}",
        f"* problems: {'; '.join(report['problems']) or 'none'}",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the soak; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--images", type=int, help="training images a class (all 200)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    if output.exists() and any(output.iterdir()):
        parser.error(f"--output {output} is not empty")
    soak = Soak(output, arguments.seed, arguments.images)
    began, last = time.monotonic(), False
    end = began + 60 * arguments.minutes
    for kind in soak.kinds():
        soak.start("SIGTERM" if last else kind, end)
        done = soak.starts[-1]
        print(f"{time.monotonic() - began:6.0f} s  {done}", file=sys.stderr, flush=True)
        if last:
            break
        last = time.monotonic() >= end  # the last start shows that the last fault was survived
    report = summary(soak, time.monotonic() - began)
    (output / "soak.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (output / "soak.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
