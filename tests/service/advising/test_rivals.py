"""Simple rivals in shadow of a running service: in the decision's own record, and verified."""

from __future__ import annotations

from pathlib import Path

import psycopg

from app.shadow_log.proof.verify import verify_log
from tests.service.running import drained, request, rival_version, running, settings_for


async def test_rivals_advise_within_the_decision_and_replay(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    bold, shy = rival_version(tmp_path, "bold-1", 30.0), rival_version(tmp_path, "shy-1", 90.0)
    settings = settings_for(
        database_url, valkey_url, tmp_path / "home", model="scripted", shadow_models=f"{bold},{shy}"
    )
    async with running(settings, load=True) as api:
        answer = (await api.advise(request("r-1", candidate__rsi=56.0))).json()
        await api.service.serving.keep_up()
        await drained(settings)
    assert [(each["model_version"], each["action"]) for each in answer["advices"][1:]] == [
        ("bold-1", "approve_r1.00_s1.5"),
        ("shy-1", "reject"),
    ]
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        found = connection.execute(
            "SELECT model_version, advice_approve FROM shadow_comparison"
            " WHERE role = 'shadow' ORDER BY 1"
        ).fetchall()
        known = connection.execute("SELECT model_version FROM model_versions").fetchall()
    assert found == [("bold-1", True), ("shy-1", False)]
    assert {"bold-1", "shy-1"} <= {name for (name,) in known}
    assert (await verify_log(database_url)).findings == []
