"""What all entry points share: from arguments to an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Callable, Optional

from covpool.config.command_line import Program, parse_args
from covpool.config.schema import Config
from covpool.runtime.command import exit_code_of
from covpool.runtime.distributed import World, session
from covpool.runtime.environment import prepare_environment


def run_entry_point(main: Callable[[Config], Optional[int]], argv: Sequence[str], program: Program) -> int:
    """Parses arguments, runs a program and returns its exit code, see :func:`exit_code_of`.

    Args:
        main: The program; what it returns is the exit code (None for 0).
        argv: Arguments without the program's name.
        program: What the arguments are for.
    """
    shown = [text.lower() == "--debug=true" for text in argv]

    def run() -> Optional[int]:
        config = parse_args(argv, program)
        shown.append(config.debug)
        return main(config)

    return exit_code_of(run, lambda: any(shown))


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
