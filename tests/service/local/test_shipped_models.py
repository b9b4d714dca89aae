"""What a fresh installation serves, before anybody moved an alias."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from app.main import DEFAULT_MODEL, default_directory
from app.policy.in_process.whole.weights import load_model
from app.settings import Settings
from tests.policy.tiny_models import save_adapter, save_tiny_model, write_manifest


def test_it_serves_the_newest_shipped_adapter_whose_base_is_there(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", shipped_models=tmp_path / "shipped")
    bundled = save_tiny_model(settings.models_dir / DEFAULT_MODEL)
    base = write_manifest(bundled, "base-1")
    assert default_directory(settings) == bundled, "nothing is shipped"
    model = load_model(bundled)
    for name, year in (("old", 2025), ("new", 2026), ("older", 2024)):
        adapter = save_adapter(settings.shipped_models / name, model, [1, 2], seed=year)
        write_manifest(adapter, name, base, created_at=datetime(year, 1, 1, tzinfo=UTC))
    assert default_directory(settings) == settings.shipped_models / "new"
    shutil.rmtree(bundled)
    assert default_directory(settings) == bundled, "an adapter alone cannot answer"


def test_checkpoints_are_where_they_are_told_or_where_up_keeps_them(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.checkpoints_here is None
    kept = tmp_path / "checkpoints.jsonl"
    kept.touch()
    assert settings.checkpoints_here == str(kept)
    assert Settings(home=tmp_path, checkpoints="s3://bucket").checkpoints_here == "s3://bucket"
