"""What is set before MindSpore is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from covpool.runtime.environment import prepare_environment

UNUSABLE = {
    "GLOG_v": "abc",
    "GLOG_stderrthreshold": "9",
    "GLOG_logtostderr": "yes",
    "logger_maxBytes": "-1",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "upb",
    "OMP_NUM_THREADS": "0",
}
SCRIPT = """
from covpool.runtime.environment import prepare_environment
prepare_environment()
import mindspore as ms
import mindspore.train.callback
print((ms.Tensor([1.0]) + 1).asnumpy())
"""


def test_values_without_use_are_set_right_with_one_line_each(root: Path, clean_env: dict[str, str]) -> None:
    env = {**clean_env, **UNUSABLE, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[2.]\n"
    lines = done.stderr.splitlines()
    assert len(lines) == len(UNUSABLE), done.stderr
    for line, (name, value) in zip(lines, UNUSABLE.items()):
        assert line.startswith(f"{name}={value} cannot be used by MindSpore: ")


def test_usable_values_stay_and_missing_ones_are_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usable = {"GLOG_v": "1", "GLOG_logtostderr": "0", "GLOG_log_dir": "logs", "OMP_NUM_THREADS": "4,2"}
    for name, value in usable.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "")
    prepare_environment()
    assert {name: os.environ[name] for name in usable} == usable
    assert os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] == "python" and not caplog.records


@pytest.mark.parametrize("folder", ["", "/dev/null", "/dev/null/logs"])
def test_logs_need_a_folder(folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("GLOG_logtostderr", "0")
    monkeypatch.setenv("GLOG_log_dir", folder)
    prepare_environment()
    assert "GLOG_logtostderr" not in os.environ and "needs GLOG_log_dir" in caplog.text
