"""What scripts share: their parser of arguments, and how an error becomes a line and an exit code."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar, cast

from covpool.errors import UserError

Main = TypeVar("Main", bound=Callable[..., int])


def new_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser that shows ``text``, a module's docstring, as it stands, and takes no abbreviated options."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def reports_errors(main: Main) -> Main:
    """Decorate a script's main function: a `UserError` is one line on standard error, and its exit code returned."""

    @functools.wraps(main)
    def run(*arguments: Any, **options: Any) -> int:
        try:
            return main(*arguments, **options)
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code

    return cast(Main, run)


def named_paths(texts: Sequence[str], form: str) -> dict[str, list[Path]]:
    """Read arguments of the form NAME=PATH[,PATH ...].

    Raises:
        UserError: One has no `=`; the message shows ``form``.
    """
    named = {}
    for text in texts:
        name, sign, paths = text.partition("=")
        if not sign:
            raise UserError(f"{text!r} must have the form {form}", 2)
        named[name] = [Path(path) for path in paths.split(",")]
    return named
