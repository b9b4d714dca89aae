"""Links: numbered, chained, and hashed as a stranger would."""

from __future__ import annotations

import hashlib

from app.domain.record.link import Fate, Linked, Producer


def test_a_link_is_hashed_as_written_out_by_hand() -> None:
    linked = Linked("p", 2, "sha256:aa", "outcome", "k", "c", "sha256:bb")
    written = (
        '{"claim":"c","key":"k","kind":"outcome","payload":"sha256:bb",'
        '"previous":"sha256:aa","producer":"p","seq":2}'
    )
    assert linked.hash() == "sha256:" + hashlib.sha256(written.encode()).hexdigest()
    assert linked._replace(fate=Fate.WITHDRAWN).hash() == linked.hash()
    leaf = b"\x00" + written.replace('"key"', '"fate":"event","key"').encode()
    assert linked.leaf() == hashlib.sha256(leaf).digest()


def test_a_producer_numbers_from_one_and_each_link_names_the_one_before() -> None:
    producer = Producer()
    first = producer.link("outcome", "a", "a", "x")
    second = producer.link("outcome", "b", "b", "y")
    assert [(each.seq, each.previous) for each in (first, second)] == [(1, ""), (2, first.hash())]
    producer.take_back(second)
    assert producer.link("outcome", "b", "b", "y") == second
    assert Producer().name != producer.name
