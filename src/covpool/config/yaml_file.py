"""Reading and writing of YAML files, restricted to plain data: PyYAML's nodes become scalars, lists and mappings here.

Tags, anchors and aliases are refused, a key may occur once (or again with the same value), and each top-level key
keeps its line for messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from covpool.config.values import closest, resolve, show
from covpool.errors import ConfigError
from covpool.runtime.files import write_text

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Document:
    """One YAML document: its mapping and the line of each top-level key (from 1)."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


class _PlainLoader(yaml.SafeLoader):
    """Composes nodes of plain data only."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, problem = self.peek_event(), ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases are not supported"
        elif getattr(event, "tag", None) is not None:
            problem = f"tag {show(event.tag)} is not supported"
        elif self._depth == _MAX_DEPTH:
            problem = "nested too deeply"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _PlainDumper(yaml.SafeDumper):
    """Quotes every string that `resolve` would read as something else, and escapes what YAML would fold."""

    def represent_text(self, data: str) -> yaml.Node:
        style = '"' if resolve(data) != data or not data.isprintable() else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


def read_documents(path: str | os.PathLike[str]) -> list[Document]:
    """Reads the documents of a YAML file; a ConfigError says what is wrong with it, and in which line."""
    try:
        file = Path(path)
        if not file.is_file():
            raise ConfigError(_missing(file))
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes, not a configuration file")
        return parse_documents(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{show(str(path))}: cannot be read: {error.strerror}") from None
    except ConfigError:
        raise
    except (TypeError, ValueError):
        raise ConfigError(f"{show(path)}: not a usable file name") from None


def parse_documents(text: str, source: str) -> list[Document]:
    """Parses YAML text into documents, each a mapping (an empty document is an empty one)."""
    documents = []
    for node in _compose(text, source):
        if isinstance(node, yaml.MappingNode):
            lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
            documents.append(Document(_plain(node, source), lines))
        elif _plain(node, source) is None:
            documents.append(Document())
        else:
            line = node.start_mark.line + 1
            raise ConfigError(f"{source}:{line}: must be a mapping of keys to values, one 'key: value' a line")
    return documents


def parse_value(text: str, source: str) -> Any:
    """Parses one value in YAML's flow style, such as `[1, 2]`, `{rate: 0.5}` or `1e-4`."""
    nodes = _compose(text, source)
    if len(nodes) > 1:
        raise ConfigError(f"{source}: {show(text)} is more than one value")
    return _plain(nodes[0], source) if nodes else None


def write_yaml(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Writes a mapping so that `read_documents` reads it again; the file appears complete or not at all."""
    write_text(path, yaml.dump(dict(values), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120))


def _compose(text: str, source: str) -> list[yaml.Node]:
    try:
        return list(yaml.compose_all(text, Loader=_PlainLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{source}{line}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _plain(node: yaml.Node, source: str) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return resolve(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, source) for item in node.value]
    mapping: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{source}:{line}: a key must be a name, not a list or a mapping")
        value = _plain(item, source)
        earlier = mapping.setdefault(key.value, value)
        if (type(earlier), earlier) != (type(value), value):
            both = f"{show(value)} here, {show(earlier)} in line {lines[key.value]}"
            raise ConfigError(f"{source}:{line}: key {show(key.value)} is given twice: {both}")
        lines[key.value] = line
    return mapping


def _missing(file: Path) -> str:
    if file.exists():
        return f"{file}: not a regular file"
    hint = ""
    if file.parent.is_dir():
        names = [item.name for item in file.parent.glob("*.yaml")]
        hint = f" (closest: {file.parent / closest(file.name, names)})" if names else ""
    return f"{show(str(file))[1:-1]}: no such file{hint}"
