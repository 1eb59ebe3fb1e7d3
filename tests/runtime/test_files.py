"""Files that are written whole or not at all, beside whatever else lies there; files of users that block nobody."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from covpool.errors import UserError
from covpool.runtime.files import (
    open_regular,
    read_bytes,
    read_text,
    remove_leftovers,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)

NAMES = [
    "net[1].json",
    "a**b.json",
    "?",
    "[",
    "a b\n.json",
    "-x",
    "é猫" * 40,
    "x" * 251 + ".bin",
    os.fsdecode(b"\xff.txt"),
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(name: str, tmp_path: Path) -> None:
    """Neighbours whose names a pattern would match stay, and nothing else is left."""
    neighbours = [tmp_path / other for other in (".net1.json", ".a.0.tmp.json", ".x.tmp")]
    for path in neighbours:
        path.write_text("mine")
    write_text(tmp_path / name, "first")
    write_text(tmp_path / name, "second")
    assert (tmp_path / name).read_text() == "second"
    assert sorted(tmp_path.iterdir()) == sorted([*neighbours, tmp_path / name])
    with whole_folder(tmp_path / f"f{name[:200]}") as partial:
        (partial / "x").write_text("x")
    assert [path.name for path in (tmp_path / f"f{name[:200]}").iterdir()] == ["x"]


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "result.json"
    link.symlink_to(victim)
    write_json(link, {})
    assert victim.read_text() == "precious" and not link.is_symlink()
    with whole_file(tmp_path / "x.bin") as first, whole_file(tmp_path / "x.bin") as second:
        assert first.parent != second.parent and stat.S_IMODE(first.parent.stat().st_mode) == 0o700
        assert first.parent.parent == tmp_path and str(os.getpid()) not in first.parent.name
        first.write_text("1")
        second.write_text("2")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as temporary:
            temporary.write_text("")
            temporary.chmod(0o400)  # as MindSpore does
        with whole_folder(tmp_path / "folder"):
            pass
        assert os.umask(umask) == umask, "it was changed"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


def test_what_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        temporary.with_suffix(".part").write_text("a writer's own")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="No such file"), whole_file(tmp_path / "file"):
        pass  # a writer that wrote nothing
    (tmp_path / "other").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "other", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
    assert (tmp_path / "file").read_text() == "earlier"


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    """In JSON such a path is kept by an escape; elsewhere it is an error of one line."""
    path = os.fsdecode(b"run/\xff")
    write_json(tmp_path / "x.json", {"path": path, "猫": "🐈"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": path, "猫": "🐈"}
    with pytest.raises(UserError, match=r"cannot write '.*x\.txt': its name or content is not valid UTF-8"):
        write_text(tmp_path / "x.txt", path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


KILLED = """
import sys, time
from pathlib import Path
from typing import Callable
from covpool.runtime.files import whole_file, whole_folder
with {what}(Path(sys.argv[1]) / "made") as temporary:
    (temporary / "x" if temporary.is_dir() else temporary).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_leaves_is_removed_by_the_next(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED.format(what="whole_folder"), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"writing\n"
    (left,) = tmp_path.iterdir()
    remove_leftovers(tmp_path)
    assert left.exists(), "it is still being written to"
    process.send_signal(number)
    assert process.wait(10) == -number
    process.stdout.close()
    assert left.exists()
    with whole_folder(tmp_path / "made") as partial:
        assert not left.exists()
        (partial / "x").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    """Neither read nor written to, at once, whether or not somebody is at its other end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    started = time.monotonic()
    for read in (read_bytes, read_text, lambda path: open_regular(path, "a")):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "fifo")
        with pytest.raises(IsADirectoryError):
            read(tmp_path / "folder")
        with pytest.raises(OSError, match="not a regular file"):
            read(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")
    handle = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "fifo", "a")
    os.close(handle)
    assert time.monotonic() - started < 1
    with open_regular(tmp_path / "log", "a") as file:
        file.write("é")
    assert read_text(tmp_path / "log") == "é" and read_bytes(tmp_path / "log") == "é".encode()


def test_what_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": float("nan"), "rates": (1.0, [-np.inf, np.float64("inf")]), "n": 3})
    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert found == {"loss": None, "rates": [1.0, [None, None]], "n": 3}


def named_pipe_readers() -> dict[str, Callable[[Path], object]]:
    from covpool.config.yaml_file import read_documents
    from covpool.data.arrays import read_idx
    from covpool.data.image_folder import read_image_list
    from covpool.research.robustness.sets import network_classes
    from covpool.research.study.spec import read_study

    return {
        "configuration": read_documents,
        "study": read_study,
        "image list": read_image_list,
        "idx file": read_idx,
        "class names": lambda path: network_classes(path, None, (), 3),
    }


@pytest.mark.parametrize("reader", named_pipe_readers())
def test_no_reader_waits_at_a_fifo(reader: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(5)
    try:
        with pytest.raises(UserError, match="not a regular file"):
            named_pipe_readers()[reader](tmp_path / "x.yaml")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["fifo", "link to a device", "link to an open file"])
def test_nothing_is_renamed_over_what_is_no_file(tmp_path, kind):
    path = tmp_path / "result.json"
    if kind == "fifo":
        os.mkfifo(path)
    else:  # as /dev/null and /dev/stdout are: root could replace them for everybody
        path.symlink_to("/dev/null" if "device" in kind else "/proc/self/cmdline")
    before = path.lstat()
    with pytest.raises(OSError, match="not a regular file"):
        write_json(path, {})
    assert os.path.samestat(path.lstat(), before)
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
