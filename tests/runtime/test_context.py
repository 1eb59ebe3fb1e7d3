"""Cores; and MindSpore's context: threads where not all cores may be used, float32 for comparisons on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import pytest

from covpool.runtime.distributed import exact_convolutions
from covpool.runtime.environment import available_cores

SCRIPT = """
import os
os.cpu_count = lambda: 16
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from covpool.runtime.environment import prepare_environment
prepare_environment()
import mindspore as ms
before = ms.get_context("runtime_num_threads")
from covpool.runtime.distributed import set_context
set_context("GRAPH", "CPU")
print(before, ms.get_context("runtime_num_threads"))
"""


def test_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 4})
    assert available_cores() == 3


def test_no_more_threads_than_cores(root: Path) -> None:
    command = [sys.executable, "-c", SCRIPT]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert said[-1] == "1"
    assert said[-2] != "1", "MindSpore knows by itself: the setting is not needed"


@pytest.mark.parametrize(("device", "expected"), [("GPU", [{"gpu_config": {"conv_allow_tf32": False}}]), ("CPU", [])])
def test_comparisons_on_a_gpu_are_in_float32(device: str, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(ms, "get_context", {"device_target": device}.get)
    monkeypatch.setattr(ms, "set_context", lambda **settings: calls.append(settings))
    exact_convolutions()
    assert calls == expected
