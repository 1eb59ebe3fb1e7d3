"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An expected failure: its message is one clear line for the user.

    Attributes:
        exit_code: 2 for a usage or configuration error, 1 for a failure while running.
    """

    exit_code = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(UserError, ValueError):
    """A configuration or usage error: which key, which value, where it was given, what is allowed."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # file names may hold line breaks


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or else its name; MindSpore appends pages of C++ calls."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.0) -> list[str]:
    """The known names most like the given one, the best first: at most ``count``, each with a ratio of ``cutoff``."""
    return difflib.get_close_matches(name, sorted(known), count, cutoff)
