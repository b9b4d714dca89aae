"""What a second reading is told as."""

from __future__ import annotations

import pytest

from app.advising.rereading import told
from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.record.decision import Engine, Reading

REJECTS = Reading.told({LABELS[0]: 0.9, LABELS[1]: 0.1})
APPROVES = Reading.told({LABELS[0]: 0.1, LABELS[1]: 0.9})


def by(reading: Reading, engine: Engine) -> Reading:
    return reading.model_copy(update={"engine": engine})


@pytest.mark.parametrize(
    ("now", "then", "words"),
    [
        (REJECTS, REJECTS, "proposes reject again"),
        (APPROVES, REJECTS, "proposes approve_r0.25_s1.0 now"),
        (by(REJECTS, Engine.TORCH), REJECTS, "proposes reject again"),
        (
            by(REJECTS, Engine.ONEDNN),
            REJECTS,
            "proposes reject again (by onednn, before by torch)",
        ),
        (
            by(REJECTS, Engine.TORCH),
            by(REJECTS, Engine.ONEDNN),
            "proposes reject again (by torch, before by onednn)",
        ),
    ],
)
def test_engines_are_named_where_they_differ(now: Reading, then: Reading, words: str) -> None:
    assert told(now, then, Calibration()) == words
