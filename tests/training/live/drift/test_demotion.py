"""A version that does worse steps back by itself; one that does not, stays."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from app.advising.serving import Models
from app.domain.errors import AdvisorError
from app.operator_client import OperatorClient
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from app.shadow_log.log import ShadowLog
from bench.judging.gate_power import NO_WORSE, WORSE, demotions
from tests import builders as build
from tests.service.running import running, settings_for, until
from tests.training.support.drifting import NOW, looked, window
from training.arrays import DAY_S, Floats
from training.config.judging import DriftConfig
from training.live.drift.demotion import AGENT, Demoter, Paired, worse
from training.live.drift.verdict import DriftVerdict
from training.log import paired, reading


def history(gap: Floats) -> Paired:
    """One decision a day; the agent earns `gap` more than the acting version, which earns 0."""
    days = np.arange(len(gap)) * DAY_S
    return Paired(days, np.zeros(len(gap)), {AGENT: gap})


def test_a_rival_that_always_earns_more_is_seen_on_settled_days_alone() -> None:
    """Half an R a day of bounds +-6: the largest stake wins 0.95 x 0.5 / 6 a day, so a twelfth of
    the wealth reaches 1 / 0.025 after ln(12 x 40) / ln 1.0792, 81 days, and all of it not before
    ln 40 / ln 1.0792, 48."""
    found = worse(history(np.full(86, 0.5)), DriftConfig())
    assert found is not None
    assert (found.rival, found.days) == (AGENT, 82), "the last day and three before it may change"
    assert 0 < found.at_least < 0.5
    assert worse(history(np.full(51, 0.5)), DriftConfig()) is None
    assert worse(history(np.full(86, -0.5)), DriftConfig()) is None
    assert worse(history(np.empty(0)), DriftConfig()) is None


def test_what_is_not_known_and_what_is_beyond_the_clip_decides_nothing() -> None:
    gap = np.full(80, np.nan)
    gap[:15] = 1e9
    assert worse(history(gap), DriftConfig()) is None, "fifteen days are fewer than twenty"
    assert worse(history(np.full(80, np.nan)), DriftConfig()) is None


def test_no_worse_versions_seldom_step_back_and_worse_ones_do() -> None:
    """The error is 2.5 % at most; of 60 histories each more than 5 would come once in 200 times."""
    for world in NO_WORSE:
        assert demotions(world, 1000, 60, DriftConfig()).hits <= 5
    assert demotions(WORSE[-2], 2920, 20, DriftConfig()).share > 0.9


async def test_decisions_are_paired_with_the_agent_and_the_version_before(
    database_url: str,
) -> None:
    """Before the move nothing counts, nor what says it is of a day to come; who rejects earns 0;
    what nobody told is not known."""
    log = ShadowLog.connect(database_url)
    later = build.AS_OF + timedelta(hours=1)
    await log.append(
        [
            build.decision_event("early", control=True),
            build.decision_event("both", control=True, shadows=[("v1", "A")], at=later),
            build.outcome_event("both", build.outcome(r=-1.0)),
            build.outcome_event("both", build.outcome("advice", r=-0.5)),
            build.decision_event("untold", control=False, at=later + timedelta(hours=1)),
            build.decision_event("end", control=True, at=datetime.max.replace(tzinfo=UTC)),
        ]
    )
    await log.aclose()
    with reading(database_url) as connection:
        rows = paired(connection, build.MODEL, "v1", later)
    assert rows == [
        (int(later.timestamp()), -0.5, -1.0, 0.0),
        (int(later.timestamp()) + 3600, None, 0.0, None),
    ]


async def test_an_alias_that_drifts_on_goes_back_says_so_and_is_left_alone_afterwards(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    second = SCRIPTED_MANIFEST.model_copy(update={"model_version": "scripted-2"})
    models = Models(ScriptedPolicy(["H"]), (ScriptedPolicy(["A"], manifest=second),))
    async with running(settings_for(database_url, valkey_url, tmp_path), models) as served:
        service = OperatorClient(served.url)

        async def registered() -> bool:
            document = (await served.client.get("/models")).json()
            return len(document["registry"].get("models", [])) == 2

        await until(registered)
        for version in ("scripted-1", "scripted-2"):
            await asyncio.to_thread(service.move_alias, "champion", version, "promoted", "me")
        demoter = Demoter(service, "champion", database_url, DriftConfig())
        drifting = looked(window(1, 1200), window(2, 300, earns=-1.0))
        assert drifting.verdict is DriftVerdict.REFRESH
        mine = replace(drifting, model_version="scripted-2")
        assert await asyncio.to_thread(demoter.look, mine, NOW) is None
        assert await asyncio.to_thread(demoter.look, mine, NOW + timedelta(days=6)) is None
        done = await asyncio.to_thread(demoter.look, mine, NOW + timedelta(days=7))
        assert done is not None
        assert done.startswith("scripted-2 is no longer champion, scripted-1 is: it has drifted")
        newest = (await asyncio.to_thread(service.aliases))["history"][0]
        assert newest["model_version"] == "scripted-1"
        assert "rollback from scripted-2: demoted by itself: it has drifted" in newest["reason"]
        assert await asyncio.to_thread(demoter.look, mine, NOW + timedelta(days=30)) is None


def test_the_alias_that_decides_nothing_is_not_demoted() -> None:
    with pytest.raises(AdvisorError, match="nothing to demote"):
        Demoter(OperatorClient("http://127.0.0.1:1"), "shadow", "postgresql://", DriftConfig())
