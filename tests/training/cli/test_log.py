"""Which shadow log and service a command asks, and which versions there are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from app.domain.model.manifest import MANIFEST_NAME
from app.policy.scripted import SCRIPTED_MANIFEST
from tests.service.running import ROOT
from training.__main__ import app

LEFT = "postgresql+psycopg://advisor_writer:secret@127.0.0.1:5/advisor"


USUAL = "http://127.0.0.1:8321"
GIVEN = {
    "drift": [],
    "refresh": [],
    "resolve": ["--source", "bars"],
    "paper": [],
    "rollback": [],
    "promote": ["evaluation"],
    "publish": ["policy"],
    "publish-rivals": ["policy"],
}
"""Commands that ask a service, and what they cannot do without; the first three ask the log too."""


@pytest.mark.parametrize("name", GIVEN)
def test_it_is_what_was_started_here_unless_another_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVISOR_HOME", str(tmp_path))
    for variable in ("DATABASE_URL", "ADVISOR_URL"):
        monkeypatch.delenv(variable, raising=False)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    both = name in ("drift", "refresh", "resolve")

    def asked() -> tuple[object, ...]:
        told = command.make_context(name, list(GIVEN[name])).params
        return (told["url"], told["database"]) if both else (told["url"],)

    assert asked() == (USUAL, "")[: 1 + both]
    (tmp_path / "addresses").write_text(f"ADVISOR_URL=http://x\nDATABASE_URL={LEFT}\n")
    assert asked() == ("http://x", LEFT)[: 1 + both]
    monkeypatch.setenv("ADVISOR_URL", "http://y")
    monkeypatch.setenv("DATABASE_URL", "postgresql:///other")
    assert asked() == ("http://y", "postgresql:///other")[: 1 + both]


def test_versions_are_those_under_home_and_those_that_came_with_the_release(
    tmp_path: Path,
) -> None:
    """In a process of its own: what ADVISOR_HOME says is read at the start."""
    manifest = SCRIPTED_MANIFEST.model_copy(update={"model_version": "mine-1"})
    folder = tmp_path / "models" / "mine-1"
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.as_json()))
    told = subprocess.run(
        [sys.executable, "-m", "training", "versions"],
        env={**os.environ, "ADVISOR_HOME": str(tmp_path), "COLUMNS": "80"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert max(map(len, told.splitlines())) <= 80
    assert re.search(
        r"lead +[+-]0\.00\d\d \[-0\.00\d\d, \+0\.00\d\d\] R over never trading\n", told
    )
    shipped = [path.name for path in (ROOT / "models").iterdir() if path.is_dir()]
    for name in ("mine-1", *shipped):
        assert name in told
