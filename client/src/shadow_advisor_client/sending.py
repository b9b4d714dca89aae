"""One message over HTTP, once: it is delivered, refused for good, or has to be sent again."""

from __future__ import annotations

from time import monotonic
from typing import Any, NamedTuple

import httpx

from .lanes import Message

MAX_REPLY_BYTES = 10_000_000
_OF_PROBLEMS = {"title", "detail", "errors"}
"""What a refusal of the service says one of; another's does not."""
TRICKLE_S = 1.0
"""How long after its deadline an answer may come to its end."""


class Reply(NamedTuple):
    """What came of sending.

    Parameters
    ----------
    document : of what was delivered.
    refused : why the service will never take it, a line for each field.
    error : why it has to be sent again.
    retry_after_s : when, as far as the service says.
    ours : the failure is this message's alone: the service answers, but not this.
    """

    status: int = 0
    document: dict[str, Any] | None = None
    refused: tuple[str, ...] = ()
    error: str | None = None
    retry_after_s: float = 0.0
    ours: bool = False


def send(http: httpx.Client, message: Message, headers: dict[str, str], deadline_s: float) -> Reply:
    """Send once. `deadline_s` is how long an answer may take where the message says nothing."""
    begin = monotonic()
    if message.deadline_ms is not None:
        headers = {**headers, "X-Deadline-Ms": str(message.deadline_ms)}
        deadline_s = max(deadline_s, message.deadline_ms / 1000)
    headers = {**headers, "Content-Type": "application/json"}
    patience_s = max(deadline_s, 0.1) + TRICKLE_S
    try:
        with http.stream(
            message.method,
            message.path,
            content=message.body,
            headers=headers,
            timeout=patience_s,
        ) as reply:
            read_within(reply, begin + patience_s)
    except httpx.HTTPError as error:
        return Reply(error=f"{type(error).__name__}: {error}")
    return _understood(reply)


def read_within(reply: httpx.Response, until: float) -> None:
    """The whole body, unless the server trickles it: a time-out per read would never end."""
    body = bytearray()
    for chunk in reply.iter_raw():
        body += chunk
        if monotonic() > until or len(body) > MAX_REPLY_BYTES:
            raise httpx.ReadTimeout("the body takes too long or is too large")
    reply._content = bytes(body)


def _understood(reply: httpx.Response) -> Reply:
    status = reply.status_code
    if status >= 500 or status in (401, 408, 429):
        after = reply.headers.get("Retry-After", "")
        return Reply(
            status,
            error=f"HTTP {status}: {reply.text[:300]}",
            retry_after_s=float(after) if after.isascii() and after.isdigit() else 0.0,
            ours=status >= 500,
        )
    try:
        document = reply.json()
    except (ValueError, RecursionError):
        return Reply(status, error=not_json(reply), ours=True)
    names = document.keys() if isinstance(document, dict) else set()
    if reply.is_error and names & _OF_PROBLEMS:
        return Reply(status, refused=_refusals(reply))
    if reply.is_error or "decision_id" not in names:
        # A gateway's word, while the service is away, is no refusal.
        why = f"HTTP {status}: no answer of the service: {reply.text[:200]}"
        return Reply(status, error=why, ours=True)
    return Reply(status, document=document)


def not_json(reply: httpx.Response) -> str:
    """What answered instead of the service: a page, or another address."""
    kind = reply.headers.get("Content-Type", "of no type")
    leads = f", and leads to {reply.headers['Location']}" if "Location" in reply.headers else ""
    return f"HTTP {reply.status_code}: the answer is no JSON but {kind}{leads}"[:300]


def _refusals(reply: httpx.Response) -> tuple[str, ...]:
    """Why the service refuses, a line for each field of its problem document that does: others it
    would have left out."""
    try:
        document = reply.json()
        lines = [
            f"{error['field']}: {error['message']}"
            for error in document.get("errors", [])
            if error.get("verdict", "refused") in ("refused", "missing")
        ]
        text = str(document.get("detail") or document.get("title") or reply.text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        lines, text = [], reply.text
    return tuple(f"HTTP {reply.status_code}: {line[:400]}" for line in lines or [text])
