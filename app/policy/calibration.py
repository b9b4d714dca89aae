"""Label bias of a model that was not tuned, and what removing it does to the proposals.

An untuned model prefers some letters whatever it reads. Contextual calibration (Zhao et al. 2021,
"Calibrate Before Use", arXiv:2102.09690) asks it about content-free inputs, takes the mean of the
label probabilities and divides by it; in log space that is a bias to subtract. What is content-free
matters: an empty text or "N/A" does not look like our prompts, and with it two labels took all
proposals. As in domain-context calibration (Fei et al. 2023, arXiv:2305.19926) our content-free
inputs are therefore drawn at random from the domain: scenarios whose fields are independent random
numbers, so that together they speak for no action.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from app.domain.candidate import BtcTrend, Orderflow, SentimentBias, Session, SetupType, Tier
from app.domain.model.actions import LABELS
from app.domain.model.manifest import Calibration
from app.domain.model.prompt import Prompt, render
from app.domain.record.decision import Reading, propose
from app.domain.scenario import Scenario

BIAS_SCENARIOS, BIAS_SEED = 32, 2021
ILLUSTRATION_SCENARIOS, ILLUSTRATION_SEED = 32, 7
_START = datetime(2024, 1, 1, tzinfo=UTC)
_NEWS = (
    None,
    "ETF inflows hit a record",
    "Exchange halts withdrawals after a hack",
    "A quiet session",
)


class ProposalDistribution(NamedTuple):
    """How often each label is proposed, without and with the calibration; and the mass on labels,
    0-1."""

    raw: dict[str, int]
    corrected: dict[str, int]
    label_mass_min: float
    label_mass_median: float

    def as_json(self) -> dict[str, Any]:
        """For a manifest's provenance."""
        return self._asdict()


def bias_of(readings: Sequence[Reading]) -> tuple[float, ...]:
    """Log of the mean label probabilities (normalised over the labels) of content-free readings;
    nats."""
    plain = Calibration()
    rows = [propose(reading, plain).probabilities for reading in readings]
    return tuple(math.log(math.fsum(column) / len(rows)) for column in zip(*rows, strict=True))


def distribution(readings: Sequence[Reading], calibration: Calibration) -> ProposalDistribution:
    """Proposals of `readings` before and after `calibration`."""
    plain = Calibration()
    raw = Counter(propose(reading, plain).label for reading in readings)
    corrected = Counter(propose(reading, calibration).label for reading in readings)
    masses = sorted(reading.label_mass for reading in readings)
    return ProposalDistribution(
        raw={label: raw[label] for label in LABELS},
        corrected={label: corrected[label] for label in LABELS},
        label_mass_min=masses[0],
        label_mass_median=masses[len(masses) // 2],
    )


def random_prompts(count: int, seed: int) -> list[Prompt]:
    """Prompts of `random_scenarios`."""
    return [render(scenario) for scenario in random_scenarios(count, seed)]


def random_scenarios(count: int, seed: int) -> list[Scenario]:
    """Made-up scenarios that differ in every field the prompt shows. They calibrate and illustrate;
    they prove nothing about markets. The same count and seed give the same scenarios."""
    source = random.Random(seed)
    return [_varied_scenario(source) for _ in range(count)]


def calibrate(
    read: Callable[[list[Prompt]], list[Reading]],
) -> tuple[Calibration, ProposalDistribution]:
    """Measure a model's bias, and show on other scenarios what removing it does.

    The temperature stays 1: fitting one takes outcomes. `min_label_mass` is half of the least mass
    seen, which no ordinary prompt comes near, but a model that no longer answers with a letter
    does.
    """
    calibration = Calibration(bias=bias_of(read(random_prompts(BIAS_SCENARIOS, BIAS_SEED))))
    others = read(random_prompts(ILLUSTRATION_SCENARIOS, ILLUSTRATION_SEED))
    shown = distribution(others, calibration)
    return calibration.model_copy(
        update={"min_label_mass": round(shown.label_mass_min / 2, 3)}
    ), shown


def _varied_scenario(source: random.Random) -> Scenario:
    last_close = source.uniform(50.0, 60_000.0)
    candidate = _varied_candidate(source, last_close)
    account = {
        "day_pnl_fraction": source.uniform(-0.03, 0.03),
        "drawdown_fraction": source.uniform(0, 0.15),
        "consecutive_losses": source.randrange(5),
        "positions": [],
    }
    distance = source.uniform(0.8, 3) * candidate["atr"]
    plan = {
        "entry": last_close,
        "stop": last_close - distance,
        "targets": [last_close + source.uniform(0.8, 4) * distance],
        "quantity": 1.0,
    }
    market = {
        "last_close": last_close,
        "bar_closed_at": candidate["ts"],
        "bar_seconds": 1800.0,
    }
    return Scenario.from_json(
        {"candidate": candidate, "plan": plan, "account": account, "market": market}
    )


def _varied_candidate(source: random.Random, last_close: float) -> dict[str, Any]:
    return {
        "symbol": source.choice(("BTC", "ETH", "SOL", "ADA", "XRP", "DOGE")) + "USDT",
        "direction": "long",
        "ts": _START + timedelta(hours=source.randrange(8760)),
        "session": source.choice(list(Session)),
        "tier": source.choice(list(Tier)),
        "setup_type": source.choice(list(SetupType)),
        "pattern": source.choice((None, "double_bottom", "bull_flag", "hammer")),
        "score": source.uniform(2, 10),
        "score_threshold": source.uniform(5, 7),
        "confidence": source.uniform(2, 10),
        "technical_score": source.uniform(0, 10),
        "trend_norm": source.uniform(0, 10),
        "mean_rev_norm": source.uniform(0, 10),
        "rsi": source.uniform(15, 85),
        "adx": source.uniform(8, 55),
        "di_plus": source.uniform(5, 45),
        "di_minus": source.uniform(5, 45),
        "macd": source.uniform(-0.005, 0.005) * last_close,
        "atr": source.uniform(0.004, 0.05) * last_close,
        "volatility_pct": source.random(),
        "htf_trend_pct": source.uniform(-8, 8),
        "price_change_pct": source.uniform(-0.06, 0.06),
        "hurst": source.uniform(0.3, 0.7),
        "fear_greed": source.randrange(5, 95),
        "btc_trend": source.choice(list(BtcTrend)),
        "sentiment_bias": source.choice(list(SentimentBias)),
        "sentiment_confidence": source.uniform(0, 10),
        "news_severity": source.randrange(4),
        "orderflow": source.choice(list(Orderflow)),
        "order_imbalance": source.uniform(-60, 60),
        "taker_buy_ratio": source.uniform(-0.5, 0.5),
        "volume_ratio": source.uniform(-0.8, 0.8),
        "spread_bps": source.uniform(0.5, 20),
        "news_summary": source.choice(_NEWS),
    }
