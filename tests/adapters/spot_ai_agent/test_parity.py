"""The Spot AI Agent's own risk veto against our rules with its profile: the documentation names
every kind of difference, with its count. Opt-in: `SPOT_AI_AGENT=/path make test-spot-agent`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.adapters.spot_ai_agent.parity import differences, rows, veto_of

CHECKOUT = os.environ.get("SPOT_AI_AGENT")
DOCUMENTED = Path(__file__).parents[3] / "docs/vetoes.md"
pytestmark = [
    pytest.mark.spot_agent,
    pytest.mark.skipif(not CHECKOUT, reason="SPOT_AI_AGENT is not set: make test-spot-agent"),
]


def test_every_kind_of_difference_is_documented_with_its_count() -> None:
    assert CHECKOUT is not None
    text = DOCUMENTED.read_text()
    heading = "| kind, of 20,000 generated inputs | inputs |\n|---|---|\n"
    table = text.partition(heading)[2].partition("\n\n")[0]
    assert table.splitlines() == rows(differences(veto_of(Path(CHECKOUT))))
