"""What a process of the service does before it serves."""

from __future__ import annotations

import subprocess
import sys

SERVED = """
import gc
import app.main
app.main.serve = lambda settings: print(gc.isenabled(), gc.get_freeze_count() > 0)
from app.cli.running import serve
from app.tasks import calm_garbage_collection
serve(processes=None)
calm_garbage_collection()
print(gc.isenabled())
"""
LOADING = "import sys, app.policy.in_process.loading; print('torch' in sys.modules)"


def _said(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_nothing_is_collected_while_a_service_imports_and_then_it_is_again() -> None:
    assert _said(SERVED) == ["False", "True", "True"]


def test_what_loads_versions_comes_without_torch_which_it_imports_beside_hashing() -> None:
    assert _said(LOADING) == ["False"]
