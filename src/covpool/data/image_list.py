"""Text files that name the images of an image folder to be used: one ``<split>/<class>/<file>`` a line.

Paths are below the data set's root, in UTF-8. Empty lines and lines that begin with ``#`` are passed over. A path that
would not survive as a line (line breaks, blanks at its ends, bytes that are no UTF-8) stands as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from covpool.data.decoding import printable
from covpool.errors import UserError
from covpool.runtime.files import whole_file


def format_line(path: str) -> str:
    """Return the line for one path."""
    return path if path.isprintable() and path == path.strip() and path[:1] not in '#"' else json.dumps(path)


def write_image_list(path: Path, images: Iterable[str], comment: str = "") -> None:
    """Write a list of paths ``<split>/<class>/<file>``.

    Args:
        path: The file to write; an earlier one is replaced when the new one is complete.
        images: The paths, as ``os.fsdecode`` gives them.
        comment: First line.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [f"# {comment}"] if comment else []
    text = "".join(f"{line}\n" for line in [*lines, *map(format_line, images)])
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_image_list(path: Path) -> dict[str, dict[str, list[str]]]:
    """Read a list: file names by split and class, all in sorted order.

    Raises:
        UserError: The file cannot be read, or a line is no path ``<split>/<class>/<file>`` or occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise UserError(f"image_list {path} is no text in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read image_list {path}: {error.strerror or error}") from error
    found: dict[str, dict[str, set[str]]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            split, label, name = _path(line).split("/")
        except ValueError:
            split = label = name = ""
        if split not in ("train", "val") or {label, name} & {"", ".", ".."}:
            raise UserError(
                f"image_list {path}, line {number}: {printable(line)[:100]!r} is no path train/<class>/<file> or "
                "val/<class>/<file>"
            )
        names = found.setdefault(split, {}).setdefault(label, set())
        if name in names:
            raise UserError(f"image_list {path}, line {number}: {printable(line)} stands there twice")
        names.add(name)
    return {
        split: {label: sorted(names) for label, names in sorted(classes.items())} for split, classes in found.items()
    }


def _path(line: str) -> str:
    text = json.loads(line) if line.startswith('"') else line
    if "\0" in text:
        raise ValueError
    return str(text)
