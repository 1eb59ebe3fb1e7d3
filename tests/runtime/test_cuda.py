"""NVIDIA's libraries: where they are found, what MindSpore is told of them, and that it can load them."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

from covpool.errors import UserError
from covpool.runtime import cuda, devices

RELEASE = re.compile(r"Cuda compilation tools, release (\d+\.\d+),")


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
    with pytest.raises(UserError, match=r"no place for a folder of links.*file.*: (Not a directory|File exists)"):
        cuda.make_cuda_home(found, [tmp_path / "file"])


def test_preloaded_library_satisfies_later_requests(
    compile_library: Callable[..., Path], root: Path, clean_env: dict[str, str]
) -> None:
    inner = compile_library("libinner.so.3", "a")
    outer = compile_library("libouter.so.2", "b", (inner,))
    plugin = compile_library("libplugin.so", "c", (outer,))
    load = (
        "import ctypes, sys; from covpool.runtime.cuda import preload as p; p(sys.argv[2:]); ctypes.CDLL(sys.argv[1])"
    )
    without = run_child(load, root, clean_env, plugin)
    assert without.returncode == 1
    assert "libouter.so.2: cannot open shared object file" in without.stderr
    assert run_child(load, root, clean_env, plugin, inner, outer).returncode == 0
    with pytest.raises(UserError, match=r"cannot load .*libouter\.so\.2: libinner\.so\.3"):
        cuda.preload([outer])


ACTIVATE = """
import ctypes, os, sys
from pathlib import Path
from covpool.runtime import cuda
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
from covpool.runtime.cuda import mindspore_folder, preload_mpi
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
