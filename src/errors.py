"""Errors that a user can put right: reported as one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """An expected failure (bad input, full disk, wrong file): its message is one line for the user."""


class ConfigError(UserError, ValueError):
    """A configuration or usage error: which key, which value, where it was given, what is allowed."""
