"""A running service's versions and aliases, over HTTP.

The service verifies a version and loads it before an alias moves, so a refusal changes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

from app.domain.errors import AdvisorError

PRIMARY_ALIAS = "shadow"
ANSWER_S = 120.0
"""The service loads a version before its alias moves."""


class RegistryError(AdvisorError):
    """The service refuses a version, or does not answer."""


class Move(NamedTuple):
    """An alias that moved: `before` is None when it had not pointed anywhere."""

    alias: str
    before: str | None
    now: str


def register_and_alias(
    url: str, token: str | None, version: str, alias: str, reason: str, by: str
) -> Move:
    """Make a published version known to a running service, and point an alias at it. The service
    loads it first.

    Raises
    ------
    RegistryError : the service is away, or refuses; then the alias did not move.
    """
    _ask(url, token, "PUT", f"/models/{version}")
    return _move(url, token, version, alias, reason, by)


def rollback(url: str, token: str | None, alias: str, reason: str, by: str) -> Move:
    """Point an alias at the version it pointed at before its present one. Raises as
    `register_and_alias` does, and when there is no such version."""
    moves = [move["model_version"] for move in history(url, token) if move["alias"] == alias]
    earlier = [version for version in moves if version != moves[0]]
    if not earlier:
        raise RegistryError(
            f"the alias {alias} has never pointed anywhere else: there is nothing to go back to"
        )
    return _move(url, token, earlier[0], alias, reason, by)


def history(url: str, token: str | None) -> list[dict[str, Any]]:
    """Every move of every alias, newest first: alias, model_version, reason, changed_by,
    changed_at."""
    return list(_ask(url, token, "GET", "/aliases")["history"])


def aliases(url: str, token: str | None) -> dict[str, str]:
    """Where each alias points. Raises `RegistryError`."""
    return {
        name: move["model_version"]
        for name, move in _ask(url, token, "GET", "/aliases")["aliases"].items()
    }


def _move(url: str, token: str | None, version: str, alias: str, reason: str, by: str) -> Move:
    body = {"model_version": version, "reason": reason, "changed_by": by}
    answer = _ask(url, token, "PUT", f"/aliases/{alias}", body)
    return Move(alias, answer["before"], version)


def _ask(
    url: str, token: str | None, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.request(
            method, url.rstrip("/") + path, json=body, headers=headers, timeout=ANSWER_S
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RegistryError(
            f"{url} does not answer ({error or type(error).__name__}): start the service or give"
            " another --url. What was published stays, and can be pointed at later"
        ) from error
    try:
        document: dict[str, Any] = dict(answer.json())
    except (ValueError, TypeError) as error:
        raise RegistryError(f"{url} answers, but is not the advisor: give another --url") from error
    if answer.is_error:
        raise RegistryError(
            f"{url} refuses {method} {path} ({answer.status_code}):"
            f" {document.get('detail', answer.text)}"
        )
    return document
