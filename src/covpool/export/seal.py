"""A checksum at the end of exported files, of either format: it tells damage, not origin.

Both formats are protobuf messages, and a message may be followed by a field that its readers do not know. Neither
has a checksum of its own: with a flipped bit in a weight it loads and answers wrongly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from covpool.errors import UserError

# Field 1000, of 64 bytes: the SHA-256 of the name's ending and all before it, in hexadecimal digits; with the ending a
# file of one format is not taken for one of the other.
_FIELD = bytes([0xC2, 0x3E, 64])
_LENGTH = len(_FIELD) + 64


def seal(path: Path) -> None:
    """Append the checksum to a file."""
    path.chmod(0o600)  # MindSpore leaves its files read-only
    with path.open("ab") as file:
        file.write(_field(path, path.read_bytes()))


def read_sealed(path: Path) -> bytes:
    """Content of a file, compared with its checksum before any parser sees it.

    Anyone can compute the checksum: what the file holds is checked besides.

    Raises:
        UserError: No such file, no checksum, or another one.
    """
    if not path.is_file():
        raise UserError(f"no exported file at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    body, field = content[:-_LENGTH], content[-_LENGTH:]
    if field != _field(path, body):
        raise UserError(f"{path} is damaged or not a file of export.py: its checksum is missing or wrong")
    return body


def _field(path: Path, body: bytes) -> bytes:
    return _FIELD + hashlib.sha256(path.suffix.encode("ascii", "replace") + body).hexdigest().encode("ascii")
