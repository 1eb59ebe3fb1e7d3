"""Training and evaluation on a GPU against PyTorch: whole networks, and poolings alone.

    python -m benchmarks.device --peer_python /PATH/TO/python3 --output docs/benchmarks     writes device.md and .json

Both runtimes live in processes of their own at the same time, PyTorch's with an interpreter of its own, since the two
need different versions of CUDA. A round is a block of steps of every network in every runtime, one after the other,
in rotating order; figures are medians over the rounds. Images lie in the device's memory: data is no part of this.
Levels: O0 (float32; both frameworks let convolutions use TF32 by default), O0-exact (without TF32), O2 (float16;
autocast in PyTorch).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import measure

LEVELS = {"O0": ["--level=O0"], "O0-exact": ["--level=O0", "--no_tf32"], "O2": ["--level=O2"]}
POOLINGS = ("gap", "gcp", "dropcov", "fast_mpn")
RUNTIMES = {"mindspore": "MindSpore", "torch": "PyTorch"}
PHASES = ("train", "evaluate")


class Peer:
    """A process that answers commands."""

    def __init__(self, runtime: str, python: str, device: str, level: str, tuned: bool) -> None:
        command = [
            python,
            "-m",
            "benchmarks.device_worker",
            f"--runtime={runtime}",
            f"--device_target={device}",
            *LEVELS[level],
        ]
        self.process = subprocess.Popen(
            command + ["--tuned"] * tuned, cwd=measure.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *command: Any) -> Any:
        """The answer to a command; None where it failed, which the process tells on standard error."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process was started without pipes")
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit("a process of the benchmark has ended; its error is above")
        answer = json.loads(line)
        if "error" in answer:
            measure.say(f"failed: {command}: {answer['error']}")
        return answer.get("answer")

    def stop(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(
    arguments: argparse.Namespace, level: str, kind: str, cases: Sequence[Sequence[Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure these cases at a level; a row each, and what the runtimes say of themselves."""
    pythons = {"mindspore": sys.executable, "torch": arguments.peer_python}
    peers = {
        runtime: Peer(runtime, pythons[runtime], arguments.device_target, level, arguments.tuned)
        for runtime in arguments.runtimes
    }
    versions: dict[str, str] = {}
    for peer in peers.values():
        versions.update(peer.ask("about"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for case in cases:
            key = "-".join(map(str, case))
            row: dict[str, Any] = {"level": level, "kind": kind, "case": list(case), "key": key}
            extra = [f"{place}/{key}.npz"] if kind == "network" else []
            for runtime, peer in peers.items():
                row[runtime] = {"prepared": peer.ask("prepare", key, kind, *case, *extra)}
                for phase in PHASES:
                    row[runtime][phase] = []
            measure.say(f"{level} {key}: " + "; ".join(f"{r} {row[r]['prepared']}" for r in peers))
            rows.append(row)
        turns = [(row, runtime) for row in rows for runtime in peers if row[runtime]["prepared"] is not None]
        begun = time.monotonic()
        for index in range(arguments.rounds + 1):  # the first one warms up
            shift = index * 3 % len(turns) if turns else 0
            for row, runtime in [*turns[shift:], *turns[:shift]]:
                for phase in PHASES:
                    found = peers[runtime].ask(phase, row["key"], arguments.steps)
                    if index and found is not None:
                        row[runtime][phase].append(found["seconds"])
            if index >= 5 and time.monotonic() - begun > arguments.seconds:
                break
    for peer in peers.values():
        peer.stop()
    for row in rows:
        for runtime in peers:
            for phase in PHASES:
                times = row[runtime][phase]
                row[runtime][phase] = measure.summary(times) if times else None
    return rows, versions


def _speed(row: dict[str, Any], runtime: str, phase: str) -> str:
    """Images per second of a network, microseconds per image of a pooling."""
    found = row[runtime][phase]
    if found is None:
        return "failed"
    batch = row["case"][2]
    if row["kind"] == "network":
        return f"{batch / found['median']:.0f} (±{found['spread'] / 2:.1%})"
    return f"{found['median'] / batch * 1e6:.2f} (±{found['spread'] / 2:.1%})"


def _ratio(over: Any, under: Any) -> str:
    return f"{over['median'] / under['median']:.3f}" if over and under else "-"


def markdown(report: dict[str, Any]) -> str:
    """A table of networks and one of poolings."""
    runtimes = report["about"]["runtimes"]
    titles = [RUNTIMES[r] for r in runtimes]
    lines = ["# On a GPU", "", *measure.heading(report["about"])]
    for kind, unit in (("network", "Images per second"), ("pooling", "Microseconds per image")):
        rows = []
        for row in (r for r in report["results"] if r["kind"] == kind):
            for phase in PHASES:
                cells = [_speed(row, r, phase) for r in runtimes]
                both = _ratio(row["torch"][phase], row["mindspore"][phase]) if len(runtimes) == 2 else "-"
                plain = next((r for r in report["results"] if _is_plain(r, row)), None)
                own = [_ratio(row[r][phase], plain[r][phase]) if plain else "-" for r in runtimes]
                rows.append([row["case"][0], *row["case"][1:3], row["level"], phase, *cells, both, *own])
        if not rows:
            continue
        head = ["network", "pooling", "batch"] if kind == "network" else ["pooling", "d", "batch"]
        head += ["level", "phase", *titles, "speed, MindSpore / PyTorch", *(f"time / gcp, {title}" for title in titles)]
        lines += [f"{unit}: median (± half of the rounds' interquartile range).", "", *measure.table(head, rows), ""]
    return "\n".join(lines) + "\n"


def _is_plain(candidate: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether the candidate is plain covariance pooling in the same place."""
    if candidate["kind"] != row["kind"] or candidate["level"] != row["level"]:
        return False
    where = 1 if row["kind"] == "network" else 0
    wanted = list(row["case"])
    wanted[where] = "gcp"
    return bool(candidate["case"] == wanted)


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--peer_python", default=sys.executable, help="interpreter with PyTorch (default: this one)")
    parser.add_argument("--device_target", choices=("GPU", "CPU"), default="GPU")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--networks", nargs="*", default=["resnet50"])
    parser.add_argument("--poolings", nargs="+", default=list(POOLINGS))
    parser.add_argument("--alone", nargs="*", default=[], help="poolings to measure alone, at O0")
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), default=["O0", "O2"])
    parser.add_argument("--tuned", action="store_true", help="both let cuDNN try its algorithms out")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--reduction_dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="rounds at most; at least 5")
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--seconds", type=float, default=1e9, help="no further round after this many, from the 5th on")
    arguments = parser.parse_args()
    about = measure.environment(
        ("numpy",),
        device=arguments.device_target,
        batch=arguments.batch_size,
        size=arguments.image_size,
        steps=arguments.steps,
        tuned=arguments.tuned,
        runtimes=arguments.runtimes,
    )
    results: list[dict[str, Any]] = []

    def add(level: str, kind: str, cases: Sequence[Sequence[Any]]) -> None:
        rows, versions = compare(arguments, level, kind, cases)
        about["versions"].update(versions)
        results.extend(rows)
        print(markdown({"about": about, "results": rows}), flush=True)
        if arguments.output is not None:  # what is there should the next one fail
            arguments.output.mkdir(parents=True, exist_ok=True)
            found = json.dumps({"about": about, "results": results}, indent=1)
            (arguments.output / "device.json").write_text(found + "\n", encoding="utf-8")

    for name in arguments.networks:
        for level in arguments.levels:
            cases = [[name, pooling, arguments.batch_size, arguments.image_size] for pooling in arguments.poolings]
            add(level, "network", cases)
    if arguments.alone:
        add("O0", "pooling", [[name, arguments.reduction_dim, arguments.batch_size] for name in arguments.alone])
    measure.report(arguments.output, "device", {"about": about, "results": results}, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
