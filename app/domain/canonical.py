"""Canonical JSON and content hashes: identity comes from content.

A record hashes the same after a round trip through JSON, Valkey and Postgres' JSONB, which forgets
key order, the sign of zero, and whether 1.0 was written as 1.
"""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID, uuid5

import orjson

NAMESPACE = UUID("6f9b9f0e-4a54-5c0e-9d6a-3f1d7a0c9b11")


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no white space, UTF-8; -0.0 is written 0.0.

    Parameters
    ----------
    value : JSON-like (dict, list, str, int, float, bool, None) as `model_dump(mode="json")` gives
        it.

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


def content_hash(value: Any) -> str:
    """`sha256:` and the hex digest of the canonical JSON of `value`."""
    return digest(canonical_json(value))


def digest(data: bytes) -> str:
    """`sha256:` and the hex digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def decision_id(request_id: str) -> UUID:
    """The decision's id follows from the request's: a repeat finds the stored decision."""
    return uuid5(NAMESPACE, request_id)
