"""Roles: what a principal may do, and with whose decisions."""

from __future__ import annotations

from uuid import uuid4

import pytest

from app.domain.canonical import decision_id
from app.domain.principal import EVERY, OPEN, Principal, Role

OWN, OTHERS, NOBODYS = decision_id("r", "a"), decision_id("r", "b"), uuid4()


def principal(*roles: Role, name: str = "a", of: tuple[str, ...] = ()) -> Principal:
    return Principal(name, frozenset(roles), frozenset(of))


@pytest.mark.parametrize(
    ("role", "included"),
    [
        (Role.AGENT, {Role.AGENT}),
        (Role.REPORTER, {Role.REPORTER}),
        (Role.OPERATOR, {Role.OPERATOR, Role.READER, Role.METRICS}),
        (Role.READER, {Role.READER, Role.METRICS}),
        (Role.METRICS, {Role.METRICS}),
    ],
)
def test_an_operator_sees_what_a_reader_sees_and_a_reader_sees_metrics(
    role: Role, included: set[Role]
) -> None:
    assert {each for each in Role if principal(role).may(each)} == included


@pytest.mark.parametrize(
    ("who", "reports_on", "reads"),
    [
        (principal(Role.AGENT), {OWN}, {OWN}),
        (principal(Role.REPORTER, name="r", of=("b",)), {OTHERS}, {OTHERS}),
        (principal(Role.REPORTER, of=("b",)), {OTHERS}, {OTHERS}),
        (principal(Role.REPORTER), set(), set()),
        (principal(Role.REPORTER, of=(EVERY,)), {OWN, OTHERS, NOBODYS}, {OWN, OTHERS, NOBODYS}),
        (principal(Role.AGENT, Role.REPORTER, of=("b",)), {OWN, OTHERS}, {OWN, OTHERS}),
        (principal(Role.READER), set(), {OWN, OTHERS, NOBODYS}),
        (principal(Role.AGENT, Role.READER), {OWN}, {OWN, OTHERS, NOBODYS}),
        (principal(Role.OPERATOR), set(), {OWN, OTHERS, NOBODYS}),
        (principal(Role.METRICS), set(), set()),
    ],
)
def test_an_agent_reports_on_its_own_a_reporter_on_those_it_was_named_for_a_reader_reads_all(
    who: Principal, reports_on: set[object], reads: set[object]
) -> None:
    decisions = (OWN, OTHERS, NOBODYS)
    assert {each for each in decisions if who.may_report_on(each)} == reports_on
    assert {each for each in decisions if who.may_read(each)} == reads


def test_who_asks_without_a_token_where_that_is_allowed_is_the_default_agent_with_every_role() -> (
    None
):
    assert {role for role in Role if OPEN.may(role)} == set(Role)
    assert OPEN.may_report_on(decision_id("r"))
    assert not OPEN.may_report_on(OTHERS), "it reports on nobody else's, whom it was not named for"
