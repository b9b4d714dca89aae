"""Who asks, and the id that a decision will have.

A token is the one that is given, else that of the environment (`ADVISOR_TOKEN`, or the file that
`ADVISOR_TOKEN_FILE` names), else, of a service on this machine, the one that `advisor up` left
under `ADVISOR_HOME`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from .connection import is_sendable, is_this_machine

NAMESPACE = UUID("6f9b9f0e-4a54-5c0e-9d6a-3f1d7a0c9b11")
DEFAULT_PRINCIPAL = "agent"
AGENT_VARIABLES = ("ADVISOR_TOKEN",)


def find_token(base_url: str, name: str, variables: Collection[str]) -> str | None:
    """The token of the environment, or for a service on this machine that of its own file; None
    when there is none that a header can carry. Never raises."""
    for variable in variables:
        if token := os.environ.get(variable, "").strip():
            return _sendable(token)
    try:
        if file := os.environ.get("ADVISOR_TOKEN_FILE"):
            return _sendable(Path(file).read_text().strip())
        if not is_this_machine(urlsplit(base_url).hostname):
            return None
        return _sendable(_left_by_up(name).read_text().strip())
    except (OSError, ValueError):
        return None


def places(given: str | None, base_url: str, name: str, variables: Collection[str]) -> str:
    """Where `find_token` looks, in its order, for whoever was refused; no token is told."""
    if given is not None:
        return "the token is the one that was given"
    file = os.environ.get("ADVISOR_TOKEN_FILE")
    looked = [
        *(f"{each} ({'set' if os.environ.get(each) else 'not set'})" for each in variables),
        f"the file ADVISOR_TOKEN_FILE ({file or 'not set'})",
    ]
    if is_this_machine(urlsplit(base_url).hostname):
        left = _left_by_up(name)
        there = "there" if os.access(left, os.R_OK) else "not there, or not readable"
        looked.append(f"{left.absolute()} of ADVISOR_HOME ({there})")
    return f"a token is looked for in {', '.join(looked)}: the first counts"


def _left_by_up(name: str) -> Path:
    return Path(os.environ.get("ADVISOR_HOME") or "var") / "tokens" / name


def _sendable(token: str) -> str | None:
    return token if token and is_sendable(token) else None


def bearer(token: str | None) -> dict[str, str]:
    """The header that says who asks."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def principal_of(token: str | None) -> str:
    """Whose decisions a token's are: it carries the name, `advisor.NAME.SECRET`."""
    parts = (token or "").split(".")
    return parts[1] if len(parts) == 3 and parts[0] == "advisor" else DEFAULT_PRINCIPAL


def decision_id(request_id: str, principal: str) -> UUID:
    """The id of a decision, as the service gives it."""
    if principal == DEFAULT_PRINCIPAL:
        return uuid5(NAMESPACE, request_id)
    mark = hashlib.sha256(f"principal {principal}".encode()).digest()[:6]
    both = hashlib.sha256(f"{principal} {request_id}".encode()).digest()
    number = int.from_bytes(mark + both[:10], "big") & ~(0xF << 76) | 8 << 76
    return UUID(int=number & ~(0x3 << 62) | 2 << 62)
