"""The site of these tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.advising.serving import Models
from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.policy.scripted import ScriptedPolicy
from tests.service.api.explorer.site import Site
from tests.service.running import running, settings_for


@pytest.fixture
async def site(database_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    file = TokenFile(tmp_path / "tokens.json")
    tokens = {role.value: file.create(role.value, [role]) for role in Role if role != "reporter"}
    settings = settings_for(database_url, valkey_url, tmp_path, open=None, bars=tmp_path / "bars")
    labels = ["A"]
    async with running(settings, Models(ScriptedPolicy(lambda prompt: labels[0]))) as api:
        yield Site(api, tokens, labels)
