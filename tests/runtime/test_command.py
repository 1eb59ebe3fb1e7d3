"""What scripts share: parser, errors as a line and an exit code, NAME=PATH arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from covpool.errors import ConfigError, UserError
from covpool.runtime.command import named_paths, new_parser, reports_errors


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no room"), 1), (UserError("no room", 5), 5), (ConfigError("no room"), 2)]
)
def test_a_user_error_is_a_line_and_its_exit_code(
    error: UserError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def main(argv: list[str]) -> int:
        """Its own help."""
        raise error

    assert main(["x"]) == code
    assert capsys.readouterr() == ("", "error: no room\n")
    assert main.__doc__ == "Its own help."


def test_results_and_other_errors_pass() -> None:
    @reports_errors
    def main(value: int) -> int:
        return 6 // value

    assert main(2) == 3
    with pytest.raises(ZeroDivisionError):
        main(0)


def test_the_parser_shows_the_text_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    parser = new_parser("first line\n\n  indented\n")
    parser.add_argument("--output")
    assert parser.parse_args(["--output=x"]).output == "x"
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--out=x"])
    assert raised.value.code == 2 and "--out=x" in capsys.readouterr().err
    assert "first line\n\n  indented\n" in parser.format_help()


def test_named_paths() -> None:
    assert named_paths(["a=x,y", "b=z=1"], "FORM") == {"a": [Path("x"), Path("y")], "b": [Path("z=1")]}
    with pytest.raises(UserError, match=r"^'x,y' must have the form NAME=FILE$") as raised:
        named_paths(["a=x", "x,y"], "NAME=FILE")
    assert raised.value.exit_code == 2
