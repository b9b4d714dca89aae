"""An MCP server: an LLM agent asks for advice, reports what it did, and has a decision explained.

`python -m shadow_advisor_client.adapters.mcp --url http://127.0.0.1:8321` speaks the Model Context
Protocol over its standard input and output. It needs the extra `mcp`
(`pip install "shadow-advisor-client[mcp]"`, Python 3.10). Advice binds nobody, and these tools
trade nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool

from shadow_advisor_client import AdvisorClient, ConfigurationError

DELIVERY_S = 5.0
"""How long a report may take before its tool says that it waits."""
INSTRUCTIONS = (
    "A shadow advisor for trades. Before a trade call `advise`; after deciding call `report` with"
    " what you did, and once the trade is closed with its outcome. The advice is recorded beside"
    " your own decision and binds nobody; nothing is traded here. `explain` tells why a decision"
    " came out as it did."
)
ADVISE = (
    "Advice on one trade that you consider. `request` holds `candidate` (symbol, direction, ts,"
    " indicators), `plan` (entry, stop, targets, quantity), `market` (last_close, bar_closed_at,"
    " bar_seconds, volume_24h) and `account` (equity, positions, ...); numbers as JSON numbers,"
    " times as RFC 3339 with offset. Symbol, direction, ts and the plan are needed; what is not"
    " known is null or left out, never guessed. With"
    " `dry_run` true nothing is recorded: every field is told whether it is accepted, refused or"
    " missing, and which rules lack an input. A refused request comes back as such a table."
)
REPORT = (
    "Report on a decision: `agent_action` is what you did (decision: true or false, entry, stop,"
    " quantity, reason, final_skip_reason); `outcome` what became of the trade (arm: agent,"
    " outcome: tp1, sl, ..., exit_time, exit_price, net_pnl, r_multiple). Give one of them, or"
    " both."
)
EXPLAIN = (
    "Why a decision came out as it did: the model's probabilities, each veto with what it saw and"
    " its limit, what the same rules say to the agent's own order, and what was reported since."
)
_ADVICE = (
    "model_version", "role", "status", "approve", "action", "quantity", "stop", "abstain_reason",
    "abstain_detail", "text_effect",
)  # fmt: skip


class Tools:
    """What the server offers, over one client."""

    def __init__(self, client: AdvisorClient) -> None:
        self._client = client

    async def advise(
        self, request: dict[str, Any], deadline_s: float = 5.0, dry_run: bool = False
    ) -> dict[str, Any]:
        """The advice; what is wrong with the request; or that there is no answer in time."""
        known = str(request.get("request_id") or uuid4())
        request = {**request, "request_id": known}
        if not dry_run:
            advice = await self._client.aadvise(request, min(max(deadline_s, 0.05), 60.0))
            if advice is not None:
                return advice
        check = await anyio.to_thread.run_sync(self._client.check, request)
        queued = {} if dry_run else {"decision_id": self._client.decision_id(known)}
        if check.error is not None:
            return {"status": "no_answer", "error": check.error, **queued}
        if check.acceptable and not dry_run:
            why = "not within the deadline: it is still queued, and will be recorded under this id"
            return {"status": "no_answer", "error": why, **queued}
        return {
            "status": "dry_run" if dry_run else "refused",
            "acceptable": check.acceptable,
            "fields": [told for told in check.fields if told.get("verdict") != "accepted"],
            "missed_inputs": check.missed_inputs,
            "vetoes_of_your_own_order": check.vetoes,
            "left_out_by_the_client": check.left_out,
        }

    async def report(
        self,
        decision_id: str,
        agent_action: dict[str, Any] | None = None,
        outcome: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What was taken, what waits, and what the service refused."""
        if agent_action is None and outcome is None:
            return {"delivered": False, "error": "give agent_action, outcome, or both"}
        before = self._client.stats()
        if agent_action is not None:
            self._client.report_action(decision_id, agent_action)
        if outcome is not None:
            self._client.report_outcome(decision_id, outcome)
        end = monotonic() + DELIVERY_S
        while self._client.stats().queued and monotonic() < end:
            await anyio.sleep(0.01)
        after = self._client.stats()
        refused = [
            kind for kind, count in after.refusals.items() if count > before.refusals.get(kind, 0)
        ]
        return {
            "delivered": not refused and not after.queued and after.dropped == before.dropped,
            "waiting": after.queued,
            "refused": refused,
        }

    async def explain(self, decision_id: str) -> dict[str, Any]:
        """The decision in short."""
        document = await anyio.to_thread.run_sync(self._client.decision, decision_id)
        if document is None or "decision" not in document:
            return {"error": "no such decision, or no answer", "answer": document}
        return explained(document)


def explained(document: dict[str, Any]) -> dict[str, Any]:
    """What a person asks first of a stored decision."""
    decision = document["decision"]
    return {
        "decision_id": decision.get("decision_id"),
        "symbol": decision["scenario"]["candidate"].get("symbol"),
        "as_of": decision["scenario"]["candidate"].get("ts"),
        "trading_state": decision.get("state"),
        "limits": decision["limits"].get("version"),
        "advices": [_advice(advice) for advice in decision["advices"]],
        "vetoes_of_the_agents_own_order": decision["control_review"].get("vetoes"),
        "agent_action": decision.get("control"),
        "reported_actions": document.get("agent_actions"),
        "outcomes": document.get("outcomes"),
        "rationales": document.get("rationales"),
    }


def _advice(advice: dict[str, Any]) -> dict[str, Any]:
    review, proposal = advice.get("review") or {}, advice.get("proposal") or {}
    return {
        **{name: advice.get(name) for name in _ADVICE},
        "approve_probability": proposal.get("approve_probability"),
        "probabilities": proposal.get("probabilities"),
        "vetoes": review.get("vetoes", []),
        "caps": review.get("caps", []),
    }


def served(client: AdvisorClient) -> MCPServer:
    """The server with its three tools."""
    tools = Tools(client)
    offered = [
        _strict(tools.advise, "advise", ADVISE),
        _strict(tools.report, "report", REPORT),
        _strict(tools.explain, "explain", EXPLAIN),
    ]
    return MCPServer("shadow-advisor", instructions=INSTRUCTIONS, tools=offered)


def _strict(does: Callable[..., Any], name: str, description: str) -> Tool:
    """A tool that refuses an argument which it does not have: ignored, a misspelt `dry_run` would
    be recorded."""
    tool = Tool.from_function(does, name=name, description=description, structured_output=False)
    arguments = tool.fn_metadata.arg_model
    arguments.model_config["extra"] = "forbid"
    arguments.model_rebuild(force=True)
    tool.parameters = arguments.model_json_schema(by_alias=True)
    return tool


def main() -> int:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(
        prog="python -m shadow_advisor_client.adapters.mcp", description=__doc__
    )
    parser.add_argument("--url", default="http://127.0.0.1:8321", help="where the service answers")
    parser.add_argument("--token", help="who asks; by default as the client finds it")
    given = parser.parse_args()
    try:
        client = AdvisorClient(given.url, token=given.token)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    served(client).run("stdio")
    return 0


if __name__ == "__main__":
    sys.exit(main())
