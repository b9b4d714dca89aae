"""Canonical JSON and content hashes: identity comes from content.

A record hashes the same after a round trip through JSON, Valkey and Postgres' JSONB, which forgets
key order, the sign of zero, and whether 1.0 was written as 1.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any
from uuid import UUID, uuid5

import orjson

NAMESPACE = UUID("6f9b9f0e-4a54-5c0e-9d6a-3f1d7a0c9b11")
_NEGATIVE_ZERO = re.compile(rb"(?<=[:,\[])-0\.0(?=[,\]}])")


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
    return _NEGATIVE_ZERO.sub(b"0.0", data) if b"-0.0" in data else data


def content_hash(value: Any) -> str:
    """`sha256:` and the hex digest of the canonical JSON of `value`."""
    return digest(canonical_json(value))


def digest(data: bytes) -> str:
    """`sha256:` and the hex digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def decision_id(request_id: str) -> UUID:
    """The decision's id follows from the request's: a repeat finds the stored decision."""
    return uuid5(NAMESPACE, request_id)
