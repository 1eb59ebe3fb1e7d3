"""Threads of MindSpore's runtime where a process may not use all cores of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
os.cpu_count = lambda: 16
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from src.runtime.environment import prepare_environment
prepare_environment()
import mindspore as ms
before = ms.get_context("runtime_num_threads")
from src.runtime.distributed import set_context
set_context("GRAPH", "CPU")
print(before, ms.get_context("runtime_num_threads"))
"""


def test_no_more_threads_than_cores(root: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert said[-1] == "1"
    assert said[-2] != "1", "MindSpore knows by itself: the setting is not needed"
