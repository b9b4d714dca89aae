"""A running service for tests of its pages, with tokens of everybody."""

from __future__ import annotations

import re
from typing import Any

import httpx

from tests.service.running import Running, drained, request

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Site:
    """A running service, and tokens of a reader, an operator, an agent. The model answers
    `labels[0]`."""

    def __init__(self, api: Running, tokens: dict[str, str], labels: list[str]) -> None:
        self.api = api
        self.tokens = tokens
        self.labels = labels

    async def get(self, path: str, who: str = "reader") -> httpx.Response:
        return await self.api.client.get(path, headers=self.as_(who))

    async def post(
        self, path: str, fields: dict[str, str], who: str | None = None, **headers: str
    ) -> httpx.Response:
        sent = FORM | {"Origin": self.api.url} | (self.as_(who) if who else {}) | headers
        return await self.api.client.post(path, data=fields, headers=sent)

    async def decide(self, name: str, **changes: Any) -> str:
        """A decision that the agent asked for."""
        answer = await self.api.client.post(
            "/advise", json=request(name, **changes), headers=self.as_("agent")
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["decision_id"])

    async def report(self, decision: str, what: str, body: dict[str, Any]) -> None:
        answer = await self.api.client.put(
            f"/decisions/{decision}/{what}", json=body, headers=self.as_("agent")
        )
        assert answer.status_code == 202, answer.text

    async def stored(self) -> None:
        await drained(self.api.settings)

    def as_(self, who: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[who]}"}


def ids(page: str) -> list[str]:
    """Decisions that a table shows, in its order."""
    return re.findall(r'<td><a href="/ui/decisions/([0-9a-f-]{36})">', page)


async def traded(site: Site, name: str, net_pnl: float, **changes: Any) -> str:
    """The agent trades and tells what it earned; the advice rejects."""
    decision = await site.decide(name, **changes)
    await site.report(decision, "agent-action", {"decision": True})
    outcome = {"arm": "agent", "outcome": "tp1", "source": "reported", "net_pnl": net_pnl}
    await site.report(decision, "outcome", outcome)
    return decision
