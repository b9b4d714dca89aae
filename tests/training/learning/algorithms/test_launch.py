"""`accelerate launch` with two processes trains the same policy as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.support.launched import run

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROOT = Path(__file__).parents[4]


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    alone = run(tmp_path / "one", tmp_path / "data", "dpo")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [
            *launch,
            "-m",
            "tests.training.support.launched",
            str(tmp_path / "two"),
            str(tmp_path / "data"),
            "dpo",
        ],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    together = np.load(tmp_path / "two" / "policy_log_probs.npy")
    np.testing.assert_allclose(together, alone.answers.raw, atol=2e-3)
    assert not np.allclose(
        together, np.load(next((tmp_path / "data").rglob("label_log_probs.npy"))), atol=2e-3
    )
