"""Writes the reference of all keys: `python -m covpool.config.reference > docs/configuration.md`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from covpool.config.command_line import format_value, value_name
from covpool.config.legacy import IGNORED, SYNONYMS
from covpool.config.schema import options


def render() -> str:
    """Returns reference.md with its tables filled in."""
    lines = []
    for section, members in itertools.groupby(options().values(), key=lambda option: option.section):
        lines += [f"### {section}\n", "| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for option in members:
            value = value_name(option).replace("|", ", ") if option.choices else option.type_name
            limit = f", {option.bounds}" if option.bounds else ""
            lines.append(f"| `{option.name}` | {value}{limit} | `{format_value(option.default)}` | {option.help} |")
        lines.append("")
    parts = {
        "{{keys}}": "\n".join(lines),
        "{{synonyms}}": "\n".join(f"* `{old}`: `{new}`" for old, new in sorted(SYNONYMS.items())),
        "{{ignored}}": ", ".join(f"`{key}`" for key in sorted(IGNORED)),
    }
    text = Path(__file__).with_name("reference.md").read_text(encoding="utf-8")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


if __name__ == "__main__":
    sys.stdout.write(render())
