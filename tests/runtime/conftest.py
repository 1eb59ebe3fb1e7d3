"""Shared by the tests of devices and libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from covpool.runtime import cuda, devices


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


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without driver and CUDA, whatever this one has."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(devices, "find_wheels", cuda.Wheels)
    monkeypatch.setattr(devices, "linked_libraries", lambda *_: {"libcudart.so.11.0": None, cuda.DRIVER: None})
