"""The script of faults itself: it notices what it is there to notice, and repeats a fault."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.fault_families import wire
from benchmarks.fault_families.trial import Trial, adopt_orphans

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, "-m", "benchmarks.faults"]
NOTICED = {
    "a crash": ("kill -SEGV $$", "crash: SIGSEGV"),
    "another exit code": ("exit 7", "code: 7"),
    "no line": ("exit 1", "message: 0 error lines"),
    "two lines": ("echo error: a >&2; echo error: b >&2; exit 2", "message: 2 error lines"),
    "a traceback": ("echo 'Traceback (most recent call last):' >&2", "message: traceback"),
    "many lines": ("seq 50 >&2", "message: 50 lines"),
    "a lost checkpoint": ("rm run/a.ckpt", "lost: checkpoints"),
    "a changed file": (
        "echo error: x >&2; echo 1 > run/a.txt; exit 2",
        "lost: refused, but made [], changed ['run/a.txt']",
    ),
    "a new file": ("echo error: x >&2; touch run/b; exit 1", "lost: refused, but made ['run/b']"),
    "a hidden file": ("touch run/.x", "left: files ['run/.x']"),
    "a temporary file": ("touch $TMPDIR/x", "left: temporary files ['x']"),
    "a file elsewhere": ("touch elsewhere", "left: written outside: ['elsewhere']"),
}


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    made = Trial(tmp_path / "trial", random.Random(0), tmp_path)
    (made.work / "run").mkdir()
    (made.work / "run" / "a.ckpt").write_bytes(wire.sealed(b"weights"))
    (made.work / "run" / "a.txt").write_text("text")
    return made


def run(trial: Trial, script: str, timeout: float = 20) -> list[str]:
    """Problems after a shell script, in a process that starts programs as the benchmark does."""
    trial.run("/bin/sh", "-c", script, timeout=timeout, how={"fresh": True})
    return trial.problems


@pytest.mark.parametrize("fault", NOTICED)
def test_what_is_not_survived_is_noticed(trial: Trial, fault: str) -> None:
    script, problem = NOTICED[fault]
    problems = run(trial, script)
    assert [p for p in problems if p.startswith(problem)] and len(problems) == 1, problems


def test_what_is_survived_is_no_problem(trial: Trial) -> None:
    assert run(trial, "mv run/a.ckpt run/b.ckpt; exit 0") == []  # moved aside is not lost
    assert run(trial, "echo error: no such key >&2; exit 2") == []
    assert trial.codes == [0, 2]


def test_a_hang_is_noticed_and_ended(trial: Trial) -> None:
    began = time.monotonic()
    assert run(trial, "sleep 60", timeout=0.3)[0].startswith("hang: still there")
    assert time.monotonic() - began < 20


def test_a_process_that_stays_is_noticed_and_ended(trial: Trial) -> None:
    code = "import os, time; os.fork() or time.sleep(60)"
    trial.patience = 0.3
    adopt_orphans()
    try:
        trial.run(sys.executable, "-c", code, how={"fresh": True})
    finally:
        adopt_orphans(False)  # other tests wait for such processes to vanish
    assert [problem[:16] for problem in trial.problems] == ["left: processes "]


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    entries = [wire.Entry(b"fc.weight", (2, 3), b"Float32", bytes(24)), wire.Entry(b"a", (-1,), b"str", b"x" * 300)]
    content = wire.sealed(wire.written(entries))
    assert [entry.changed(dims=()) for entry in wire.read(content)] == [entry.changed(dims=()) for entry in entries]
    assert wire.body(content) == wire.written(entries) and wire.body(b"short") == b"short"


def test_faults_follow_from_the_seed_and_are_not_tried_twice(tmp_path: Path) -> None:
    command = [*SCRIPT, "--families", "yaml", "--output", str(tmp_path / "out")]
    for words in (["--count=3"], ["--count=4"], ["--seed=1", "--count=3"]):
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["number"]) for line in lines] == [(0, n) for n in range(4)] + [(1, n) for n in range(3)]
    assert [line["fault"] for line in lines[:3]] != [line["fault"] for line in lines[4:]]
    assert "| yaml | 7 | 7 |" in done.stdout


@pytest.mark.slow
def test_one_fault_of_each_cheap_family(tmp_path: Path) -> None:
    cheap = ["command_lines", "images", "crafted_checkpoints", "crafted_exports", "pickles", "foreign_files"]
    command = [*SCRIPT, "--families", *cheap, "--count=1", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and "| all | 6 | 6 |" in done.stdout, done.stdout + done.stderr
