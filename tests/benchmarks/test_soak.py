"""The soak itself: a very short one, and that it notices what it is there to notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import markdown, summary
from benchmarks.soak_training import KINDS, Soak, Start, digest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.only_with_all
def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--seed=0", f"--output={tmp_path / 'soak'}"]
    done = subprocess.run(
        [*command, "--minutes=0.1", "--images=21"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert report["starts"] >= 2 and sum(report["faults"].values()) == report["starts"] - 1
    assert report["faults"] == report["survived"] and report["problems"] == []
    assert report["steps_lost_beyond_the_last_checkpoint"] == 0 and report["processes_left"] == 0
    assert "| kill |" in done.stdout
    again = subprocess.run([*command, "--minutes=0.1"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2 and "is not empty" in again.stderr


def test_losses_and_leftovers_are_noticed(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 0, 21)
    folder = soak.run / "checkpoints"
    folder.mkdir(parents=True)
    entries = []
    for step in (10, 20):
        path = folder / f"{step}.ckpt"
        path.write_bytes(bytes(step))
        entries.append({"file": path.name, "step": step, "sha256": digest(path)})
    (folder / "index.json").write_text(json.dumps({"checkpoints": entries, "last": "20.ckpt"}))
    records = [{"kind": "step", "step": step} for step in range(1, 25)] + [{"kind": "epoch", "epoch": 2, "step": 24}]
    (soak.run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert soak.newest_whole() == 20 and soak.last_step() == 24
    assert soak.steps == 6 and soak.floor() == 18  # the end of an epoch of six steps, and 23 are surely done
    (folder / "20.ckpt").write_bytes(b"half")
    (folder / ".30.ckpt.tmp").write_bytes(b"half")
    assert soak.newest_whole() == 10
    assert soak._left_over() == ["20.ckpt is not what the index says"]
    assert soak.files_left_over() == [".30.ckpt.tmp"]
    soak.starts = [Start("kill", last=20, lost=3, problems=["3 steps lost"]), Start("SIGTERM")]
    report = summary(soak, 60.0)
    assert report["faults"]["kill"] == 1 and report["survived"]["kill"] == 0
    assert report["steps_lost_beyond_the_last_checkpoint"] == 3
    assert report["problems"] == [
        "start 1 (kill): 3 steps lost",
        "left over: .30.ckpt.tmp",
        "metrics.jsonl holds epochs [2]",
    ]
    assert "3 steps lost" in markdown(report)


def test_faults_follow_from_the_seed_and_all_kinds_come(tmp_path: Path) -> None:
    first, again, other = (Soak(tmp_path / str(i), seed, 21) for i, seed in enumerate((1, 1, 2)))
    drawn = [[kind for kind, _ in zip(soak.kinds(), range(24))] for soak in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sorted(drawn[0][i : i + 6]) == sorted(KINDS) for i in range(0, 24, 6))
