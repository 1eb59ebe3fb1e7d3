"""Values: what a configuration key accepts, and the check of one value."""

from __future__ import annotations

import math
import operator
import os
import re
import reprlib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Union

from covpool.config.legacy import OTHER_NAMES
from covpool.errors import ConfigError, nearest

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_CONSTANTS = {"": None, "~": None, "null": None, "True": True, "true": True, "False": False, "false": False}
_MAX_INTEGER = 2**32 - 1  # the largest seed; no other key comes near it
_NOUNS = {
    **{"bool": "True or False", "int": "an integer", "float": "a number", "str": "a string"},
    **{
        "dict": "a mapping of names to values",
        "list of int": "integers",
        "list of float": "numbers",
        "list of str": "names",
    },
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Option:
    """One configuration key."""

    name: str
    kind: str  # `bool`, `int`, `float`, `str`, `dict`, `list of int`, `list of float` or `list of str`
    words: tuple[Any, ...]  # what may stand in place of such a value: None (written `null`), or a word such as `auto`
    default: Any  # where no file and no command line gives a value
    help: str  # one sentence for `--help` and the reference
    section: str  # heading under which the key is shown
    choices: tuple[Any, ...] = ()  # allowed values; empty for any; strings are compared without regard to case
    aliases: Mapping[str, Any] = field(default_factory=dict)  # other spellings (lower case) of choices
    bounds: str = ""  # condition on the number, or on each number of a list, such as `0 <= x < 1`
    length: int = 0  # number of elements of a list; 0 for any
    path: bool = False  # whether the text names a file or folder, in which a leading `~` is the user's home
    filled: bool = False  # whether the text must not be empty

    @property
    def type_name(self) -> str:
        """Kind of value, as shown to the user."""
        return " or ".join([self.kind, *self._written_words])

    @property
    def _written_words(self) -> list[str]:
        return ["null" if word is None else str(word) for word in self.words]

    def describe(self) -> str:
        """What is allowed, to follow the words "must be"."""
        is_list = self.kind.startswith("list of ")
        if self.choices:
            text = "one of " + ", ".join(map(str, self.choices))
        elif is_list:
            text = f"a list of {f'{self.length} ' if self.length else ''}{_NOUNS[self.kind]}"
        else:
            text = _NOUNS[self.kind] + (" that is not empty" if self.filled else "")
        if self.bounds:
            text += " with " + (self.bounds if is_list else re.sub(r"\bx\b", self.name, self.bounds))
        return ", or ".join([text, *self._written_words])


def show(value: object) -> str:
    """Returns a value for a message, on one line and shortened."""
    return _SHORT.repr(value)


def closest(name: str, known: Iterable[str]) -> str:
    """Returns the known name most like the given one."""
    return nearest(name.lower(), known)[0]


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Says of an unknown name what other libraries mean by it, that it is not there yet, or the known one most like it.

    The `prefix` stands before a known name, `--` for one.
    """
    known = list(known)
    meant = OTHER_NAMES.get(name.lower().replace("-", "_"))
    if meant == "":
        return f"{name} is not there yet"
    return f"closest: {prefix}{meant if meant in known else closest(name, known)}"


def resolve(text: str) -> bool | int | float | str | None:
    """Reads an unquoted scalar: null, boolean, decimal number (also `1e-4`), else the text itself.

    Unlike YAML 1.1, `yes`, `on`, `0x10`, `010`, `1_000`, `12:30` and dates stay text.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def check(option: Option, value: object, where: str) -> Any:
    """Returns a Python value from `where`, a file or a command line, in the type of the key.

    A ConfigError says that it is of another type, out of range or not among the choices.
    """
    try:
        return _convert(option, value)
    except (TypeError, ValueError, LookupError, OverflowError):
        hint = ""
        if isinstance(value, str) and option.choices and option.kind == "str":
            hint = f" ({suggestion(value, map(str, option.choices))})"
        elif isinstance(value, str) and option.kind not in ("str", "dict"):
            hint = ", without quotes" if resolve(value) != value else ""
        elif isinstance(value, str) and not _is_utf8(value):
            hint = " of UTF-8 text"
        elif option.kind == "int" and isinstance(value, int) and value > _MAX_INTEGER:
            hint = f", at most {_MAX_INTEGER}" if _satisfies(option.bounds, value) else ""
        raise ConfigError(f"{where}: {option.name} = {show(value)}: must be {option.describe()}{hint}") from None


def _convert(option: Option, value: object) -> Any:
    word = value.lower() if isinstance(value, str) else value
    if (word is None or isinstance(word, str)) and word in option.words:
        return word
    if option.kind == "dict":
        if not isinstance(value, Mapping) or not all(isinstance(key, str) and key.isidentifier() for key in value):
            raise TypeError
        return {key: _convert_free(item) for key, item in value.items()}
    if option.kind.startswith("list of "):
        if not isinstance(value, (list, tuple)) or (option.length and len(value) != option.length):
            raise TypeError
        kind = option.kind[len("list of ") :]
        items = tuple(_convert_scalar(kind, item) for item in value)
        if not all(_satisfies(option.bounds, item) for item in items):
            raise ValueError
        return items
    scalar = _convert_scalar(option.kind, value)
    if option.filled and not scalar:
        raise ValueError
    if option.path:
        return os.path.expanduser(scalar)  # noqa: PTH111 - Path would drop what the user wrote, a final slash for one
    if option.choices:
        return {**{str(choice).lower(): choice for choice in option.choices}, **option.aliases}[str(scalar).lower()]
    if not _satisfies(option.bounds, scalar):
        raise ValueError
    return scalar


def _convert_scalar(kind: str, value: object) -> Any:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value).__name__ != kind:
        raise TypeError
    return _sane(value)


def _sane(value: Any) -> Any:
    """The value, but for what no key can mean: NaN, infinities, integers beyond 32 bits, text with NUL or not UTF-8."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    beyond = isinstance(value, int) and abs(value) > _MAX_INTEGER
    if infinite or beyond or (isinstance(value, str) and ("\0" in value or not _is_utf8(value))):
        raise ValueError
    return value


def _is_utf8(text: str) -> bool:
    """Whether text can be written to a file: bytes of a command line that are not UTF-8 come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _convert_free(value: object) -> Any:
    """A value of unknown type: a scalar, or a list of such values."""
    if isinstance(value, (list, tuple)):
        return [_convert_free(item) for item in value]
    if value is not None and type(value) not in (bool, int, float, str):
        raise TypeError
    return _sane(value)


def _satisfies(bounds: str, value: Any) -> bool:
    """Whether a condition such as `0 <= x < 1` holds for x = value; the empty one always does."""
    words = bounds.split()
    terms = [value if word == "x" else float(word) for word in words[::2]]
    return all(_COMPARE[sign](left, right) for left, sign, right in zip(terms, words[1::2], terms[1:]))


def kind_of(hint: Any) -> tuple[str, tuple[Any, ...]]:
    """Kind of value of a type annotation, and the words (`None`, a literal text) that may stand in its place."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Union:
        word = None if arguments[1] is type(None) else typing.get_args(arguments[1])[0]
        return kind_of(arguments[0])[0], (word,)
    if origin is tuple:
        return f"list of {arguments[0].__name__}", ()
    return ("dict" if origin is not None else hint.__name__), ()


def plain(value: Any) -> Any:
    """The value as YAML and JSON hold it: lists for tuples, dictionaries for other mappings."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
