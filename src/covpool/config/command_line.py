"""Command lines of the form `--config_path=FILE [--key=value ...]`, and their help."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from covpool.config.legacy import IGNORED, SYNONYMS
from covpool.config.loader import COMMAND_LINE, Layer, apply_overrides, build_config, read_layer
from covpool.config.schema import Config, options
from covpool.config.values import Option, check, closest, resolve, show
from covpool.errors import ConfigError

_WIDTH = 110
_INDENT = " " * 8


def parse_args(
    argv: Sequence[str], description: str, required: Sequence[str] = (), config_optional: bool = False
) -> Config:
    """Turns command-line arguments (without the program's name) into a configuration.

    `--help` prints every key, with the values of the given file if there is one, and leaves by `SystemExit(0)`.

    Args:
        argv: `--config_path=FILE` and `--key=value` or `--key value`; of two values of a key, the last one counts.
        description: What the program does, for the help.
        required: Keys that must not be empty for this program.
        config_optional: Whether the program can do without a file, because a checkpoint knows the rest.

    Raises:
        ConfigError: Bad usage or a bad configuration, in one line.
    """
    wants_help = "--help" in argv or "-h" in argv
    paths, overrides = _split([text for text in argv if text not in ("--help", "-h")])
    if not paths and not wants_help and not config_optional:
        raise ConfigError(f"{COMMAND_LINE}: --config_path=FILE is missing (--help shows all keys)")
    layer = read_layer(paths[-1]) if paths else Layer()
    apply_overrides(layer, overrides)
    if wants_help:
        text = format_help(description, layer, Path(sys.argv[0]).name, required, config_optional)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
        raise SystemExit(0)
    config = build_config(layer, paths[-1] if paths else "no file", overrides)
    for key in required:
        if getattr(config, key) in ("", None):
            raise ConfigError(f"{COMMAND_LINE}: --{key} is missing: {options()[key].help}")
    return config


def format_help(
    description: str, layer: Layer, program: str, required: Sequence[str] = (), config_optional: bool = False
) -> str:
    """Returns the help: every key with type, default, choices and help text, by section.

    Args:
        description: What the program does.
        layer: Values and help texts of the given file and options, shown in place of the built-in ones.
        program: Name of the program.
        required: Keys to show in the usage line.
        config_optional: Whether the program can do without a file.
    """
    needed = "".join(f" --{key}={key.upper()}" for key in required)
    file = "[--config_path=FILE]" if config_optional else "--config_path=FILE"
    lines = [f"usage: python {program} {file}{needed} [--key=value ...]", "", description, ""]
    section = ""
    for name, option in options().items():
        if option.section != section:
            section = option.section
            lines += ["", f"{section}:"]
        value = layer.get(option)
        origin = f" ({layer.origins[name]})" if name in layer.origins else ""
        text = layer.helps.get(name, option.help)
        lines += [f"  --{name}={value_name(option)}", *_wrap(text)]
        if name in layer.choices:
            lines += _wrap(f"allowed: {', '.join(map(str, layer.choices[name][0]))} ({layer.choices[name][1]})")
        lines += _wrap(f"default: {format_value(value)}{origin}")
    lines += ["", "Values are typed: True or False, numbers, null, lists as [1, 2], mappings as {name: value}.", ""]
    return "\n".join(lines)


def key_type(name: str) -> Callable[[str], Any]:
    """Returns the `type` of an argparse option whose values are those of a key, with its limits."""

    def convert(text: str) -> Any:
        try:
            return check(options()[name], resolve(text), COMMAND_LINE)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def value_name(option: Option) -> str:
    """Returns the placeholder of a key's value, or its choices."""
    if option.kind == "bool":
        return "True|False"
    kind = option.kind.replace(" ", "-").upper()
    return "|".join(map(str, option.choices or (kind, *option.type_name.split(" or ")[1:])))


def format_value(value: object) -> str:
    """Returns a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return '""' if value == "" else str(value)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates configuration paths from overrides, joining `--key value` to `--key=value`."""
    paths, overrides = [], []
    rest = list(argv)
    while rest:
        text = rest.pop(0)
        if not text.startswith("--") or text == "--":
            raise ConfigError(f"{COMMAND_LINE}: {show(text)}: must have the form --key=value")
        key, sign, value = text[2:].partition("=")
        if key.partition(".")[0] not in {"config_path", *options(), *SYNONYMS, *IGNORED}:
            near = closest(key, ["config_path", "help", *options()])
            raise ConfigError(f"{COMMAND_LINE}: unknown option {show('--' + key)} (closest: --{near})")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: {show(text)} has no value: must have the form --key=value")
            value = rest.pop(0)
        if key == "config_path":
            paths.append(value)
        else:
            overrides.append(f"--{key}={value}")
    return paths, overrides
