"""From files and `key=value` overrides to a configuration."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covpool.config.legacy import ASSUMED, IGNORED, SYNONYMS
from covpool.config.schema import Config, find_option, options
from covpool.config.values import Option, check, resolve, show
from covpool.config.yaml_file import Document, parse_value, read_documents
from covpool.errors import ConfigError

logger = logging.getLogger("covpool.config")

COMMAND_LINE = "command line"


@dataclass
class Layer:
    """What files and overrides say so far; a later source replaces an earlier one key by key.

    Values are judged when all sources are read: one that is replaced may be anything.
    """

    values: dict[str, Any] = field(default_factory=dict)  # of each given key, as it was read
    origins: dict[str, str] = field(default_factory=dict)  # where it was given
    helps: dict[str, str] = field(default_factory=dict)  # help texts of the files
    # Allowed values of the files, beyond those of the schema, and where they were given.
    choices: dict[str, tuple[list[Any], str]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)  # legacy keys met, for the warning
    of_ports: bool = False  # whether the file is one of the papers' MindSpore ports: it has their keys, and no `base`

    def get(self, option: Option) -> Any:
        """Returns the checked value of a key, or its default."""
        if option.name not in self.values:
            return option.default
        return check(option, self.values[option.name], self.origins[option.name])

    def build(self, path: str | os.PathLike[str], overrides: Sequence[str]) -> Config:
        """Returns the configuration of a file, with the overrides applied already, and logs warnings."""
        values = {name: self.get(options()[name]) for name in self.values}
        for name, (allowed, where) in self.choices.items():
            if name in values and values[name] not in allowed:
                listed = ", ".join(map(str, allowed))
                value = show(values[name])
                raise ConfigError(f"{self.origins[name]}: {name} = {value}: must be one of {listed} (choices, {where})")
        ranks = values.get("device_num", 1) if self.origins.get("device_num") == COMMAND_LINE else 1
        if ranks > 1 and not values.get("run_distribute"):
            raise ConfigError(f"{COMMAND_LINE}: device_num = {ranks}: needs run_distribute = True")
        if self.of_ports:
            values = {**{name: value for name, (value, _) in ASSUMED.items()}, **values}
        try:
            config = Config(**values, given=frozenset(self.origins))
        except ConfigError as error:
            raise ConfigError(f"{path}{f' and {COMMAND_LINE}' if overrides else ''}: {error}") from None
        if self.notes:
            logger.warning("%s: legacy keys: %s", path, ", ".join(self.notes))
        if self.of_ports:
            assumed = [f"{k} = {v} ({why})" for k, (v, why) in ASSUMED.items() if k not in self.values]
            if config.lr_decay_mode == "cosine" and self.origins.get("lr_decay_mode") != COMMAND_LINE:
                assumed.append("lr_decay_mode = cosine, the standard one (--lr_decay_mode=port_cosine for the ports')")
            if assumed:
                logger.warning("%s: a file of the papers' MindSpore ports; assumed: %s", path, "; ".join(assumed))
        if config.device_num > 1 and not config.run_distribute:
            logger.warning("%s: device_num = %d is ignored: not distributed", path, config.device_num)
        if config.class_num == 1001 and config.dataset == "imagenet2012":
            logger.warning("%s: class_num = 1001: ImageNet has 1000 classes (TensorFlow adds a background)", path)
        return config


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration.

    A file has up to three YAML documents: values, help texts, allowed values; each maps keys. The key `base` of the
    first names a file (relative to this one) whose three documents are inherited key by key. Legacy keys
    (`covpool.config.legacy`) are named in one warning of the logger `covpool.config`.

    Args:
        path: YAML file.
        overrides: `--key=value` or `key=value`, in the order of application; `--pooling_args.name=value` changes one
            entry of a mapping.

    Raises:
        ConfigError: In one line, what is wrong, where, and what is allowed.
    """
    layer = read_layer(path)
    apply_overrides(layer, overrides)
    return layer.build(path, overrides)


def apply_overrides(layer: Layer, overrides: Sequence[str]) -> None:
    """Applies `--key=value` settings to what the files say."""
    for text in overrides:
        if not isinstance(text, str) or "=" not in text:
            raise ConfigError(f"{COMMAND_LINE}: {show(text)}: must have the form --key=value")
        key, _, value = text.partition("=")
        _override(layer, key[2:] if key.startswith("--") else key, value)


def _override(layer: Layer, key: str, text: str) -> None:
    key, _, entry = key.partition(".")
    key = SYNONYMS.get(key, key)
    if key in IGNORED:
        instead = f"the key that counts is {IGNORED[key]}" if IGNORED[key] else "leave it out"
        what = "is a key of the papers' MindSpore ports without effect here"
        raise ConfigError(f"{COMMAND_LINE}: {key} {what}: {instead}")
    option = find_option(key, COMMAND_LINE)
    where = f"{COMMAND_LINE}: {key}"
    value: Any = text
    if entry:
        if option.kind != "dict":
            raise ConfigError(f"{COMMAND_LINE}: {show(f'{key}.{entry}')}: {key} is not a mapping")
        value = {**layer.get(option), entry: parse_value(text, where)}
    elif option.kind == "dict" or option.kind.startswith("list of "):
        value = parse_value(text, where)
    elif option.kind != "str":
        value = resolve(text)
    layer.values[key], layer.origins[key] = value, COMMAND_LINE


def read_layer(path: str | os.PathLike[str], chain: tuple[Path, ...] = ()) -> Layer:
    """Reads a file and the files it is based on; `chain` holds those that are based on it."""
    documents = read_documents(path)
    file = Path(path).resolve()
    if file in chain:
        raise ConfigError("base: files inherit in a circle: " + " -> ".join(str(item) for item in (*chain, file)))
    if len(documents) > 3:
        raise ConfigError(f"{path}: has {len(documents)} documents: must be at most 3 (values, help texts, choices)")
    values, helps, choices = documents + [Document()] * (3 - len(documents))
    base = values.values.pop("base", None)
    if base is None:
        layer = Layer()
    elif isinstance(base, str):
        layer = read_layer(find_file(Path(path).parent, base), (*chain, file))
    else:
        raise ConfigError(f"{path}:{values.lines['base']}: base = {show(base)}: must be the name of a file")
    for key, (value, where) in _canonical(values, str(path), layer.notes).items():
        layer.values[find_option(key, where).name], layer.origins[key] = value, where
    layer.of_ports = base is None and not IGNORED.keys().isdisjoint(values.values)
    for key, (value, _) in _canonical(helps, str(path), {}).items():
        layer.helps[key] = " ".join(str(value).split())
    for key, (value, where) in _canonical(choices, str(path), {}).items():
        layer.choices[key] = (_read_choices(find_option(key, where), value, where), where)
    return layer


def find_file(folder: Path, name: str) -> Path:
    """The file of that name in a folder, or among the base files that come with the package (`base/...`)."""
    shipped = Path(__file__).resolve().parent / name
    return shipped if shipped.is_file() and not (folder / name).exists() else folder / name


def _canonical(document: Document, path: str, notes: dict[str, None]) -> dict[str, tuple[Any, str]]:
    """Returns values and their places under the keys of the schema, without ignored keys.

    A synonym that is empty, as the ports' files have it beside the proper key, says nothing.
    """
    result: dict[str, tuple[Any, str]] = {}
    for key in sorted(document.values, key=lambda key: key in SYNONYMS):
        value, where = document.values[key], f"{path}:{document.lines[key]}"
        proper = SYNONYMS.get(key, key)
        if key in IGNORED:
            notes[f"{key} (ignored)"] = None
        elif key == proper:
            result[key] = (value, where)
        elif value not in ("", None):
            given = result.get(proper, ("", ""))[0]
            if given not in ("", None, value):
                raise ConfigError(f"{where}: {key} = {show(value)} contradicts {proper} = {show(given)}")
            result[proper] = (value, where)
            notes[f"{key} (read as {proper})"] = None
    return result


def _read_choices(option: Option, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: choices of {option.name} = {show(value)}: must be a list")

    def allowed(item: Any) -> Any:
        try:
            return check(option, item, where)
        except ConfigError:
            return item  # a choice that the schema does not have, which no checked value can equal

    return list(map(allowed, value))
