"""MindSpore's checkpoints as bytes, read and written without the code under test."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

MARK = b"crc_num"


@dataclass(frozen=True)
class Entry:
    """One parameter or text of a checkpoint."""

    name: bytes
    dims: tuple[int, ...]
    kind: bytes
    content: bytes
    extra: bytes = b""

    def changed(self, **values: object) -> Entry:
        return replace(self, **values)  # type: ignore[arg-type]

    def encoded(self) -> bytes:
        dims = b"".join(field(1, d) for d in self.dims)
        return field(
            1, field(1, self.name) + field(2, dims + field(2, self.kind) + field(3, self.content)) + self.extra
        )


def varint(value: int) -> bytes:
    """A number as protobuf writes it; negative ones as their two's complement."""
    value %= 2**64
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def field(number: int, content: bytes | int) -> bytes:
    """A field of a message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Fields of a well-formed message of numbers and bytes."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        value = number()
        if key & 7 == 2:
            yield key >> 3, message[place : place + value]
            place += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise ValueError(f"wire type {key & 7}")


def body(content: bytes) -> bytes:
    """A checkpoint without its checksum."""
    return content[: -len(MARK) - 10] if content[-len(MARK) - 10 : -10] == MARK else content


def sealed(content: bytes) -> bytes:
    """With the checksum that MindSpore would give it."""
    return content + MARK + binascii.crc32(content).to_bytes(10, "big")


def read(content: bytes) -> list[Entry]:
    """Entries of a well-formed checkpoint."""
    entries = []
    for _, value in fields(body(content)):
        outer = dict(fields(bytes(value)))
        inner = list(fields(bytes(outer[2])))
        parts = dict(inner)
        dims = tuple(int(d) for n, d in inner if n == 1)
        entries.append(Entry(bytes(outer[1]), dims, bytes(parts[2]), bytes(parts[3])))
    return entries


def written(entries: list[Entry]) -> bytes:
    """A checkpoint without checksum."""
    return b"".join(entry.encoded() for entry in entries)


def network(path: Path) -> dict[bytes, bytes]:
    """Content of the network's parameters in a checkpoint, by name."""
    other = (b"optimizer.", b"about.", b"ranks.")
    return {e.name: e.content for e in read(path.read_bytes()) if not e.name.startswith(other)}
