"""What the service would make of a request, as a table: nothing of it is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx

from .sending import not_json, read_within

MARKS = {
    "refused": "REFUSED",
    "missing": "missing",
    "left_out": "left out",
    "coerced": "coerced",
    "unrecognised": "unrecognised",
    "derived": "derived",
    "accepted": "accepted",
}
"""In the order of the table: first what matters most."""
WIDEST = 44


@dataclass(frozen=True)
class Check:
    """The answer to a dry run; `print` shows it as a table.

    Parameters
    ----------
    acceptable : the service would decide on it.
    fields : of each `field`, its `verdict` (accepted, coerced, left_out, refused, missing,
        unrecognised, derived: from the agent's own reports), what was `sent`, what was `taken` of
        it, and `why`.
    missed_inputs : rules (`code`) that would lack an input (`missing`), and what they would do
        `then`: refuse or pass.
    vetoes : what the rules say to the agent's own order.
    left_out : values that the client cannot send, by their path.
    error : why there is no answer.
    """

    acceptable: bool = False
    fields: list[dict[str, Any]] = field(default_factory=list)
    missed_inputs: list[dict[str, Any]] = field(default_factory=list)
    vetoes: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"no answer: {self.error}"
        parts = [_table(self._rows()), self._summary()]
        if self.missed_inputs:
            parts.append("Rules that lack an input\n" + _table(map(_missed, self.missed_inputs)))
        if self.vetoes:
            parts.append("Vetoes of your own order\n" + _table(map(_veto, self.vetoes)))
        return "\n\n".join(parts)

    def _rows(self) -> list[list[str]]:
        order = list(MARKS)
        rows = [
            [path, "left out", "", "", f"by the client: {why}"]
            for path, why in self.left_out.items()
        ]
        for told in sorted(self.fields, key=lambda told: _place(order, told.get("verdict"))):
            verdict = str(told.get("verdict"))
            sent = "" if verdict in ("missing", "derived") else _short(told.get("sent"))
            mark = MARKS.get(verdict, verdict)
            rows.append(
                [
                    str(told.get("field")),
                    mark,
                    sent,
                    _short(told.get("taken")),
                    str(told.get("why") or ""),
                ]
            )
        return [["field", "verdict", "sent", "taken as", "why"], *rows]

    def _summary(self) -> str:
        counts = {
            mark: sum(told.get("verdict") == verdict for told in self.fields)
            for verdict, mark in MARKS.items()
        }
        told = ", ".join(f"{count} {mark.lower()}" for mark, count in counts.items() if count)
        return f"{'It would be decided on' if self.acceptable else 'It would be REFUSED'}: {told}"


def asked(
    http: httpx.Client,
    body: bytes,
    headers: dict[str, str],
    left_out: dict[str, str],
    places: str,
) -> Check:
    """Ask for a dry run of a request. `places`: where a token was looked for."""
    headers = {**headers, "Content-Type": "application/json"}
    try:
        reply = _answer(http, body, headers)
    except httpx.HTTPError as error:
        return Check(error=f"{type(error).__name__}: {error}", left_out=left_out)
    try:
        document = reply.json()
        if reply.is_error:
            detail = document.get("detail") or document.get("title")
            if reply.status_code == 401:
                detail = f"{detail}; {places}"
            return Check(error=f"HTTP {reply.status_code}: {detail}", left_out=left_out)
        if not isinstance(document, dict) or "acceptable" not in document:
            return Check(error="the service knows no dry run, and may have recorded the request")
        return Check(
            bool(document["acceptable"]),
            list(document["fields"]),
            list(document["missed_inputs"]),
            list(document["control_vetoes"] or ()),
            left_out,
        )
    except (ValueError, RecursionError):
        return Check(error=not_json(reply), left_out=left_out)
    except (TypeError, KeyError, AttributeError) as error:
        return Check(error=f"{type(error).__name__}: {error}", left_out=left_out)


def _answer(http: httpx.Client, body: bytes, headers: dict[str, str]) -> httpx.Response:
    """The whole answer, of bounded size and time. Raises `httpx.HTTPError`."""
    within_s = http.timeout.read or 10.0
    end, query = monotonic() + within_s, {"dry_run": "true"}
    with http.stream("POST", "/advise", params=query, content=body, headers=headers) as reply:
        read_within(reply, end)
    return reply


def _place(order: list[str], verdict: Any) -> int:
    return order.index(verdict) if verdict in order else 0


def _missed(rule: dict[str, Any]) -> list[str]:
    does = "refuses" if rule.get("then") == "refuse" else "lets it pass"
    return [str(rule.get("code")), str(rule.get("missing")), does]


def _veto(veto: dict[str, Any]) -> list[str]:
    if veto.get("missing"):
        return [str(veto.get("code")), f"{veto['missing']} is missing"]
    return [str(veto.get("code")), f"{veto.get('observed')} against {veto.get('limit')}"]


def _short(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _table(rows: Any) -> str:
    rows = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )
