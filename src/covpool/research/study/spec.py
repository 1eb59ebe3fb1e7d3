"""What a study is: a configuration, groups of overrides and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from covpool.config import load_config
from covpool.config.loader import find_file
from covpool.config.values import closest
from covpool.errors import ConfigError
from covpool.runtime.files import read_text

_KEYS = ("title", "config", "grid", "variants", "seeds", "accuracies")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str  # what tables and plots call it
    overrides: tuple[str, ...]  # `key=value`, over the study's configuration

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^A-Za-z0-9.=_-]+", "_", self.name).strip("_")


@dataclass(frozen=True)
class Run:
    """One training."""

    group: Group  # what it belongs to
    seed: int  # its seed

    @property
    def name(self) -> str:
        """Path of the run folder below the study's."""
        return f"{self.group.slug}/seed-{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What it changes in the study's configuration."""
        return [text.replace("{seed}", str(self.seed)) for text in self.group.overrides]


@dataclass(frozen=True)
class Study:
    """A grid of runs."""

    name: str  # name of the file, without its ending
    title: str  # title of the plots
    config: Path  # the configuration that all runs start from
    groups: tuple[Group, ...]  # in the order of tables and plots
    seeds: tuple[int, ...]  # seeds of each group
    accuracies: tuple[float, ...]  # top-1 accuracies whose first epoch is looked for, in (0, 1)

    def runs(self) -> list[Run]:
        """All runs, seed by seed: what a stopped study has is whole groups with fewer seeds."""
        return [Run(group, seed) for seed in self.seeds for group in self.groups]


def read_study(path: Path) -> Study:
    """Read a study file; ConfigError: in one line, what is wrong and what is allowed.

    Keys: `config` (relative to the file), `grid` (key: list of values; every combination), `variants` (name: overrides;
    combined with every point of the grid), `seeds`, and optionally `title` and `accuracies`. In the text of a variant
    `{seed}` and `{KEY}` of the grid stand for their values, so that a run can start from one of another study. Every
    combination is checked as a configuration.
    """
    content = _mapping(path)
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path}: unknown key {key!r} (closest: {closest(str(key), _KEYS)})")
    if not isinstance(content.get("config"), str):
        raise ConfigError(f"{path}: config must name a configuration file")
    config = find_file(path.parent, content["config"])
    seeds = _list(path, content, "seeds", int)
    accuracies = _list(path, content, "accuracies", float) if "accuracies" in content else []
    if any(not 0 < accuracy < 1 for accuracy in accuracies):
        raise ConfigError(f"{path}: accuracies = {accuracies}: must lie between 0 and 1")
    groups = _groups(path, content.get("grid") or {}, content.get("variants") or {})
    if len({group.slug for group in groups}) < len(groups):
        raise ConfigError(f"{path}: two groups have the same name: {', '.join(group.name for group in groups)}")
    for group in groups:
        load_config(config, group.overrides)
    title = str(content.get("title", path.stem))
    return Study(path.stem, title, config, tuple(groups), tuple(seeds), tuple(float(a) for a in accuracies))


def _mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the study {path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must map keys to values: {', '.join(_KEYS)}")
    return content


def _list(path: Path, content: Mapping[Any, Any], key: str, kind: type) -> list[Any]:
    values = content.get(key)
    if not isinstance(values, list) or not values or any(type(value) is not kind for value in values):
        raise ConfigError(f"{path}: {key} must be a list of {'whole numbers' if kind is int else 'numbers'}")
    if len(set(values)) < len(values):
        raise ConfigError(f"{path}: {key} = {values}: a value is there twice")
    return values


def _groups(path: Path, grid: Any, variants: Any) -> list[Group]:
    if not isinstance(grid, dict) or any(not isinstance(values, list) or not values for values in grid.values()):
        raise ConfigError(f"{path}: grid must map configuration keys to lists of values")
    if not isinstance(variants, dict) or any(not isinstance(changes, dict) for changes in variants.values()):
        raise ConfigError(f"{path}: variants must map names to overrides, each a mapping")
    if not grid and not variants:
        raise ConfigError(f"{path}: there is nothing to compare: neither grid nor variants")
    groups = []
    for point in itertools.product(*grid.values()):
        settings = dict(zip(grid, point))
        for name, changes in (variants or {"": {}}).items():
            labels = [value if isinstance(value, str) else f"{key}={value}" for key, value in settings.items()]
            overrides = [f"{key}={_text(value)}" for key, value in {**settings, **changes}.items()]
            for key, value in settings.items():
                overrides = [text.replace(f"{{{key}}}", str(value)) for text in overrides]
            groups.append(Group(", ".join([*labels, *([str(name)] if name != "" else [])]), tuple(overrides)))
    return groups


def _text(value: Any) -> str:
    """A value as the configuration's command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
