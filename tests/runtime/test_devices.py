from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from scripts import check_device as command
from src.errors import UserError
from src.runtime import cuda, devices
from src.runtime.devices import DeviceReport

RELEASE = re.compile(r"Cuda compilation tools, release (\d+\.\d+),")


@pytest.fixture
def compile_library(tmp_path: Path) -> Callable[..., Path]:
    """Build a shared library that needs others, none of which its own search path names."""

    def build(name: str, folder: str = "lib", needs: tuple[Path, ...] = ()) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        symbol = re.sub(r"\W", "_", name)
        called = [re.sub(r"\W", "_", need.name) for need in needs]
        source = tmp_path / "source.c"
        calls = " + ".join(["1", *(f"{each}()" for each in called)])
        source.write_text(
            "".join(f"int {each}(void);\n" for each in called) + f"int {symbol}(void) {{ return {calls}; }}"
        )
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", path, source, *needs], check=True, timeout=60
        )
        return path

    return build


@pytest.fixture
def wheels(tmp_path: Path) -> Callable[..., list[str]]:
    """Lay packages out as pip does, with empty files or given libraries; returns the search path for them."""

    def install(
        version: str = "11.8.89", without: tuple[str, ...] = (), real: dict[str, Path] | None = None
    ) -> list[str]:
        site = tmp_path / f"site-{version}-{len(without)}"
        for package in cuda.PACKAGES:
            if package in without:
                continue
            info = site / f"{package.replace('-', '_')}-{version}.dist-info"
            folder = site / "nvidia" / package / "lib"
            info.mkdir(parents=True)
            folder.mkdir(parents=True)
            names = [name for name, owner in cuda.LIBRARIES.items() if owner == package and name not in without]
            for name in names:
                (folder / name).write_bytes(real[name].read_bytes() if real else b"")
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            (info / "RECORD").write_text("".join(f"nvidia/{package}/lib/{name},,\n" for name in names))
        return [str(site)]

    return install


def run_child(code: str, root: Path, env: dict[str, str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that has not imported MindSpore."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**env, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_loader_is_asked_where_libraries_are(compile_library: Callable[..., Path], tmp_path: Path) -> None:
    inner = compile_library("libinner.so.3", "a")
    outer = compile_library("libouter.so.2", "b", (inner,))
    plugin = compile_library("libplugin.so", "c", (outer,))
    assert cuda.linked_libraries(plugin)["libouter.so.2"] is None
    half = cuda.linked_libraries(plugin, [outer.parent])
    assert (half["libouter.so.2"], half["libinner.so.3"]) == (str(outer), None)
    assert cuda.linked_libraries(plugin, [outer.parent, inner.parent])["libinner.so.3"] == str(inner)
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(UserError, match=r"ldd cannot read .*text\.so"):
        cuda.linked_libraries(text)


def test_wheels_are_found_with_their_libraries(wheels: Callable[..., list[str]]) -> None:
    found = cuda.find_wheels(wheels())
    assert found.missing == []
    assert set(found.versions) == set(cuda.PACKAGES)
    assert set(found.files) == set(cuda.LIBRARIES)
    assert cuda.find_wheels(["/nonexistent"]).missing == list(cuda.PACKAGES)


def test_what_wheels_lack_is_named(wheels: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert cuda.wheels_problem(cuda.find_wheels(wheels())) == ""
    lacking = cuda.find_wheels(wheels(without=("nvidia-cudnn-cu11",)))
    assert cuda.wheels_problem(lacking) == "NVIDIA's wheels are incomplete: nvidia-cudnn-cu11 missing"
    emptied = cuda.find_wheels(wheels("11.8.1", ("libcufft.so.10", "libcurand.so.10")))
    assert emptied.missing == ["nvidia-curand-cu11", "nvidia-cufft-cu11"]
    assert cuda.wheels_problem(cuda.Wheels()) == "the CUDA 11 libraries are not installed"
    monkeypatch.setenv("CUDA_HOME", "/usr/local/cuda-11.6")
    assert cuda.wheels_problem(cuda.Wheels()) == ""
    assert "cudnn" in cuda.wheels_problem(lacking)


def test_cuda_home_is_what_mindspore_looks_for(wheels: Callable[..., list[str]], tmp_path: Path) -> None:
    home = cuda.make_cuda_home(cuda.find_wheels(wheels("11.8.89")), [tmp_path / "env"])
    told = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert RELEASE.search(told)[1] == "11.8"
    assert subprocess.run([home / "bin" / "nvcc", "x.cu"], capture_output=True, check=False).returncode == 1
    # The pattern of mindspore/run_check/_check_version.py.
    assert [path.name for path in home.glob("lib*/libcudart.so.*.*.*")] == ["libcudart.so.11.8.89"]
    assert {path.name for path in (home / "lib64").iterdir()} == {*cuda.LIBRARIES, "libcudart.so.11.8.89"}
    assert all(path.exists() for path in (home / "lib64").iterdir())


def test_cuda_home_is_made_once_and_follows_the_wheels(wheels: Callable[..., list[str]], tmp_path: Path) -> None:
    first, second = cuda.find_wheels(wheels("11.8.89")), cuda.find_wheels(wheels("11.7.99"))
    with ThreadPoolExecutor(8) as pool:
        homes = list(pool.map(lambda _: cuda.make_cuda_home(first, [tmp_path / "env"]), range(16)))
    assert len(set(homes)) == 1
    made = homes[0].stat().st_mtime_ns
    assert cuda.make_cuda_home(first, [tmp_path / "env"]).stat().st_mtime_ns == made
    other = cuda.make_cuda_home(second, [tmp_path / "env"])
    assert other != homes[0]
    assert sorted((tmp_path / "env").iterdir()) == sorted([homes[0], other])


def test_cuda_home_goes_where_it_can_be_written(wheels: Callable[..., list[str]], tmp_path: Path) -> None:
    found = cuda.find_wheels(wheels())
    (tmp_path / "file").write_text("")
    home = cuda.make_cuda_home(found, [tmp_path / "file", tmp_path / "cache"])
    assert home.parent == tmp_path / "cache"
    with pytest.raises(UserError, match=r"no place for a folder of links.*file: (Not a directory|File exists)"):
        cuda.make_cuda_home(found, [tmp_path / "file"])


def test_preloaded_library_satisfies_later_requests(
    compile_library: Callable[..., Path], root: Path, clean_env: dict[str, str]
) -> None:
    inner = compile_library("libinner.so.3", "a")
    outer = compile_library("libouter.so.2", "b", (inner,))
    plugin = compile_library("libplugin.so", "c", (outer,))
    load = "import ctypes, sys; from src.runtime.cuda import preload; preload(sys.argv[2:]); ctypes.CDLL(sys.argv[1])"
    without = run_child(load, root, clean_env, plugin)
    assert without.returncode == 1
    assert "libouter.so.2: cannot open shared object file" in without.stderr
    assert run_child(load, root, clean_env, plugin, inner, outer).returncode == 0
    with pytest.raises(UserError, match=r"cannot load .*libouter\.so\.2: libinner\.so\.3"):
        cuda.preload([outer])


ACTIVATE = """
import ctypes, os, sys
from pathlib import Path
from src.runtime import cuda
driver, site, prefix, plugin = sys.argv[1:]
cuda.DRIVER = driver
found = cuda.find_wheels([site])
cuda.find_wheels = lambda: found
sys.prefix = prefix
cuda.activate_gpu()
ctypes.CDLL(plugin)
print(os.environ["CUDA_HOME"], os.environ["LD_LIBRARY_PATH"], cuda.linked_libraries(Path(plugin)))
"""


@pytest.fixture
def fake_gpu(compile_library: Callable[..., Path], wheels: Callable[..., list[str]], tmp_path: Path) -> list[str]:
    """Arguments of ACTIVATE: a driver, packages with real libraries, an environment, a plug-in that needs them."""
    real: dict[str, Path] = {}
    for name in cuda.LIBRARIES:  # each needs the one before, as they may in their order
        real[name] = compile_library(name, "built", tuple(real.values())[-1:])
    plugin = compile_library("libplugin.so", "c", tuple(real.values()))
    driver = compile_library("libdriver.so.1", "d")
    return [str(driver), *wheels(real=real), str(tmp_path / "prefix"), str(plugin)]


def test_activation_makes_a_plugin_loadable(fake_gpu: list[str], root: Path, clean_env: dict[str, str]) -> None:
    env = {**clean_env, "CUDA_HOME": "/elsewhere", "LD_LIBRARY_PATH": "/first:/second"}
    done = run_child(ACTIVATE, root, env, *fake_gpu)
    assert done.returncode == 0, done.stderr
    home, path, linked = done.stdout.split(maxsplit=2)
    assert Path(home).parent == Path(fake_gpu[2])
    assert path == f"{home}/lib64:/first:/second"
    assert "None" not in linked  # what a child of the process finds


def test_activation_names_what_is_missing(
    fake_gpu: list[str], root: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    clean_env.pop("CUDA_HOME", None)
    driver = run_child(ACTIVATE, root, clean_env, "libno_driver.so.1", *fake_gpu[1:])
    assert "device_target=GPU: NVIDIA's driver is not installed here (libno_driver.so.1:" in driver.stderr
    (tmp_path / "empty").mkdir()
    nothing = run_child(ACTIVATE, root, clean_env, fake_gpu[0], tmp_path / "empty", *fake_gpu[2:])
    assert "the CUDA 11 libraries are not installed: pip install -r requirements-gpu.txt" in nothing.stderr


def test_activation_comes_before_mindspore() -> None:
    import mindspore  # noqa: F401

    with pytest.raises(UserError, match="before MindSpore is imported"):
        cuda.activate_gpu()


def test_mpi_of_the_environment_is_loaded_for_mindspore(root: Path, clean_env: dict[str, str]) -> None:
    code = """
import ctypes, sys
from pathlib import Path
from src.runtime.cuda import mindspore_folder, preload_mpi
preload_mpi(Path(sys.prefix))
ctypes.CDLL(str(mindspore_folder() / "lib" / "libmpi_collective.so"))
"""
    clean_env.pop("LD_LIBRARY_PATH", None)
    done = run_child(code, root, clean_env)
    assert done.returncode == 0, done.stderr


def test_requirements_pin_every_package(root: Path) -> None:
    lines = (root / "requirements-gpu.txt").read_text().splitlines()
    pinned = dict(re.fullmatch(r"(nvidia-\S+)==([\d.]+)\s.*", line).groups() for line in lines if line[:2] == "nv")
    assert set(pinned) == set(cuda.PACKAGES)
    assert pinned["nvidia-cudnn-cu11"].startswith("8.")


def test_table_covers_what_mindspore_needs() -> None:
    needed = devices._foreign(cuda.linked_libraries(cuda.mindspore_folder() / cuda.GPU_PLUGIN))
    assert {cuda.DRIVER, "libcudart.so.11.0", "libcudnn.so.8"} <= set(needed)
    assert set(needed) - {cuda.DRIVER} <= set(cuda.LIBRARIES)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without driver and CUDA, whatever this one has."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(devices, "find_wheels", cuda.Wheels)
    monkeypatch.setattr(devices, "linked_libraries", lambda *_: {"libcudart.so.11.0": None, cuda.DRIVER: None})


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
    assert command.main(["--device_target=GPU", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["GPU"]
    assert told["GPU"]["usable"] is False
    assert told["GPU"]["libraries"] == {"libcudart.so.11.0": None, "libcuda.so.1": None}
    monkeypatch.setattr(command, "check_device", lambda device: DeviceReport(device))
    assert command.main(["--device_target=Ascend", "--libraries"]) == 0
    assert capsys.readouterr().out == "Ascend: usable\n"
    assert command.main([]) == 0
    assert capsys.readouterr().out == "CPU: usable\nGPU: usable\nAscend: usable\n"


def test_command_prints_the_variables(
    wheels: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = cuda.find_wheels(wheels())
    monkeypatch.setattr(command, "find_wheels", lambda: found)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert command.main(["--print_env"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    home = first.partition("CUDA_HOME=")[2]
    assert second == f"LD_LIBRARY_PATH={home}/lib64:/opt/lib"
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(command, "find_wheels", cuda.Wheels)
    assert command.main(["--print_env"]) == 1
    assert capsys.readouterr().err == f"error: the CUDA 11 libraries are not installed: {cuda.INSTALL}\n"


@pytest.mark.parametrize("works", [True, False])
def test_sourced_script_sets_the_variables(works: bool, root: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\necho 'CUDA_HOME=/some where'\necho LD_LIBRARY_PATH=/b:/c\nexit {0 if works else 1}\n"
    )
    python.chmod(0o755)
    clean_env.pop("CUDA_HOME", None)
    env = {**clean_env, "PATH": f"{tmp_path}:{clean_env['PATH']}", "VIRTUAL_ENV": "active"}
    line = f'source "{root}/scripts/gpu_env.sh" > /dev/null; echo "$?|${{CUDA_HOME:-}}|${{LD_LIBRARY_PATH:-}}"'
    env.pop("LD_LIBRARY_PATH", None)
    done = subprocess.run(["bash", "-uc", line], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == ("0|/some where|/b:/c\n" if works else "1||\n")
