"""Records and log of a run, whatever becomes of their files."""

from __future__ import annotations

import json
import logging
import os
import resource
from pathlib import Path

import pytest

from covpool.errors import UserError
from covpool.training.logs import logging_to_run
from covpool.training.run_folder import RunFolder


def recorded(path: Path) -> RunFolder:
    """Two epochs of three steps, and two steps of the next."""
    folder = RunFolder(path)
    for step in range(1, 9):
        folder.record("step", epoch=(step + 2) // 3, step=step, loss=1 / step)
        if step % 3 == 0:
            folder.record("epoch", epoch=step // 3, step=step, loss=float("nan"))
    return folder


DAMAGES = {
    "a flipped byte": lambda line: line[:5] + bytes([line[5] ^ 0x80]) + line[6:],
    "null": lambda line: b"null\n",
    "cut short": lambda line: line[:20],
    "no step": lambda line: b'{"kind": "step", "epoch": 1}\n',
    "text": lambda line: b'"kind epoch step"\n',
    "nested deeply": lambda line: b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_line_is_left_out(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = recorded(tmp_path)
    lines = folder.metrics.read_bytes().splitlines(keepends=True)
    folder.metrics.write_bytes(b"".join([*lines[:-1], DAMAGES[how](lines[-1])]))
    assert [r["step"] for r in folder.records("step")] == list(range(1, 8))
    assert [r.getMessage() for r in caplog.records] == [f"{folder.metrics}: 1 damaged line left out"]
    folder.forget_after(2, 6)
    assert folder.metrics.read_bytes() == b"".join(lines[:8])


@pytest.mark.parametrize(("epoch", "step", "last"), [(2, 0, (6, 2)), (1, 5, (5, 1)), (0, 2, (2, 0)), (2, 100, (8, 2))])
def test_records_are_forgotten_by_epoch(epoch: int, step: int, last: tuple[int, int], tmp_path: Path) -> None:
    """Whole epochs stay whatever their steps are called: the next ones may have more or fewer."""
    folder = recorded(tmp_path)
    folder.forget_after(epoch, step)
    assert (len(folder.records("step")), len(folder.records("epoch"))) == last


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    assert "NaN" not in recorded(tmp_path).metrics.read_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[3])["loss"] is None


def test_a_metrics_file_that_is_none_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    os.mkfifo(folder.metrics)
    with pytest.raises(UserError, match=r"^cannot read .*metrics\.jsonl: not a regular file"):
        folder.records("step")
    with pytest.raises(UserError, match=r"^cannot write .*metrics\.jsonl: not a regular file"):
        folder.record("step", step=1)


def test_the_log_holds_what_was_said_before_it_had_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("covpool.anything")
    with logging_to_run(True) as log:
        logger.info("before")
        log.open(tmp_path / "train.log")
        logger.warning("after \udcff")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO before", "WARNING after \\udcff"]
    assert capsys.readouterr().out.startswith("before\n")
    with logging_to_run(False):
        logger.info("of another rank")
    assert capsys.readouterr().out == ""


def test_a_full_disk_or_a_closed_pipe_ends_the_messages_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the size of files acts like a full disk."""
    logger, path = logging.getLogger("covpool.anything"), tmp_path / "train.log"
    read, write = os.pipe()
    os.close(read)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    closed = os.fdopen(write, "w")
    with monkeypatch.context() as patch, logging_to_run(True) as log:
        patch.setattr("sys.stdout", closed)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            log.open(path)
            for number in range(9):
                logger.info("message %d", number)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - what is left in the buffer must go somewhere
        os.dup2(nowhere.fileno(), write)
        closed.close()
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"warning: cannot write to {path}: File too large; no more messages go there",
        "warning: cannot write to standard output: Broken pipe; no more messages go there",
    ]
