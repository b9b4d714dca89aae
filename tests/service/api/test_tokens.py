"""The file of tokens: what is kept, what is followed, what is refused."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shadow_advisor_client import identity

from app.api.tokens import TokenError, TokenFile, Tokens, last_use, provide, require_somebody
from app.domain.canonical import decision_id
from app.domain.principal import Principal, Role
from app.telemetry import AuthFailure

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
NAMES = st.from_regex(r"\A[a-z][a-z0-9-]{0,20}\Z")
REQUEST_IDS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128
)


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def tokens(file: TokenFile) -> Tokens:
    return Tokens(file.path, file.path.parent / "uses")


def asked(known: Tokens, token: str, now: datetime = NOW) -> Principal | AuthFailure:
    return known.holder(f"Bearer {token}", now, "203.0.113.9")


def test_what_is_kept_is_a_hash_in_a_file_of_its_owners(file: TokenFile) -> None:
    text = file.create("desk-1", [Role.AGENT], now=NOW)
    assert text.startswith("advisor.desk-1.")
    kept = file.path.read_text()
    assert text not in kept
    assert text.split(".")[2] not in kept
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert len(text.split(".")[2]) == 43, "256 bits"


def test_a_running_service_follows_what_is_created_rotated_and_revoked(file: TokenFile) -> None:
    known = tokens(file)
    assert not known.exist
    first = file.create("desk-1", [Role.AGENT, Role.READER], now=NOW)
    assert asked(known, first) == ("desk-1", {Role.AGENT, Role.READER}, frozenset())
    second = file.rotate("desk-1", timedelta(minutes=60), now=NOW)
    assert asked(known, second) == asked(known, first)
    assert asked(known, first, NOW + timedelta(minutes=60)) is AuthFailure.EXPIRED
    assert asked(known, second, NOW + timedelta(days=999)) == ("desk-1", {"agent", "reader"}, set())
    assert file.revoke("desk-1", file.tokens()[1].id) == 1
    assert asked(known, second) is AuthFailure.UNKNOWN
    assert file.revoke("desk-1") == 1
    assert asked(known, first) is AuthFailure.UNKNOWN
    with pytest.raises(TokenError, match="holds no such token"):
        file.revoke("desk-1")


def test_a_rotated_token_lives_as_long_as_the_one_before(file: TokenFile) -> None:
    file.create("a", [Role.AGENT], expires_at=NOW + timedelta(days=30), now=NOW)
    file.rotate("a", timedelta(0), now=NOW + timedelta(days=20))
    assert file.tokens()[1].expires_at == NOW + timedelta(days=50)
    assert file.tokens()[0].expires_at == NOW + timedelta(days=20)


def test_a_rotation_goes_no_further_than_the_calendar(file: TokenFile) -> None:
    end = datetime.max.replace(tzinfo=UTC)
    file.create("a", [Role.AGENT], expires_at=end, now=NOW)
    file.rotate("a", timedelta(days=9_999_999), now=NOW + timedelta(days=20))
    assert [token.expires_at for token in file.tokens()] == [end, end]


def test_a_pipe_in_the_place_of_the_file_is_refused_and_not_waited_for(file: TokenFile) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(file.path)
    with pytest.raises(TokenError, match="no ordinary file"):
        file.tokens()


def test_the_last_use_is_noted(file: TokenFile) -> None:
    token = file.create("a", [Role.AGENT], now=NOW)
    uses = file.path.parent / "uses"
    assert last_use(uses, file.tokens()[0]) is None
    asked(tokens(file), token)
    seen = last_use(uses, file.tokens()[0])
    assert seen is not None
    assert abs(datetime.now(UTC) - seen) < timedelta(minutes=1)


def test_nobody_is_known_by_what_is_missing_malformed_or_guessed(file: TokenFile) -> None:
    known = tokens(file)
    token = file.create("a", [Role.AGENT], now=NOW)
    for header, why in (
        (None, AuthFailure.MISSING),
        ("", AuthFailure.MALFORMED),
        (token, AuthFailure.MALFORMED),
        (f"Basic {token}", AuthFailure.MALFORMED),
        ("Bearer advisor.a.x", AuthFailure.UNKNOWN),
        (f"Bearer {token[:-1]}", AuthFailure.UNKNOWN),
        (f"Bearer {token.replace('.a.', '.b.')}", AuthFailure.UNKNOWN),
        (f"Bearer {file.tokens()[0].sha256}", AuthFailure.UNKNOWN),
    ):
        assert known.holder(header, NOW, "127.0.0.1") is why


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tokens": [{}]}', '{"tokens": 1}', "\0", "[" * 100_000]
)
def test_a_file_that_cannot_be_read_keeps_what_was_read_before(
    file: TokenFile, content: str
) -> None:
    token = file.create("a", [Role.AGENT], now=NOW)
    known = tokens(file)
    file.path.write_text(content)
    assert isinstance(asked(known, token), Principal)
    assert not tokens(file).exist
    with pytest.raises(TokenError):
        file.create("b", [Role.AGENT])
    assert file.path.read_text() == content, "what somebody may have edited is left alone"
    file.path.unlink()
    assert asked(known, token) is AuthFailure.UNKNOWN


def test_a_file_that_others_may_change_is_refused(file: TokenFile) -> None:
    token = file.create("a", [Role.AGENT], now=NOW)
    file.path.chmod(0o620)
    known = tokens(file)
    assert asked(known, token) is AuthFailure.UNKNOWN
    file.path.chmod(0o600)
    assert isinstance(asked(known, token), Principal), "a change of mode alone is followed"


@pytest.mark.parametrize(
    ("name", "roles", "of"),
    [
        ("A", ["agent"], ()),
        ("a b", ["agent"], ()),
        ("a.b", ["agent"], ()),
        ("a", [], ()),
        ("a", ["reporter"], ()),
        ("a", ["reporter"], ("B",)),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(
    file: TokenFile, name: str, roles: list[str], of: tuple[str, ...]
) -> None:
    with pytest.raises(TokenError):
        file.create(name, [Role(role) for role in roles], of=of)
    assert file.tokens() == []


def test_two_processes_lose_none_of_each_others_tokens(file: TokenFile) -> None:
    other = TokenFile(file.path)
    made = [source.create(f"a{n}", [Role.METRICS]) for n, source in enumerate([file, other] * 5)]
    assert [token.name for token in file.tokens()] == [f"a{n}" for n in range(10)]
    assert len(set(made)) == 10


def test_a_machine_of_ones_own_has_tokens_once_and_lost_ones_anew(file: TokenFile) -> None:
    folder = file.path.parent / "tokens"
    assert provide(file, folder) == ["agent", "operator", "metrics"]
    assert provide(file, folder) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for place in folder.iterdir():
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
    (folder / "agent").unlink()
    assert provide(file, folder) == ["agent"]
    found = asked(tokens(file), (folder / "operator").read_text().strip())
    assert found == ("operator", {Role.OPERATOR}, frozenset())


def test_nothing_listens_beyond_this_machine_for_callers_that_nobody_can_tell_apart(
    file: TokenFile,
) -> None:
    uses = file.path.parent
    for host in ("127.0.0.1", "::1", "localhost"):
        require_somebody(Tokens(file.path, uses, None, True), host)
        require_somebody(Tokens(file.path, uses), host)
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(TokenError, match="advisor token create"):
            require_somebody(Tokens(file.path, uses), host)
        with pytest.raises(TokenError, match="ADVISOR_OPEN"):
            require_somebody(Tokens(file.path, uses, "correct horse", True), host)
        require_somebody(Tokens(file.path, uses, "correct horse"), host)
    file.create("a", [Role.AGENT])
    require_somebody(Tokens(file.path, uses), "0.0.0.0")


@given(NAMES, REQUEST_IDS)
def test_the_client_knows_the_id_of_its_decision_from_its_token_alone(
    name: str, request_id: str
) -> None:
    principal = identity.principal_of(f"advisor.{name}.secret")
    assert identity.decision_id(request_id, principal) == decision_id(request_id, name)


def test_a_document_of_tokens_reads_back(file: TokenFile) -> None:
    file.create("r", [Role.REPORTER], of=["a", "*"], now=NOW)
    (line,) = json.loads(file.path.read_text())["tokens"]
    assert (line["roles"], line["of"], line["expires_at"]) == (["reporter"], ["a", "*"], None)
