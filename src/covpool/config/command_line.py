"""Command lines of the form `--config_path=FILE [--key=value ...]`, and their help."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Callable, Optional

from covpool.config.legacy import IGNORED, SYNONYMS
from covpool.config.loader import COMMAND_LINE, Layer, apply_overrides, read_layer
from covpool.config.schema import Config, options
from covpool.config.values import Option, check, resolve, show, suggestion
from covpool.errors import ConfigError
from covpool.runtime.command import exit_code_of
from covpool.runtime.distributed import World, session
from covpool.runtime.environment import prepare_environment

_WIDTH = 110
_INDENT = " " * 8


@dataclass(frozen=True)
class Program:
    """What a command line is read for."""

    description: str  # what the program does
    required: Sequence[str] = ()  # keys that must not be empty
    usual: Sequence[str] = ()  # keys that people set, which `--help` shows; empty for all
    config_optional: bool = False  # whether it can do without a file, because a checkpoint knows the rest
    name: str = "covpool"  # how it is called


def run_entry_point(main: Callable[[Config], Optional[int]], argv: Sequence[str], program: Program) -> int:
    """Parse arguments, run a program and return its exit code, see :func:`covpool.runtime.command.exit_code_of`."""
    shown = [text.lower() == "--debug=true" for text in argv]

    def run() -> Optional[int]:
        config = parse_args(argv, program)
        shown.append(config.debug)
        return main(config)

    return exit_code_of(run, lambda: any(shown))


def open_session(config: Config) -> AbstractContextManager[World]:
    """Prepare the process environment and join the configured world; call it before MindSpore is imported."""
    prepare_environment(config.device_target)
    device_id = None if config.run_distribute else config.device_id
    launch = (config.run_distribute, config.device_num, config.rank_timeout)
    return session(config.mode_name, config.device_target, device_id, *launch)


def parse_args(argv: Sequence[str], program: Program) -> Config:
    """Turns command-line arguments (without the program's name) into a configuration.

    `--help` prints the usual keys and `--help=all` every key, with the values of the given file if there is one; both
    leave by `SystemExit(0)`.

    They are `--config_path=FILE` and `--key=value` or `--key value`; of two values of a key, the last one counts.
    """
    wanted = [text for text in argv if text in ("--help", "-h", "--help=all")]
    takes_file = "checkpoint_file_path" in program.required
    paths, overrides = _split([text for text in argv if text not in wanted], takes_file)
    if not paths and not wanted and not program.config_optional:
        raise ConfigError(f"{COMMAND_LINE}: --config_path=FILE is missing (--help shows the keys)")
    layer = read_layer(paths[-1]) if paths else Layer()
    apply_overrides(layer, overrides)
    if wanted:
        text = format_help(program, layer, "--help=all" in wanted)
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
        raise SystemExit(0)
    config = layer.build(paths[-1] if paths else "no file", overrides)
    for key in program.required:
        if getattr(config, key) in ("", None):
            raise ConfigError(f"{COMMAND_LINE}: --{key} is missing: {options()[key].help}")
    return config


def format_help(program: Program, layer: Layer, every: bool) -> str:
    """Returns the help: keys with type, default, choices and help text, by section; the usual ones or `every`.

    Values and help texts of the `layer` stand in place of the built-in ones.
    """
    needed = "".join(f" --{key}={key.upper()}" for key in program.required)
    file = "[--config_path=FILE]" if program.config_optional else "--config_path=FILE"
    lines = [f"usage: {program.name} {file}{needed} [--key=value ...]", "", program.description, ""]
    section = ""
    for name, option in options().items():
        if not every and program.usual and name not in (*program.required, *program.usual):
            continue
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
    lines += ["", "Values are typed: True or False, numbers, null, lists as [1, 2], mappings as {name: value}."]
    if program.usual and not every:
        lines.append("These are the keys that people set; --help=all shows every key.")
    return "\n".join([*lines, ""])


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


def _split(argv: Sequence[str], takes_file: bool) -> tuple[list[str], list[str]]:
    """Separates configuration paths from overrides, joining `--key value` to `--key=value`.

    With `takes_file`, FILE.ckpt without a key is `checkpoint_file_path`.
    """
    paths, overrides = [], []
    rest = list(argv)
    while rest:
        text = rest.pop(0)
        if takes_file and text.endswith(".ckpt") and not text.startswith("-"):
            overrides.append(f"--checkpoint_file_path={text}")
            continue
        if not text.startswith("--") or text == "--":
            raise ConfigError(f"{COMMAND_LINE}: {show(text)}: must have the form --key=value")
        key, sign, value = text[2:].partition("=")
        if key.partition(".")[0] not in {"config_path", *options(), *SYNONYMS, *IGNORED}:
            near = suggestion(key, ["config_path", "help", *options()], "--")
            raise ConfigError(f"{COMMAND_LINE}: unknown option {show('--' + key)} ({near})")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: {show(text)} has no value: must have the form --key=value")
            value = rest.pop(0)
        if key == "config_path":
            paths.append(value)
        else:
            overrides.append(f"--{key}={value}")
    return paths, overrides
