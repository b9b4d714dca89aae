"""Payloads are packed and read again to the byte, by every release that comes after."""

from __future__ import annotations

import zlib

import pytest

from app.domain.canonical import digest
from app.domain.errors import InvalidRecord
from app.journal import packing
from app.journal.packing import MARK, packed, unpacked
from tests import builders as build


def test_a_decision_takes_a_quarter_at_most_and_comes_back_to_the_byte() -> None:
    payload = build.decision_event("r-1", control=True, shadows=[("other", "A")]).payload
    stored = packed(payload)
    assert len(stored) < len(payload) / 4
    assert stored.startswith(MARK)
    assert unpacked(stored) == payload


def test_what_is_small_stays_readable_as_it_lies_there() -> None:
    assert packed(b'{"a":1}') == unpacked(b'{"a":1}') == b'{"a":1}'
    assert packed(b"x" * 1000) == b"x" * 1000
    assert len(packed(b"x" * 1001)) < 50


def test_what_was_packed_by_the_first_release_that_did_is_read() -> None:
    """Written down once: a typical decision that changed could not read it."""
    assert digest(packing._TYPICAL) == (
        "sha256:f58dbeb5f9823e8e6a71cbcf1c75399dbcb5c198ceda9253d3ea94aa52075956"
    )
    stored = bytes.fromhex(
        "016824d87d4ff6030eb9423a0e08430d47c168088c86c068080c911050aa05003756ed62"
    )
    assert unpacked(stored) == b'{"limits_version":"' + b"1" * 1200 + b'"}'


def test_damaged_cut_and_endless_payloads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = packed(b"x" * 2000)
    assert unpacked(stored) == b"x" * 2000
    for damaged in (stored[:-6], stored[:5], MARK, MARK + b"no deflate"):
        with pytest.raises(InvalidRecord, match="a packed payload"):
            unpacked(damaged)
    of_another = MARK + zlib.compress(b"x" * 2000)
    assert unpacked(of_another) == b"x" * 2000
    monkeypatch.setattr(packing, "LARGEST", 1999)
    with pytest.raises(InvalidRecord, match="larger than any"):
        unpacked(stored)
