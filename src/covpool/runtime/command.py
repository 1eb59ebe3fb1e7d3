"""What all commands share: their parser, their progress bars, and how an error becomes one line and an exit code."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from covpool.errors import UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def new_parser(program: str, text: Optional[str]) -> argparse.ArgumentParser:
    """A parser for ``program`` that shows ``text``, a docstring, and takes no abbreviated options."""
    return argparse.ArgumentParser(
        prog=program,
        description=inspect.cleandoc(text or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def count(text: str) -> int:
    """The ``type`` of an argument that is a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def exit_code_of(run: Callable[[], Optional[int]], debug: Callable[[], bool] = bool) -> int:
    """Run a command; an error becomes one line on standard error, with its traceback before it under ``debug``.

    Args:
        run: The command; it returns its exit code (None for 0).
        debug: Whether to show the traceback, asked when there is one.

    Returns:
        130 when interrupted, 141 when nobody reads the output, a ``UserError``'s own code, 1 for any other error.
    """
    try:
        code = run() or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is an error of the command, not of the interpreter's end
        return code
    except SystemExit as end:  # argparse has written its message
        return end.code if isinstance(end.code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `| head` has read enough; the rest goes nowhere
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, debug())
    except UserError as error:
        return _report(_one_line(str(error)), error.exit_code, debug())
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("covpool"):
            return _report(_missing(error), 1, debug())
        hint = "" if debug() else " (--debug=True shows where)"
        return _report(f"{type(error).__name__}: {_one_line(str(error))}{hint}", 1, debug())


def shows_bar(progress: str = "auto") -> bool:
    """Whether progress is shown as a bar: 'bar', or 'auto' on a terminal."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return progress == "bar" or (progress == "auto" and on_terminal)


def progress_bar(
    items: Optional[Iterable[Any]],
    total: Optional[int],
    title: str,
    unit: str = "image",
    *,
    shown: Optional[bool] = None,
    **options: Any,
) -> Any:
    """Tqdm's bar, which vanishes at its end: over ``items``, or without them moved by its ``update``.

    It is shown on a terminal, unless ``shown`` says otherwise.
    """
    from tqdm import tqdm

    hidden = not (shows_bar() if shown is None else shown)
    return tqdm(items, total=total, desc=title, unit=unit, disable=hidden, leave=False, **options)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour; a dash where unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}" if minutes >= 60 else f"{minutes}:{second:02d}"


def named_paths(texts: Sequence[str], form: str) -> dict[str, list[Path]]:
    """Read arguments of the form NAME=PATH[,PATH ...]; an error shows ``form``."""
    named = {}
    for text in texts:
        name, sign, paths = text.partition("=")
        if not sign:
            raise UserError(f"{text!r} must have the form {form}", 2)
        named[name] = [Path(path) for path in paths.split(",")]
    return named


def _missing(error: ModuleNotFoundError) -> str:
    """What is missing, and how to get it: the usual cause is a shell in which the environment is not active."""
    return (
        f"{error.name} is not installed for {sys.executable}: activate the environment that scripts/setup.sh makes "
        "(source .venv/bin/activate), or install the project (pip install .)"
    )


def _report(message: str, code: int, debug: bool) -> int:
    if sys.stderr is not None:
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
    return code


def _one_line(text: str) -> str:
    """The text's first paragraph on one line; MindSpore appends pages of C++ calls to its messages."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(lines[: lines.index("")] if "" in lines else lines)
