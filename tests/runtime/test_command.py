"""What scripts share: parser, errors as a line and an exit code, NAME=PATH arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from covpool.errors import ConfigError, UserError
from covpool.runtime.command import exit_code_of, named_paths, new_parser


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no room"), 1, "error: no room\n"),
        (UserError("no room", 5), 5, "error: no room\n"),
        (ConfigError("no room"), 2, "error: no room\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (ZeroDivisionError("by 0\n\nC++ calls"), 1, "error: ZeroDivisionError: by 0 (--debug=True shows where)\n"),
        (SystemExit(2), 2, ""),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        raise error

    assert exit_code_of(run) == code
    assert capsys.readouterr() == ("", line)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: 1 // 0, lambda: True) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and shown.endswith(
        "error: ZeroDivisionError: integer division or modulo by zero\n"
    )


def test_a_result_is_the_exit_code() -> None:
    assert exit_code_of(lambda: 3) == 3 and exit_code_of(lambda: None) == 0


@pytest.mark.parametrize("redirection", ["| head -1", ">/dev/full", ">&-"])
def test_output_that_nobody_takes(redirection: str) -> None:
    command = f"{sys.executable} -m covpool complexity --models resnet10 --poolings gap --image_size=32"
    shell = f"{command} {redirection}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, done.stderr
    assert done.stdout.splitlines()[-1] == {"| head -1": "141", ">/dev/full": "1", ">&-": "0"}[redirection]


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    command = f'cd "$(mktemp -d -p {tmp_path})"; rmdir "$PWD"; exec {sys.executable} -m covpool eval'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "was removed" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_parser_shows_the_text_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    parser = new_parser("covpool x", "first line\n\n      indented\n")
    parser.add_argument("--output")
    assert parser.parse_args(["--output=x"]).output == "x"
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--out=x"])
    assert raised.value.code == 2 and "--out=x" in capsys.readouterr().err
    assert "usage: covpool x" in parser.format_help()
    assert "first line\n\nindented\n" in parser.format_help()


def test_named_paths() -> None:
    assert named_paths(["a=x,y", "b=z=1"], "FORM") == {"a": [Path("x"), Path("y")], "b": [Path("z=1")]}
    with pytest.raises(UserError, match=r"^'x,y' must have the form NAME=FILE$") as raised:
        named_paths(["a=x", "x,y"], "NAME=FILE")
    assert raised.value.exit_code == 2
