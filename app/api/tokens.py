"""The file of tokens: who holds one, by hash, and for how long.

A token is `advisor.NAME.SECRET` with 256 random bits; what is kept is its SHA-256. A slow hash
would protect secrets that people choose: nobody guesses one of 2^256, and every request pays. The
file works while Postgres is away, and every process that reads it follows its changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hmac import compare_digest
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, ValidationError, model_validator

from app.domain.errors import AdvisorError
from app.domain.fields import Instant, Record, describe, moved
from app.domain.principal import EVERY, NAME_PATTERN, OPEN, Principal, Role
from app.domain.rules.files import read_ordinary
from app.telemetry import AuthFailure

log = structlog.get_logger()
PREFIX = "advisor"
MOST_BYTES = 16 << 20
"""Of a file of tokens."""
ADMIN = "admin"
"""The name of whoever has ADVISOR_ADMIN_TOKEN."""
USED_EVERY_S = 60.0
"""Last uses are noted no oftener."""

PROVIDED = {
    "agent": (Role.AGENT,),
    "operator": (Role.OPERATOR,),
    "metrics": (Role.METRICS,),
}
"""Who works on a machine of one's own: what `advisor up` makes tokens for."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class TokenError(AdvisorError):
    """The file of tokens cannot be used, or not be changed like this."""


class Token(Record):
    """One line of the file."""

    name: Name
    roles: tuple[Role, ...] = Field(min_length=1)
    of: tuple[Annotated[str, Field(pattern=rf"{NAME_PATTERN}|^\*$")], ...] = ()
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: Instant
    expires_at: Instant | None = None

    @model_validator(mode="after")
    def reporters_know_on_whom(self) -> Token:
        """A reporter reports on decisions of principals that are named."""
        if Role.REPORTER in self.roles and not self.of:
            raise ValueError(
                f"a reporter needs the principals it reports on: --of NAME, or {EVERY}"
            )
        return self

    @property
    def id(self) -> str:
        """Enough of the hash to tell tokens of one name apart."""
        return self.sha256[:8]

    @cached_property
    def principal(self) -> Principal:
        return Principal(self.name, frozenset(self.roles), frozenset(self.of))

    def expired(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class TokenFile:
    """Changes of the file, one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def tokens(self) -> list[Token]:
        """All of them; none where there is no file. Raises `TokenError`."""
        return list(_read(self.path))

    def create(
        self,
        name: str,
        roles: Sequence[Role],
        *,
        of: Sequence[str] = (),
        expires_at: datetime | None = None,
        now: datetime | None = None,
    ) -> str:
        """A new token, which is told this once."""
        text = f"{PREFIX}.{name}.{secrets.token_urlsafe(32)}"
        token = _token(name, roles, of, text, now or datetime.now(UTC), expires_at)
        with self._changing() as tokens:
            tokens.append(token)
        return text

    def revoke(self, name: str, token_id: str | None = None) -> int:
        """Take a principal's tokens out, or the one with this id; how many. Raises `TokenError`
        when there is none."""
        with self._changing() as tokens:
            gone = [t for t in tokens if t.name == name and token_id in (None, t.id)]
            if not gone:
                raise TokenError(f"{self.path} holds no such token of {name}")
            tokens[:] = [token for token in tokens if token not in gone]
        return len(gone)

    def rotate(self, name: str, overlap: timedelta, now: datetime | None = None) -> str:
        """A new token with the roles of the newest one; the earlier ones end after `overlap`.
        Raises `TokenError` when there is none."""
        moment = now or datetime.now(UTC)
        with self._changing() as tokens:
            earlier = [token for token in tokens if token.name == name]
            if not earlier:
                raise TokenError(f"{self.path} holds no token of {name}")
            newest, end = earlier[-1], moved(moment, overlap)
            for number, token in enumerate(tokens):
                if token.name == name and not token.expired(end):
                    tokens[number] = token.model_copy(update={"expires_at": end})
            text = f"{PREFIX}.{name}.{secrets.token_urlsafe(32)}"
            lifetime = newest.expires_at and newest.expires_at - newest.created_at
            expires_at = moved(moment, lifetime) if lifetime else None
            tokens.append(_token(name, newest.roles, newest.of, text, moment, expires_at))
        return text

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT
            with os.fdopen(os.open(f"{self.path}.lock", flags, 0o600), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                tokens = self.tokens()
                yield tokens
                document = {"tokens": [token.as_json() for token in tokens]}
                mode = self.path.stat().st_mode & 0o644 if self.path.exists() else 0o600
                write_private(self.path, json.dumps(document, indent=2) + "\n")
                self.path.chmod(mode)  # In a container another user reads the hashes.
        except OSError as error:
            raise TokenError(f"{self.path} cannot be written: {error.strerror}") from error


class Tokens:
    """Who a token belongs to, as the file says now. A file that cannot be read keeps what was read
    before.

    Parameters
    ----------
    uses : folder in which the last use of each token is noted, by the time of a file.
    admin : one more token, of an operator.
    open_to_loopback : whoever asks from this machine without a token may do everything.
    """

    def __init__(
        self, path: Path, uses: Path, admin: str | None = None, open_to_loopback: bool = False
    ) -> None:
        self._path = path
        self._uses = uses
        self._admin = admin
        self.open_to_loopback = open_to_loopback
        self._stamp: tuple[int, int, int] | None = None
        self._by_hash: Mapping[str, Token] = {}
        self._noted: dict[str, datetime] = {}
        self._follow()

    @property
    def exist(self) -> bool:
        """Whether anybody can be known."""
        return self._admin is not None or bool(self._by_hash)

    def holder(
        self, authorization: str | None, now: datetime, address: str
    ) -> Principal | AuthFailure:
        """Who sends this header from this address, or why that is nobody."""
        if authorization is None:
            return OPEN if self.open_to_loopback and is_loopback(address) else AuthFailure.MISSING
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text:
            return AuthFailure.MALFORMED
        return self.holder_of(text.strip(), now)

    def holder_of(self, text: str, now: datetime) -> Principal | AuthFailure:
        """Who has this token. The hash is looked up: how long that takes tells nothing of it."""
        self._follow()
        if self._admin is not None and compare_digest(text.encode(), self._admin.encode()):
            return Principal(ADMIN, frozenset({Role.OPERATOR}))
        token = self._by_hash.get(_digest(text))
        if token is None:
            return AuthFailure.UNKNOWN
        if token.expired(now):
            return AuthFailure.EXPIRED
        self._note_use(token, now)
        return token.principal

    def _follow(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._by_hash = {token.sha256: token for token in _read(self._path)}
        except TokenError as error:
            log.error("file of tokens refused, what was read before stays", error=str(error))

    def _note_use(self, token: Token, now: datetime) -> None:
        noted = self._noted.get(token.sha256)
        if noted is not None and (now - noted).total_seconds() < USED_EVERY_S:
            return
        self._noted[token.sha256] = now
        with suppress(OSError):  # A full disk keeps nobody out.
            self._uses.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._uses / token.sha256[:16]).touch(mode=0o600)


def provide(file: TokenFile, folder: Path) -> list[str]:
    """Tokens for whoever works on this machine, one file each that only its owner can read: made
    where there is none, or where the file of tokens does not know it. The names of new ones."""
    made = []
    for name, roles in PROVIDED.items():
        place = folder / name
        try:
            text = read_ordinary(place).decode().strip()
        except (OSError, ValueError):
            text = ""
        now, digest = datetime.now(UTC), _digest(text)
        if any(token.sha256 == digest and not token.expired(now) for token in file.tokens()):
            continue
        text = file.create(name, roles)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(place, text + "\n")
        except OSError as error:
            raise TokenError(f"{place} cannot be written: {error.strerror}") from error
        made.append(name)
    return made


def last_use(uses: Path, token: Token) -> datetime | None:
    """When a process of this machine saw a token last, to the minute."""
    try:
        seconds = (uses / token.sha256[:16]).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def require_somebody(tokens: Tokens, host: str) -> None:
    """Nobody listens beyond this machine for callers it cannot tell apart. Raises `TokenError`."""
    if is_loopback(host):
        return
    if tokens.open_to_loopback:
        raise TokenError(
            f"ADVISOR_OPEN opens the service to this machine: it cannot listen on {host}"
        )
    if not tokens.exist:
        raise TokenError(
            f"no token lets anybody in, so nothing listens on {host}: make one by `advisor token"
            " create`, or set ADVISOR_HOST=127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether nobody on another machine can reach, or come from, this address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def write_private(path: Path, text: str) -> None:
    """All of it or nothing, readable by the owner only."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _token(
    name: str,
    roles: Sequence[Role],
    of: Sequence[str],
    text: str,
    now: datetime,
    expires_at: datetime | None,
) -> Token:
    document = {
        "name": name,
        "roles": [role.value for role in roles],
        "of": list(of),
        "sha256": _digest(text),
        "created_at": now,
        "expires_at": expires_at,
    }
    try:
        return Token.model_validate(document)
    except ValidationError as error:
        raise TokenError(describe(error.errors())) from error


def _read(path: Path) -> list[Token]:
    try:
        mode = path.stat().st_mode
        document = json.loads(read_ordinary(path, MOST_BYTES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise TokenError(f"{path} cannot be read: {error}") from error
    if mode & 0o022:
        raise TokenError(f"{path} can be changed by others than its owner: chmod 600 {path}")
    try:
        return [Token.model_validate(entry) for entry in document["tokens"]]
    except (ValidationError, KeyError, TypeError) as error:
        raise TokenError(f"{path} is no file of tokens") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Another one after each change, that of owner or mode included."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ctime_ns, stat.st_size, stat.st_ino
