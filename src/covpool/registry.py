"""A small registry: name -> entry, with a collision check and helpful errors."""

from __future__ import annotations

from typing import Dict, Generic, List, TypeVar

from covpool.errors import UserError, nearest

EntryT = TypeVar("EntryT")


class UnknownNameError(UserError, ValueError):
    """A name that is not registered; the message gives the nearest names and all names."""

    exit_code = 2

    def __init__(self, kind: str, name: object, names: List[str]) -> None:
        near = nearest(str(name), names, 3, 0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known names: {', '.join(names) or 'none'}.")


class Registry(Generic[EntryT]):
    """Maps names to entries of one ``kind``, in the singular ("pooling", "model")."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: Dict[str, EntryT] = {}

    def add(self, name: str, entry: EntryT) -> None:
        """Store an entry; a name that is taken or not a non-empty string is a ValueError."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"The name of a {self._kind} must be a non-empty string, not {name!r}.")
        if name in self._entries:
            raise ValueError(f"The {self._kind} {name!r} is registered already.")
        self._entries[name] = entry

    def get(self, name: str) -> EntryT:
        """The entry of a name; an unknown one is an UnknownNameError."""
        if not isinstance(name, str) or name not in self._entries:
            raise UnknownNameError(self._kind, name, self.names())
        return self._entries[name]

    def names(self) -> List[str]:
        """All names, sorted."""
        return sorted(self._entries)
