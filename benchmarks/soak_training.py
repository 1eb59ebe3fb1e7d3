"""The training of the soak: faults that end it, starts after each, and what is compared with what was promised."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "fashion_mnist_sample"
KINDS = ("kill", "SIGTERM", "SIGUSR1", "checkpoint_flipped", "checkpoint_cut", "image")
SAVE_STEPS, KEEP = 10, 3
MARK = "GCP_SOAK"
EXPECTED = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "train.log", "bad_images_train.json"}
EXPECTED |= {"bad_images_val.json", "curves.png"}
RESUMED = re.compile(r"resumed from \S+ after epoch (\d+)(?: and (\d+) steps)?")
STOPPED = re.compile(r"error: stopped by (SIG\w+) after (?:step (\d+) of epoch (\d+)|epoch (\d+));")


@dataclass
class Start:
    """One start of the training and the fault that ended it."""

    kind: str  # the fault
    resumed: Optional[int] = None  # step from which it went on; None for the first start
    last: int = 0  # last step that it recorded
    rss_first: float = 0.0  # resident memory after its first step, MiB
    rss_last: float = 0.0  # resident memory just before the fault, MiB
    # steps lost at the next start beyond the last whole checkpoint; None if there was no next start
    lost: Optional[int] = None
    problems: list[str] = field(default_factory=list)  # whatever was not as promised


class Soak:
    """The training, its folder and what has happened to it.

    Args:
        output: Folder of the soak.
        seed: Of faults, their times and places.
        images: Training images a class, None for all 200.
    """

    def __init__(self, output: Path, seed: int, images: Optional[int]) -> None:
        self.run, self.data, self.said = output / "run", output / "images", output / "said.txt"
        self.rng = random.Random(seed)  # noqa: S311
        self.mark = f"{os.getpid()}.{time.monotonic_ns()}"
        self.starts: list[Start] = []
        for folder in sorted(p for split in ("train", "val") for p in (SAMPLE / split).iterdir()):
            copy = self.data / folder.parent.name / folder.name
            copy.mkdir(parents=True)
            for file in sorted(folder.iterdir())[:images]:
                shutil.copyfile(file, copy / file.name)
        count = len(list((self.data / "train").rglob("*.png")))
        self.steps = count // 32
        if count % 32 == 0:  # an image left out would change the number of steps of an epoch
            raise SystemExit(f"error: {count} training images are a multiple of the batch size 32")
        self._damaged: Optional[tuple[Path, bytes]] = None
        self._spoilt: set[str] = set()  # digests of damaged checkpoints, which stay until they are the oldest

    def kinds(self) -> Iterator[str]:
        """Endless rounds of all kinds, each round in another order."""
        while True:
            yield from self.rng.sample(KINDS, len(KINDS))

    def start(self, kind: str, end: float) -> None:
        """Train until the fault of this kind, or until ``end`` (of time.monotonic()) by SIGTERM."""
        self.starts.append(start := Start(kind))
        promised, floor, before = self.newest_whole(), self.floor(), self.last_step()
        with self.said.open("w", encoding="utf-8") as said:
            env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_"))}
            process = subprocess.Popen(self.command(), cwd=ROOT, env={**env, MARK: self.mark}, stdout=said, stderr=said)
        memory = psutil.Process(process.pid)
        try:
            self._wait_for_resumption(start, process, promised, floor, before)
            steps = self.rng.randrange(SAVE_STEPS + 1, 5 * SAVE_STEPS) + start.last
            pause = self.rng.random() * 0.2  # so that a fault may come at any time within a step and while saving
            while start.last < steps and (time.monotonic() < end or not self.newest_whole()) and process.poll() is None:
                time.sleep(0.02)
                start.last = self.last_step()
            time.sleep(pause)
            start.last = self.last_step()
            start.rss_last = memory.memory_info().rss / 2**20 if process.poll() is None else 0.0
            self._stop(start, process)
        finally:
            process.kill()
            process.wait()
        start.problems += self._left_over()
        self._repair()
        self._damage(kind)

    def command(self) -> list[str]:
        """The training, towards an epoch that it never reaches."""
        config = ROOT / "config" / "quickstart.yaml"
        keys = {"net_name": "resnet10", "base_width": 8, "reduction_dim": 16, "epoch_size": 2000, "log_interval": 1}
        keys |= {"save_checkpoint_steps": SAVE_STEPS, "keep_checkpoint_max": KEEP, "bad_images": "skip"}
        keys |= {"data_path": self.data, "output_path": self.run, "resume_ckpt": "auto", "progress": "plain"}
        return [sys.executable, "train.py", f"--config_path={config}", *(f"--{k}={v}" for k, v in keys.items())]

    def _wait_for_resumption(
        self, start: Start, process: subprocess.Popen, promised: int, floor: int, before: int
    ) -> None:
        deadline, first = time.monotonic() + 300, True
        while first and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            first = not re.search(r"epoch \d+/\d+ step \d+/", self.said.read_text(encoding="utf-8"))
        said = self.said.read_text(encoding="utf-8")
        if first:
            raise SystemExit(f"error: the training did not start: {said[-2000:]}")
        start.rss_first = psutil.Process(process.pid).memory_info().rss / 2**20
        start.last = self.last_step()
        if len(self.starts) == 1:
            return
        found = RESUMED.search(said)
        start.resumed = int(found[1]) * self.steps + int(found[2] or 0) if found else 0
        previous = self.starts[-2]
        if previous.kind.startswith("checkpoint_"):
            floor = 0  # the newest checkpoint is gone: what counts is the one before
        previous.lost = max(0, promised - start.resumed, floor - start.resumed)
        if previous.lost:
            previous.problems.append(f"{previous.lost} steps lost: resumed from {start.resumed}, {before} were done")
        if previous.kind.startswith("checkpoint_") != ("going back to the one before" in said):
            previous.problems.append("the warning of a damaged checkpoint is missing, or out of place")
        if (previous.kind == "image") != ("1 bad images of train left out" in said):
            previous.problems.append("the damaged image was not left out, or a good one was")

    def _stop(self, start: Start, process: subprocess.Popen) -> None:
        """End the training by the signal of its fault; what it says and its exit code must be as promised."""
        if process.poll() is not None:
            start.problems.append(f"ended by itself, code {process.returncode}: {self.said.read_text()[-500:]}")
            return
        gentle = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "image": signal.SIGTERM}
        number = gentle.get(start.kind, signal.SIGKILL)
        process.send_signal(number)
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            start.problems.append(f"still there 120 s after {number.name}")
            return
        expected = -number if number == signal.SIGKILL else 128 + number
        if code != expected:
            start.problems.append(f"exit code {code} after {number.name} instead of {expected}")
        if number != signal.SIGKILL:
            found = STOPPED.search(self.said.read_text(encoding="utf-8"))
            step = -1
            if found:
                step = int(found[4]) * self.steps if found[4] else (int(found[3]) - 1) * self.steps + int(found[2])
            start.last = self.last_step()
            if step != self.newest_whole() or step != start.last:
                start.problems.append(
                    f"{number.name} reports step {step}, saved {self.newest_whole()}, done {start.last}"
                )

    def _damage(self, kind: str) -> None:
        if kind == "image":
            path = self.rng.choice(sorted((self.data / "train").rglob("*.png")))
            self._damaged = (path, path.read_bytes())
            path.write_bytes(self._damaged[1][:100])
        if kind.startswith("checkpoint_"):
            path = self.run / "checkpoints" / self._index()["last"]
            content = bytearray(path.read_bytes())
            place = self.rng.randrange(len(content))
            content[place] ^= 0xFF
            path.write_bytes(content if kind == "checkpoint_flipped" else content[:place])
            self._spoilt.add(digest(path))

    def _repair(self) -> None:
        if self._damaged:
            self._damaged[0].write_bytes(self._damaged[1])
            self._damaged = None

    def _index(self) -> dict[str, Any]:
        path = self.run / "checkpoints" / "index.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"checkpoints": []}

    def newest_whole(self) -> int:
        """Step of the newest checkpoint in the index that is what the index says; 0 if there is none."""
        for entry in reversed(self._index()["checkpoints"]):
            path = self.run / "checkpoints" / entry["file"]
            if digest(path) == entry["sha256"]:
                return int(entry["step"])
        return 0

    def _records(self, size: Optional[int] = None) -> Iterator[dict[str, Any]]:
        """Objects of metrics.jsonl, the last one first; a cut line is passed over."""
        path = self.run / "metrics.jsonl"
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - size) if size else 0)
                for line in reversed(file.read().splitlines()):
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue

    def last_step(self) -> int:
        """Last step in metrics.jsonl; 0 if there is none."""
        return max((r["step"] for r in self._records(2000)), default=0)

    def floor(self) -> int:
        """Last step that must have been saved: the last due one with a step recorded after it."""
        epochs, within = divmod(self.last_step() - 1, self.steps)
        return max(0, epochs * self.steps + within // SAVE_STEPS * SAVE_STEPS)

    def _left_over(self) -> list[str]:
        """Processes of the training that are still there, half files under real names, files that do not belong."""
        problems = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    problems.append(f"left over: process {process.cmdline()}")
            except psutil.Error:
                continue
        for entry in self._index()["checkpoints"]:
            path = self.run / "checkpoints" / entry["file"]
            if digest(path) not in {entry["sha256"], *self._spoilt}:
                problems.append(f"{entry['file']} is not what the index says")
        return problems

    def files_left_over(self) -> list[str]:
        """Names in the run folder that a training which ended in good order does not have."""
        index = self._index()
        named = {"index.json", "best.ckpt", *(entry["file"] for entry in index["checkpoints"])}
        found = [p.name for p in (self.run / "checkpoints").iterdir() if p.name not in named]
        return found + [p.name for p in self.run.iterdir() if p.name not in EXPECTED]

    def epochs(self) -> list[int]:
        """Epochs in metrics.jsonl in their order."""
        return [r["epoch"] for r in self._records() if r["kind"] == "epoch"][::-1]


def digest(path: Path) -> str:
    """SHA-256 of a file, empty if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
