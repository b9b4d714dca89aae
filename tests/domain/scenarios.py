"""Scenarios for the domain's tests: a plain one, and hypothesis strategies for any valid one."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from app.domain.candidate import BtcTrend, Direction, Session, SetupType
from app.domain.rules.case import Case, Order, TradingState, agents_order
from app.domain.rules.limits import Limits
from app.domain.scenario import Scenario

AS_OF = datetime(2026, 11, 23, 9, tzinfo=UTC)
BASE: dict[str, Any] = {
    "candidate": {
        "symbol": "ETHUSDT",
        "direction": "long",
        "ts": AS_OF,
        "session": "Europe",
        "setup_type": "trend",
        "score": 6.8,
        "score_threshold": 5.5,
        "confidence": 7.2,
        "rsi": 56.2,
        "atr": 20.0,
        "volatility_pct": 0.5,
        "btc_trend": "up",
        "news_severity": 0,
        "time_to_news_minutes": 240,
        "macro_news_safe": True,
        "spread_bps": 1.5,
    },
    "plan": {"entry": 2000.0, "stop": 1970.0, "targets": [2060.0, 2080.0], "quantity": 0.25},
    "account": {
        "equity": 10_000.0,
        "day_pnl_fraction": 0.0,
        "drawdown_fraction": 0.0,
        "consecutive_losses": 0,
        "seconds_since_loss": None,
        "positions": [],
    },
    "market": {
        "last_close": 2000.0,
        "bar_closed_at": AS_OF,
        "bar_seconds": 3600,
        "volume_24h": 1e9,
    },
}
MINIMAL: dict[str, Any] = {
    "candidate": {"symbol": "ETHUSDT", "direction": "long", "ts": AS_OF},
    "plan": {"entry": 2000.0, "stop": 1970.0, "targets": [2060.0, 2080.0], "notional": 500.0},
}
"""What a decision cannot do without."""
LIMITS = Limits(version="test")


def scenario_json(**changes: Any) -> dict[str, Any]:
    """The plain scenario with `section__field=value` changes; a value of `...` removes the
    field."""
    document = copy.deepcopy(BASE)
    for path, value in changes.items():
        section, field = path.split("__", 1)
        if value is ...:
            document[section].pop(field, None)
        else:
            document[section][field] = value
    return document


def scenario(**changes: Any) -> Scenario:
    return Scenario.from_json(scenario_json(**changes))


def case(
    s: Scenario | None = None,
    *,
    state: TradingState = TradingState.ACTIVE,
    now: datetime = AS_OF,
    approve_probability: float | None = 0.9,
    order: Order | None = None,
) -> Case:
    s = s or scenario()
    return Case(s, order or agents_order(s), state, now, approve_probability)


positive = st.floats(1e-6, 1e6)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any scenario that validates: plausible or absurd, complete or with gaps."""
    price = draw(positive)
    near = st.floats(0.5, 2.0).map(lambda factor: price * factor)
    position = st.fixed_dictionaries(
        {"symbol": st.sampled_from(["ETHUSDT", "BTCUSDT"]), "quantity": positive, "entry": positive}
    )
    document = {
        "candidate": {
            "symbol": draw(st.sampled_from(["BTCUSDT", "ETHUSDT", "1INCHUSDT"])),
            "direction": draw(st.sampled_from(Direction)),
            "ts": AS_OF,
            "session": draw(st.sampled_from(Session)),
            "setup_type": draw(st.sampled_from(SetupType)),
            "score": draw(st.floats(-5, 20)),
            "score_threshold": draw(st.floats(0, 20)),
            "confidence": draw(st.floats(0, 10)),
            "rsi": draw(st.floats(0, 100)),
            "atr": draw(st.floats(1e-4, 0.5)) * price,
            "volatility_pct": draw(maybe(st.floats(0, 1))),
            "btc_trend": draw(maybe(st.sampled_from(BtcTrend))),
            "news_severity": draw(maybe(st.integers(0, 3))),
            "time_to_news_minutes": draw(maybe(st.floats(0, 10_000))),
            "macro_news_safe": draw(maybe(st.booleans())),
            "spread_bps": draw(maybe(st.floats(0, 10_000))),
            "news_summary": draw(maybe(st.text(max_size=300))),
            "open_positions": draw(maybe(st.integers(0, 5))),
        },
        "plan": {
            "entry": draw(near),
            "stop": draw(near),
            "targets": draw(st.lists(near, min_size=1, max_size=4)),
            "quantity": draw(positive),
        },
        "account": {
            "equity": draw(maybe(positive)),
            "day_pnl_fraction": draw(maybe(st.floats(-1, 10))),
            "drawdown_fraction": draw(maybe(st.floats(0, 1))),
            "consecutive_losses": draw(maybe(st.integers(0, 10))),
            "seconds_since_loss": draw(maybe(st.floats(0, 1e6))),
            "positions": draw(maybe(st.lists(position, max_size=4))),
        },
        "market": {
            "last_close": price,
            "bar_closed_at": AS_OF,
            "bar_seconds": 3600,
            "volume_24h": draw(maybe(st.floats(0, 1e12))),
        },
    }
    return Scenario.from_json(document)


def sane_scenarios() -> st.SearchStrategy[Scenario]:
    """Scenarios close to the plain one, so that many survive every rule."""
    return st.builds(
        lambda atr, quantity, stop, vol, minutes, spread, equity, volume, losses: scenario(
            candidate__atr=atr,
            candidate__volatility_pct=vol,
            candidate__time_to_news_minutes=minutes,
            candidate__spread_bps=spread,
            plan__quantity=quantity,
            plan__stop=stop,
            account__equity=equity,
            account__consecutive_losses=losses,
            account__seconds_since_loss=5000.0,
            market__volume_24h=volume,
        ),
        st.floats(5, 60),
        st.floats(0.01, 30),
        st.floats(1900, 1995),
        st.floats(0, 0.95),
        st.floats(10, 500),
        st.floats(0, 12),
        st.floats(100, 50_000),
        st.floats(5e5, 1e9),
        st.integers(0, 5),
    )
