"""How an event's payload lies in the queue server while many wait: deflated against a typical
decision, an eighth of its size. What does not begin with the mark lies there as it is.

The typical decision never changes: what was packed with it could not be read any more.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from app.domain.errors import InvalidRecord

MARK = b"\x01"
"""No JSON begins with it."""
SMALL = 1_000
"""Bytes up to which a payload stays as it is."""
LARGEST = 64 * 2**20
"""Bytes that a payload may unpack to."""
_TYPICAL = (Path(__file__).parent / "typical_1.json").read_bytes()


def packed(payload: bytes) -> bytes:
    """The payload as it is to lie in the queue server."""
    if len(payload) <= SMALL:
        return payload
    packer = zlib.compressobj(1, zlib.DEFLATED, 14, 7, zlib.Z_DEFAULT_STRATEGY, _TYPICAL)
    return MARK + packer.compress(payload) + packer.flush()


def unpacked(stored: bytes) -> bytes:
    """The payload of what lies in the queue server, packed or not. Raises `InvalidRecord`."""
    if not stored.startswith(MARK):
        return stored
    unpacker = zlib.decompressobj(15, _TYPICAL)
    try:
        payload = unpacker.decompress(stored[len(MARK) :], LARGEST)
    except zlib.error as error:
        raise InvalidRecord(f"a packed payload cannot be read: {error}") from error
    if not unpacker.eof:
        raise InvalidRecord("a packed payload is cut, or larger than any that was ever written")
    return payload
