"""What all entry points share: from arguments to an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Callable, Optional

from covpool.config.command_line import parse_args
from covpool.config.schema import Config
from covpool.errors import UserError
from covpool.runtime.distributed import World, session
from covpool.runtime.environment import prepare_environment


def run_entry_point(
    main: Callable[[Config], Optional[int]], argv: Sequence[str], description: str, required: Sequence[str] = ()
) -> int:
    """Parses arguments, runs a program and returns its exit code.

    An error is one line on the standard error stream, with the traceback before it under `--debug=True`.

    Args:
        main: The program; what it returns is the exit code (None for 0).
        argv: Arguments without the program's name.
        description: What the program does, for `--help`.
        required: Keys that must not be empty.

    Returns:
        0 for success, 2 for a usage or configuration error, 130 when interrupted, the error's own `exit_code` for a
        `UserError`, 1 for any other error.
    """
    debug = any(text.lower() == "--debug=true" for text in argv)
    try:
        config = parse_args(argv, description, required)
        debug = config.debug
        return main(config) or 0
    except KeyboardInterrupt:
        _report("interrupted", debug)
        return 130
    except UserError as error:
        _report(_one_line(str(error)), debug)
        return error.exit_code
    except Exception as error:
        hint = "" if debug else " (--debug=True shows where)"
        _report(f"{type(error).__name__}: {_one_line(str(error))}{hint}", debug)
        return 1


def open_session(config: Config) -> AbstractContextManager[World]:
    """Prepares the process environment and joins the configured world; call it before MindSpore is imported."""
    prepare_environment(config.device_target)
    device_id = None if config.run_distribute else config.device_id
    return session(
        config.mode_name,
        config.device_target,
        device_id,
        config.run_distribute,
        config.device_num,
        config.rank_timeout,
    )


def _report(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()


def _one_line(text: str) -> str:
    """Returns the text's first paragraph on one line; MindSpore appends pages of C++ calls to its messages."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return " ".join(lines[: lines.index("")] if "" in lines else lines)
