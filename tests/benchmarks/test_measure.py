"""What the benchmarks share."""

from __future__ import annotations

import argparse
import json
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks import measure


def answer(connection: Connection, start: int) -> None:
    """Counts on from a number; told to fail it ends."""
    state = [start]

    def more(by: int) -> int:
        state[0] += by
        return state[0]

    measure.serve(connection, more=more, fail=lambda: 1 / 0)


class Recorder:
    """Stands for a worker and notes when it was asked."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def ask(self, *command: object) -> int:
        self.calls.append(self.name)
        return len(self.calls)


def test_rounds_rotate_and_everyone_answers_once_in_each() -> None:
    calls: list[str] = []
    found = measure.interleave({name: Recorder(name, calls) for name in "abc"}, 4, "run")
    assert "".join(calls) == "abcbcacababc"
    assert {name: len(values) for name, values in found.items()} == {"a": 4, "b": 4, "c": 4}


def test_summary() -> None:
    found = measure.summary([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (found["median"], found["n"], found["rounds"][-1]) == (3.0, 5, 10.0)
    assert found["spread"] == pytest.approx((7 - 1.5) / 3)
    assert measure.summary([2.0])["spread"] == 0
    assert measure.shown({"median": 0.0123, "spread": 0.5}, ".1f", 1e3) == "12.3 (±25%)"


def test_a_worker_answers_and_its_end_is_noticed() -> None:
    worker = measure.Worker(answer, 5)
    assert worker.ask("more", 2) == 7 and worker.ask("more", 1) == 8
    worker.stop()
    assert worker.process.exitcode == 0
    broken = measure.Worker(answer, 0)
    with pytest.raises(SystemExit, match="has ended"):
        broken.ask("fail")
    broken.stop()


def test_peak_and_work_of_a_network() -> None:
    worker = measure.Worker(measure.network_work, "resnet18", "gap", 224)
    evaluation, training = worker.ask()
    worker.stop()
    # 1.814 G multiply-adds, as published; backward twice that, without the gradient of the images.
    assert evaluation == pytest.approx(2 * 1.814e9, rel=2e-3)
    first = 2 * 112 * 112 * 64 * 3 * 49
    assert training == pytest.approx(3 * evaluation - first, rel=1e-3)


def test_report_says_what_figures_depend_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {**measure.environment(("numpy",), batch=3), "peak_flops": 2.5e11}

    def markdown(values: dict) -> str:
        return "\n".join([*measure.heading(values["about"]), *measure.table(["a", "b"], [[1, "x"]])])

    measure.report(tmp_path / "new", "name", {"about": about}, markdown)
    text = (tmp_path / "new" / "name.md").read_text()
    for part in ("numpy ", "python ", "batch 3", "250 GFLOP/s", "python -m benchmarks.", about["date"], "| 1 | x |"):
        assert part in text
    assert json.loads((tmp_path / "new" / "name.json").read_text())["about"]["batch"] == 3
    assert text in capsys.readouterr().out and "to other processes" in text


def test_command_line_takes_no_abbreviations() -> None:
    parser = measure.arguments_of("text")
    assert parser.parse_args(["--output", "here"]) == argparse.Namespace(output=Path("here"))
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", "here"])
