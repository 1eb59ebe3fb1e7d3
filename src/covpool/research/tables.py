"""Markdown tables, and the texts of means with their spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table_row(cells: Iterable[Any]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table_head(cells: Sequence[Any]) -> list[str]:
    """The two lines that begin a Markdown table."""
    return [table_row(cells), table_row(["---"] * len(cells))]


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """The lines of a Markdown table."""
    return [*table_head(head), *map(table_row, rows)]
