"""A rough reading stands where nothing hangs on it; where something does, the exact one counts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.advising.serving import Models
from app.domain.errors import AbstainReason, PolicyAbstained
from app.domain.model.prompt import Prompt
from app.domain.record.decision import Decision, Engine, Reading
from app.domain.scenario import Scenario
from app.policy.scripted import ScriptedPolicy
from app.shadow_log.proof.verify import verify_log
from app.telemetry import Stage
from tests import builders as build
from tests.service.running import drained, request, running, settings_for

WITHIN = 0.01


def near(first: str, second: str) -> Reading:
    """The first label is ahead by 0.015 nats."""
    weights = {first: 0.45 * math.exp(0.015), second: 0.45}
    return Reading.told({label: weights.get(label, 0.011) for label in "ABCDEFGHIJ"})


class Hasty(ScriptedPolicy):
    """Reads roughly when it may: 0.9 on H for calm markets, else a hair's breadth apart."""

    def __init__(self, exact: Reading | AbstainReason) -> None:
        super().__init__()
        self.exact = exact
        self.asked: list[bool] = []

    async def decide(
        self,
        prompt: Prompt,
        deadline: float,
        scenario: Scenario | None = None,
        rough: bool = False,
    ) -> Reading:
        self.asked.append(rough)
        if not rough:
            if isinstance(self.exact, AbstainReason):
                raise PolicyAbstained(self.exact)
            return self.exact.model_copy(update={"engine": Engine.ONEDNN})
        assert scenario is not None
        clear = scenario.candidate.rsi == 50.0
        said = build.reading("H") if clear else near("A", "H")
        return said.model_copy(update={"engine": Engine.BFLOAT16, "within": WITHIN})


@pytest.mark.parametrize("exact", [build.reading("H"), AbstainReason.DEADLINE])
async def test_what_could_be_another_advice_is_read_again(
    database_url: str, valkey_url: str, tmp_path: Path, exact: Reading | AbstainReason
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path)
    policy = Hasty(exact)
    async with running(settings, Models(policy)) as api:
        first = (await api.advise(request("r-1", candidate__rsi=50.0))).json()
        assert policy.asked == [True]
        second = (await api.advise(request("r-2", candidate__rsi=60.0))).json()
        assert policy.asked == [True, True, False]
        for fate in ("stood", "read_again"):
            assert api.metric("advisor_rough_readings_total", fate=fate) == 1
        stored = [
            Decision.from_json(document.get("decision", document))
            for answer in (first, second)
            for document in [(await api.client.get(f"/decisions/{answer['decision_id']}")).json()]
        ]
        readiness = (await api.client.get("/readyz")).json()
        await drained(settings)
    assert readiness["models_read"] == {"scripted-1": "by its script"}
    one, other = (decision.primary for decision in stored)
    assert one.reading is not None
    assert (one.reading.engine, one.reading.within) == (Engine.BFLOAT16, WITHIN)
    if isinstance(exact, AbstainReason):
        assert (other.reading, other.abstain_reason) == (None, exact)
    else:
        assert other.reading == exact.model_copy(update={"engine": Engine.ONEDNN})
        assert other.action == one.action
    assert stored[1].stage_seconds[Stage.POLICY.value] > 0
    assert (await verify_log(database_url)).findings == []
