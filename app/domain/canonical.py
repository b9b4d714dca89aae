"""Canonical JSON and content hashes: identity comes from content.

A record hashes the same after a round trip through JSON, Valkey and Postgres' JSONB, which forgets
key order, the sign of zero, and whether 1.0 was written as 1.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Protocol
from uuid import UUID

import orjson

NAMESPACE = UUID("6f9b9f0e-4a54-5c0e-9d6a-3f1d7a0c9b11")
DEFAULT_PRINCIPAL = "agent"
"""Whose decision ids are those of the time before principals."""


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no white space, UTF-8; -0.0 is written 0.0.

    Parameters
    ----------
    value : JSON-like (dict, list, str, int, float, bool, None) as `model_dump(mode="json")` gives
        it, or a `fragment` in it.

    Raises
    ------
    TypeError : something in it is not JSON, for example an integer beyond 64 bits.
    """
    data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if b"-0.0" not in data:
        return data
    # A negative zero, or a text that looks like one: values are changed, bytes never are.
    return orjson.dumps(_unsigned_zeros(value), option=orjson.OPT_SORT_KEYS)


def _unsigned_zeros(value: Any) -> Any:
    if isinstance(value, float):
        return value or 0.0
    if isinstance(value, dict):
        return {key: _unsigned_zeros(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unsigned_zeros(item) for item in value]
    return value


class Written(Protocol):
    """An immutable record."""

    def as_json(self) -> dict[str, Any]:
        """As JSON-like values."""


_FRAGMENTS: dict[int, tuple[Written, orjson.Fragment]] = {}
MOST_FRAGMENTS = 256


def fragment(part: Written) -> orjson.Fragment:
    """The canonical JSON of a part, to stand in that of the whole. It is written once for the
    documents that share it: a candidate stands in its request's claim and in its decision's event,
    limits in the events of many.

    Kept by the identity of the part, which lives as long as it stands here; `forget` lets it go.
    """
    kept = _FRAGMENTS.get(id(part))
    if kept is None:
        if len(_FRAGMENTS) >= MOST_FRAGMENTS:
            _FRAGMENTS.clear()
        kept = _FRAGMENTS[id(part)] = part, orjson.Fragment(canonical_json(part.as_json()))
    return kept[1]


def forget(part: Written) -> None:
    """No other document of it will be written soon."""
    _FRAGMENTS.pop(id(part), None)


def content_hash(value: Any) -> str:
    """`sha256:` and the hex digest of the canonical JSON of `value`."""
    return digest(canonical_json(value))


def digest(data: bytes) -> str:
    """`sha256:` and the hex digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=1024)
def decision_id(request_id: str, principal: str = DEFAULT_PRINCIPAL) -> UUID:
    """The decision's id follows from the request's and from who asks: a repeat finds the stored
    decision, and whose it is can be told from the id alone.

    Ids of the default principal are UUIDs of version 5 of the request's id. Those of others are of
    version 8: 48 bits of the principal's mark, then 74 bits of a hash of both names.
    """
    if principal == DEFAULT_PRINCIPAL:
        name = NAMESPACE.bytes + request_id.encode()
        # As `uuid5` does it, which takes twice as long.
        return _uuid(hashlib.sha1(name, usedforsecurity=False).digest()[:16], version=5)
    both = hashlib.sha256(f"{principal} {request_id}".encode()).digest()
    return _uuid(_mark(principal) + both[:10], version=8)


def _uuid(data: bytes, version: int) -> UUID:
    number = int.from_bytes(data) & ~(0xF << 76) | version << 76
    return UUID(int=number & ~(0x3 << 62) | 2 << 62)


def is_of(decision_id: UUID, principal: str) -> bool:
    """Whether an id can be one of this principal's decisions."""
    if principal == DEFAULT_PRINCIPAL:
        return decision_id.version == 5
    return decision_id.version == 8 and decision_id.bytes[:6] == _mark(principal)


def _mark(principal: str) -> bytes:
    return hashlib.sha256(f"principal {principal}".encode()).digest()[:6]
