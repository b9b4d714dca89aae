"""Canonical JSON, content hashes, and ids that tell whose decision it is."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.canonical import NAMESPACE, canonical_json, content_hash, decision_id, is_of

NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}\Z")
REQUEST_IDS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"b": -0.0, "a": [-0.0, 0.0, {"c": -0.0}]}, b'{"a":[0.0,0.0,{"c":0.0}],"b":0.0}'),
        ("funding [-0.0] flat", b'"funding [-0.0] flat"'),
        ({"-0.0": "x,-0.0,y", "n": -0.0}, b'{"-0.0":"x,-0.0,y","n":0.0}'),
        ((-0.0, -1.5, 0, False), b"[0.0,-1.5,0,false]"),
    ],
)
def test_zeros_lose_their_sign_and_texts_stay_as_they_are(value: object, written: bytes) -> None:
    assert canonical_json(value) == written


def test_texts_that_differ_in_a_signed_zero_are_two() -> None:
    assert content_hash("funding [-0.0] flat") != content_hash("funding [0.0] flat")


def test_the_default_principals_ids_are_those_of_the_time_before_principals() -> None:
    assert str(decision_id("readme-1")) == "897e23a1-5639-5a90-b43d-8bf55cf1913f"
    assert decision_id("readme-1", "agent") == uuid5(NAMESPACE, "readme-1")


def test_the_id_of_a_principals_decision_is_as_written_out_by_hand() -> None:
    mark = hashlib.sha256(b"principal desk").hexdigest()[:12]
    of_both = hashlib.sha256(b"desk r-2").hexdigest()[:20]
    assert (mark, of_both) == ("7e524122ba84", "d3d7ec0081f877a43e48")
    # Behind the mark the first digit becomes the version, 8, and of the fifth the two upper bits
    # become the variant, 10: e = 1110 is a = 1010.
    assert decision_id("r-2", "desk") == UUID("7e524122-ba84-83d7-ac00-81f877a43e48")


@given(NAMES, NAMES, REQUEST_IDS)
def test_an_id_tells_whose_it_is(name: str, other: str, request_id: str) -> None:
    made = decision_id(request_id, name)
    assert is_of(made, name)
    assert is_of(made, other) == (name == other)
    assert made.variant == "specified in RFC 4122"
    assert made.version == (5 if name == "agent" else 8)
    assert (decision_id(request_id, other) == made) == (name == other)


def test_an_id_of_chance_is_nobodys() -> None:
    assert not is_of(uuid4(), "agent")
    assert not is_of(uuid4(), "desk")
