"""Which shadow log a command reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from training.__main__ import app

LEFT = "postgresql+psycopg://advisor_writer:secret@127.0.0.1:5/advisor"


@pytest.mark.parametrize("name", ["drift", "refresh", "resolve"])
def test_it_is_the_one_that_was_started_here_unless_another_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVISOR_HOME", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    given = {"drift": [], "refresh": [], "resolve": ["--source", "bars"]}[name]

    def database() -> object:
        return command.make_context(name, list(given)).params["database"]

    assert database() == ""
    (tmp_path / "addresses").write_text(f"ADVISOR_URL=http://x\nDATABASE_URL={LEFT}\n")
    assert database() == LEFT
    monkeypatch.setenv("DATABASE_URL", "postgresql:///other")
    assert database() == "postgresql:///other"
