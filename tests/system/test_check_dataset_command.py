"""The check of a data set as a person sees it: on all cores, with a bar, down to a clean list."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import psutil
from road_commands import make_folder


def test_all_cores_a_bar_and_a_clean_list(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", 30, 100)
    victim = sorted((data / "train" / "bag").iterdir())[0]
    victim.write_bytes(b"")
    command = ["-m", "covpool", "check-data", f"--data_path={data}", "--write_clean_list=clean.txt"]
    terminal, end = os.openpty()
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, stdout=end, stderr=end)
    os.close(end)
    said, most = b"", 0
    while process.poll() is None:
        if select.select([terminal], [], [], 0.005)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
        workers = 0
        for child in psutil.Process(process.pid).children():
            try:
                workers += "multiprocessing.spawn" in " ".join(child.cmdline())
            except psutil.Error:
                continue
        most = max(most, workers)
    os.close(terminal)
    assert process.wait(60) == 1
    text = said.decode()
    assert most == len(os.sched_getaffinity(0))
    assert re.search(r"images: +\d+%.* \d+/400 \[", text)  # it vanishes at its end
    assert f"problem: damaged: train/bag/{victim.name}: the file is empty" in text
    assert "problems: 1, notes: 0" in text and "clean.txt: 399 images" in text
    listed = (tmp_path / "clean.txt").read_text().splitlines()
    assert len([line for line in listed if not line.startswith("#")]) == 399
