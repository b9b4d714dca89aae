"""What benches measured, when, on which commit and machine: a line a run in `history.jsonl`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).with_name("history.jsonl")
FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
"""Of a processor, those that decide how fast a model is."""


def record(bench: str, figures: Mapping[str, float | str], file: Path = HISTORY) -> None:
    """Add a run: figures are named with their units, as in `append_p50_ms`."""
    line = {
        "bench": bench,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "figures": dict(figures),
    }
    with file.open("a", encoding="utf-8") as history:
        history.write(json.dumps(line, allow_nan=False) + "\n")


def repeated(name: str, values: Sequence[float]) -> dict[str, float]:
    """A figure that was measured several times: the median, and the distance between the worst and
    the best over it."""
    median = statistics.median(values)
    return {name: median, f"{name}_spread": (max(values) - min(values)) / median}


def commit(folder: Path = HISTORY.parent) -> str | None:
    """The commit that was measured, `+` when files differ from it; None outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Its processor, and how busy it was in the last minute."""
    cpu = processor(Path("/proc/cpuinfo"))
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "features": [name for name in FEATURES if name in cpu.get("flags", "").split()],
        "load": round(os.getloadavg()[0], 1),
    }


def processor(file: Path) -> dict[str, str]:
    """The first processor's fields in Linux's list, empty elsewhere; ARM's flags are Features."""
    if not file.is_file():
        return {}
    first = file.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    return {"flags": fields.get("Features", ""), **fields}
