"""What is told of a device: the report, and the command that prints it or the variables for a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from covpool import cli
from covpool.commands import figures as command
from covpool.runtime import cuda, devices
from covpool.runtime.devices import DeviceReport


def test_report_without_gpu(no_gpu: None) -> None:
    report = devices.check_device("GPU")
    assert not report.usable
    assert report.problems == (
        "the CUDA 11 libraries are not installed",
        "libraries not found: libcudart.so.11.0",
        "no NVIDIA driver: libcuda.so.1 is not found",
    )
    assert report.install == (cuda.INSTALL, devices.INSTALL_DRIVER)
    assert report.versions["CUDA_HOME"] == "not set"
    assert report.text().startswith("GPU: not usable\n  problem: the CUDA 11 libraries are not installed\n")


def test_report_of_a_complete_gpu_depends_on_the_trial(
    wheels: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = cuda.find_wheels(wheels())
    outcome: list[str] = []
    monkeypatch.setattr(devices, "find_wheels", lambda: found)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(devices, "linked_libraries", lambda *_: {cuda.DRIVER: "/usr/lib/libcuda.so.1"})
    monkeypatch.setattr(devices, "_trial", lambda device: outcome)
    report = devices.check_device("GPU")
    assert report.usable
    assert report.install == ()
    assert report.versions["nvidia-cudnn-cu11"] == "11.8.89"
    outcome.append("no CUDA-capable device is detected")
    assert devices.check_device("GPU").problems == ("no CUDA-capable device is detected",)


def test_report_of_ascend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text("# CANN\nVersion=8.3.0.1.200\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setattr(devices, "linked_libraries", lambda *_: {"libge_runner.so": None})
    report = devices.check_device("Ascend")
    assert report.problems[0] == "libraries of CANN not found: libge_runner.so"
    assert report.versions["CANN"] == "8.3.0.1.200"
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path / "compiler"))
    assert "without compiler/version.info" in devices.check_device("Ascend").versions["ASCEND_HOME_PATH"]


def test_trial_computes_on_the_cpu_and_tells_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.check_device("CPU").usable
    monkeypatch.setattr(devices, "_TRIAL", "print('PROBLEM no such card'); raise SystemExit(1)")
    assert devices.check_device("CPU").problems == ("MindSpore cannot compute on it: no such card",)
    monkeypatch.setattr(devices, "_TRIAL", "import os; os.abort()")
    assert devices.check_device("CPU").problems == ("MindSpore cannot compute on it: exit code -6",)
    monkeypatch.setitem(devices._TRIAL_LIMIT_S, "CPU", 0.5)
    monkeypatch.setattr(devices, "_TRIAL", "import time; time.sleep(60)")
    assert "longer than 0.5 s" in devices.check_device("CPU").problems[0]


def test_command_reports_and_exits(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["check-device", "--device_target=GPU", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["GPU"]
    assert told["GPU"]["usable"] is False
    assert told["GPU"]["libraries"] == {"libcudart.so.11.0": None, "libcuda.so.1": None}
    monkeypatch.setattr(command, "check_device", lambda device: DeviceReport(device))
    assert cli.run(["check-device", "--device_target=Ascend", "--libraries"]) == 0
    assert capsys.readouterr().out == "Ascend: usable\n"
    assert cli.run(["check-device"]) == 0
    assert capsys.readouterr().out == "CPU: usable\nGPU: usable\nAscend: usable\n"


def test_command_prints_the_variables(
    wheels: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = cuda.find_wheels(wheels())
    monkeypatch.setattr(command, "find_wheels", lambda: found)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "a prefix"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert cli.run(["check-device", "--print_env"]) == 0
    printed = capsys.readouterr().out
    home = str(next((tmp_path / "a prefix").glob("cuda-11.8-*")))
    assert printed == f"export CUDA_HOME='{home}'\nexport LD_LIBRARY_PATH='{home}/lib64:/opt/lib'\n"
    shell = subprocess.run(["sh", "-c", f"{printed}printenv CUDA_HOME"], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{home}\n"
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(command, "find_wheels", cuda.Wheels)
    assert cli.run(["check-device", "--print_env"]) == 1
    assert capsys.readouterr().err == f"error: the CUDA 11 libraries are not installed: {cuda.INSTALL}\n"
