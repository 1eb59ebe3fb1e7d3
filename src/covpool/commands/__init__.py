"""Subcommands of ``covpool``: each function takes its arguments and returns an exit code."""
