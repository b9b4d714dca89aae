"""Windows of made-up decisions, and a look at two of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from app.domain.features import FEATURE_NAMES
from training.config.judging import DriftConfig
from training.live.drift.look import Drift, Span, Subject, Window, look
from training.live.drift.measures import MEASURES

NOW = datetime(2026, 11, 24, tzinfo=UTC)
SPAN = Span(NOW, NOW, 0)
CONFIG = DriftConfig()


def window(
    seed: int, count: int, *, moved: float = 0.0, earns: float = 0.0, agree: float = 0.6
) -> Window:
    """Independent decisions: normal features, some flags and one unknown; a reward that rises with
    confidence."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, len(FEATURE_NAMES)))
    vectors[:, 30:50] = vectors[:, 30:50] > 0.5
    vectors[:, 60] = np.nan
    vectors[:, :20] += moved
    confidence = rng.beta(4, 3, count)
    approval = (confidence > 0.4).astype(float)
    reward = (
        np.where(rng.random(count) < 0.3 + 0.2 * confidence, rng.gamma(2, 0.8, count), -1.1) + earns
    )
    numbers = {measure.name: np.zeros(count) for measure in MEASURES} | {
        "agreement": (rng.random(count) < agree).astype(float),
        "approval": approval,
        "agent_approval": (rng.random(count) < 0.4).astype(float),
        "abstention": (rng.random(count) < 0.02).astype(float),
        "label_mass": rng.beta(20, 2, count),
        "approve_probability": confidence,
        "reward": np.where(approval == 1, reward, np.nan),
    }
    return Window(vectors, numbers)


def looked(reference: Window, recent: Window, age_days: float = 3, **more: Any) -> Drift:
    subject = Subject("m1", NOW - timedelta(days=age_days))
    return look(subject, reference, recent, CONFIG, NOW, spans=(SPAN, SPAN), **more)
