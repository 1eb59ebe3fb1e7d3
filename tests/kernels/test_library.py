"""The compiled library: made once, kept where nobody else can change it, loaded only if it is as it was made."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Callable

import pytest

from covpool.errors import UserError
from covpool.kernels.library import compile_kernels, set_threads, threads_of_process

COMPILER = r"""#!/bin/sh
if [ "$1" = --version ]; then printf 'fast \377 compiler'; exit 0; fi
for last; do :; done
printf '\177ELF %s' "$$" > "$last"
"""


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler that is fast, and says what is no UTF-8."""
    script = tmp_path / "compiler"
    script.write_text(COMPILER)
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return script


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2] ^= 4
    path.write_bytes(content)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    """To a whole library, of which nobody knows who may change it."""
    shutil.move(path, path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def given_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 12345, 12345)


def without_seal(path: Path) -> None:
    path.write_bytes(b"\177ELF planted")


SPOILED: list[Callable[[Path], None]] = [cut, flip, fifo, link, open_to_all, given_away, without_seal]


def test_compiled_once(compiler: Path, tmp_path: Path) -> None:
    path = compile_kernels(tmp_path / "kept")
    content = path.read_bytes()
    assert content.startswith(b"\177ELF") and compile_kernels(tmp_path / "kept") == path
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700 and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_made_anew_unless_as_it_was_made(spoil: Callable[[Path], None], compiler: Path, tmp_path: Path) -> None:
    path = compile_kernels(tmp_path / "kept")
    spoil(path)
    before = path.lstat().st_ino
    assert compile_kernels(tmp_path / "kept") == path
    now = path.lstat()
    assert now.st_ino != before and stat.S_ISREG(now.st_mode) and now.st_uid == os.geteuid()
    assert stat.S_IMODE(now.st_mode) == 0o644
    content = path.read_bytes()
    assert compile_kernels(tmp_path / "kept").read_bytes() == content, "it is whole now"


def test_the_real_library_is_checked_and_loads(library: Path) -> None:
    made = library.stat().st_mtime_ns
    assert compile_kernels(library.parent) == library and library.stat().st_mtime_ns == made
    set_threads(library, 2)
    with pytest.raises(ValueError, match="from 1 to 256, not 0"):
        set_threads(library, 0)


def test_a_folder_of_somebody_else(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "mindspore-gcp"
    kept.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.geteuid() == 0:
        os.chown(kept, 12345, 12345)
    else:
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(UserError, match="mindspore-gcp belongs to another user") as caught:
        compile_kernels()
    assert caught.value.exit_code == 2 and not list(kept.iterdir())


def test_a_folder_that_others_can_write_to_is_closed(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o777)
    (tmp_path / "kept").chmod(0o777)
    compile_kernels(tmp_path / "kept")
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o755


def test_a_colon_in_the_path(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a:b"))
    with pytest.raises(UserError, match=r"a:b/mindspore-gcp has a colon, .*XDG_CACHE_HOME") as caught:
        compile_kernels()
    assert caught.value.exit_code == 2 and not (tmp_path / "a:b").exists()


def test_what_a_killed_compilation_left_is_removed(compiler: Path, tmp_path: Path) -> None:
    left = tmp_path / "kept" / ".kernels-0.so.abcd1234.tmp"
    left.mkdir(parents=True)
    path = compile_kernels(tmp_path / "kept")
    assert list(path.parent.iterdir()) == [path]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"need a C\+\+ compiler, and 'no-such-compiler' does not run"):
        compile_kernels(tmp_path)


@pytest.mark.parametrize("said", ["out of luck", r"out of luck \377"], ids=["text", "no UTF-8"])
def test_a_compiler_that_fails(said: str, compiler: Path, tmp_path: Path) -> None:
    compiler.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && exit 0\nprintf '{said}' >&2\nexit 1\n")
    with pytest.raises(UserError, match="could not compile the kernels: out of luck"):
        compile_kernels(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_a_folder_that_cannot_be_made(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep compiled kernels in"):
        compile_kernels(tmp_path / "file" / "folder")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_process(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for cores, processes, expected in ((8, 1, 8), (8, 3, 2), (8, 16, 1), (2, 4, 2)):  # the last: bound by the launcher
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert threads_of_process(processes) == expected
