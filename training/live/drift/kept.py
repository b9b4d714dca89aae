"""The newest look at each version in a folder, for whoever shows it: what it says, by which limits,
and since when what it says has stood. `/ui/drift` reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config.judging import DriftConfig
from training.live.drift.look import Drift
from training.live.drift.verdict import Reason

MOST_CHANGES = 50
"""So many changes of the verdict are told, the newest."""


def keep(folder: Path, drift: Drift, config: DriftConfig) -> Path:
    """Write a look into `VERSION.json`, in the place of the one before; the file.

    What it says as that one did has stood since that one said so. Raises `OSError`.
    """
    path = folder / f"{drift.model_version}.json"
    before, now = _before(path), drift.looked_at.isoformat()
    told = before.get("reasons_since", {})
    changes = list(before.get("changes", []))
    if not changes or changes[-1]["verdict"] != drift.verdict.value:
        changes.append({"since": now, "verdict": drift.verdict.value})
    document = {
        "look": drift.as_json(),
        "limits": config.model_dump(mode="json"),
        "reasons_since": {key: told.get(key, now) for key in map(_key, drift.reasons)},
        "changes": changes[-MOST_CHANGES:],
    }
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def _key(reason: Reason) -> str:
    """What a reason is called from look to look."""
    return f"{reason.code.value} {reason.name}"


def _before(path: Path) -> Mapping[str, Any]:
    """What the look before left; nothing where there was none, or none that can be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["changes"][-1]["verdict"]
        document["reasons_since"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return dict(document)
