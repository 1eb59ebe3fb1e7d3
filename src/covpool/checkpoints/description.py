"""What a checkpoint says of itself: facts that JSON can hold, stored as texts beside the parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping

from covpool.errors import UserError

# Texts of this project; everything else in a file is a parameter.
ABOUT = "about."
# Running statistics of every rank, (ranks, n): within an epoch they differ.
RANKS = "ranks.statistics"


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# What each fact about a checkpoint must be; others are not looked at.
_FACTS: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_count,
    "step": _is_count,
    "steps_per_epoch": lambda value: _is_count(value, 1),
    "metric": lambda value: value is None or _is_number(value),
    "losses": lambda value: isinstance(value, list) and all(_are_numbers(row) and len(row) == 2 for row in value),
    "architecture": lambda value: isinstance(value, dict),
    "transform": lambda value: isinstance(value, dict),
    "class_names": _are_names,
    "mean": _are_numbers,
    "std": _are_numbers,
    "conventions": lambda value: isinstance(value, str),
}


def described(about: Mapping[str, Any]) -> dict[str, str]:
    """Facts about a checkpoint, which JSON can hold, as the texts that are stored in it."""
    return {ABOUT + key: json.dumps(value) for key, value in about.items()}


def take_about(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take the facts about a checkpoint out of its entries, and see that each is of its type.

    Raises:
        UserError: A text that is no JSON, a fact of another type, or running statistics that fit no network.
    """
    about = {}
    for name in [name for name in entries if name.startswith(ABOUT)]:
        key, text = name[len(ABOUT) :], entries.pop(name)
        try:
            about[key] = json.loads(text)
            sound = key not in _FACTS or _FACTS[key](about[key])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: damaged, its description of {key} cannot be read") from error
        if not sound:
            raise UserError(f"{path}: damaged, its description says {key} = {text[:80]}")
    if RANKS in entries:
        width = sum(p.size for name, p in entries.items() if name.endswith((".moving_mean", ".moving_variance")))
        expected = (len(about.get("losses", [])), width)
        if entries[RANKS].shape != expected:
            raise UserError(
                f"{path}: damaged, the running statistics of its ranks have the shape {entries[RANKS].shape} instead "
                f"of {expected}"
            )
    return about
