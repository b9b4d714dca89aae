"""The candidate: every field the trading agent knows before it trades, with unit, range and meaning
of null.

Names, types and ranges follow the first client, the Spot AI Agent. `docs/trade_record_format.md` is
checked against this file. Symbol, direction and time are all that a candidate needs. A field that
is missing, or null, is *not known*; a rule that needs it refuses.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from app.domain.fields import (
    Flag,
    Instant,
    Number,
    Record,
    ShortText,
    Text,
    Whole,
    exact,
    keeping_unknown,
    measure,
)

SYMBOL_PATTERN = r"^[^\s\p{C}]{1,64}$"
"""Any script, any quote currency, as the exchange spells it; no gaps and nothing unseen."""
MAX_EXTRA_KEYS = 256
CLEAR: Literal["clear"] = "clear"
"""Known to be nothing: the calendar was read, and holds no event."""


class Direction(StrEnum):
    LONG = "long"
    SHORT = "short"


class Session(StrEnum):
    """Hour in Asia/Karachi: Asia 0-8, Europe 8-16, US 16-24 (UTC 19-03, 03-11, 11-19)."""

    ASIA = "Asia"
    EUROPE = "Europe"
    US = "US"


def session_at(moment: datetime) -> Session:
    """The session that a time, in UTC, lies in: Karachi is five hours ahead, without summer
    time."""
    return tuple(Session)[(moment.hour + 5) % 24 // 8]


def _session_of(sent: dict[str, Any]) -> Session:
    """The session of a candidate that does not name it. What was refused as a time has none, and is
    refused for that."""
    return session_at(sent["ts"]) if "ts" in sent else Session.ASIA


class Tier(StrEnum):
    TIER1 = "TIER1"
    TIER2 = "TIER2"
    TIER3 = "TIER3"


class SetupType(StrEnum):
    TREND = "trend"
    MEAN_REVERSION = "mean_reversion"
    COUNTER_TREND = "counter_trend"
    NONE = "none"


class AuctionState(StrEnum):
    OUT_OF_BALANCE_TREND = "out_of_balance_trend"
    OUT_OF_BALANCE_REVERT = "out_of_balance_revert"
    BALANCED = "balanced"
    UNKNOWN = "unknown"


class SentimentBias(StrEnum):
    BULLISH = "bullish"
    NEUTRAL = "neutral"
    BEARISH = "bearish"


class BtcTrend(StrEnum):
    UP = "up"
    DOWN = "down"
    FLAT = "flat"


class Orderflow(StrEnum):
    BUYERS = "buyers"
    SELLERS = "sellers"
    NEUTRAL = "neutral"


class PatternMemory(Record):
    """Beta posterior of this pattern's past wins."""

    posterior_mean: Number = measure("probability", "posterior win rate", ge=0, le=1)
    variance: Number = measure("probability^2", "posterior variance", ge=0)
    trades: Whole = measure("count", "trades seen", ge=0)
    alpha: Number = measure("pseudo-count", "Beta alpha", gt=0)
    beta: Number = measure("pseudo-count", "Beta beta", gt=0)


class Social(Record):
    """Aggregate of social posts about the symbol."""

    bias: ShortText | None = measure("label", "direction the posts lean to", null="not classified")
    score: Number | None = measure("ratio", "sentiment", ge=-1, le=1, null="no posts")
    confidence: Number | None = measure(
        "probability", "confidence in score", ge=0, le=1, null="no posts"
    )
    posts: Whole | None = measure("count", "posts read", ge=0, null="not counted")


class Onchain(Record):
    """On-chain flows, as the agent clamps them."""

    score: Number | None = measure("score", "composite", null="no data")
    net_flow: Number | None = measure("normalised", "net exchange flow", null="no data")
    whale_ratio: Number | None = measure("ratio", "share of large transfers", null="no data")


class VolumeProfile(Record):
    """Volume profile of the last leg; prices in quote currency."""

    leg_type: ShortText | None = measure("label", "kind of leg", null="no leg found")
    poc: Number | None = measure("price", "point of control", gt=0, null="no profile")
    lvns: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (),
        max_length=64,
        description="low-volume nodes",
        json_schema_extra={"unit": "price"},
    )
    bin_width: Number | None = measure("price", "width of a bin", gt=0, null="no profile")
    failed_low: Flag | Number | None = measure(
        "flag or price", "failed break of the low", null="not evaluated"
    )


class Candidate(Record):
    """One trade opportunity as the agent saw it at `ts`."""

    symbol: str = Field(
        pattern=SYMBOL_PATTERN,
        description="pair, as the exchange spells it",
        json_schema_extra={"unit": "label"},
    )
    direction: Direction = measure("label", "long, or short: advised where the limits allow it")
    ts: Instant = measure("time", "decision time (as_of), RFC 3339 with offset, stored in UTC")
    session: Session = Field(
        default_factory=_session_of,
        description="trading session at ts",
        json_schema_extra={"unit": "label", "null": "as the hour of ts says"},
    )
    tier: Tier | None = measure("label", "liquidity tier of the symbol", null="not assigned")
    setup_type: SetupType = measure("label", "family of the setup", default=SetupType.NONE)
    pattern: ShortText | None = measure("label", "candle or chart pattern", null="no pattern found")
    auction_state: AuctionState = measure(
        "label", "auction-market state", default=AuctionState.UNKNOWN
    )

    score: Number | None = measure(
        "score 0-10 (about 0-13)",
        "composite score after all adjustments",
        ge=-5,
        le=20,
        null="the agent has no score",
    )
    normalized_score_pre_macro: Number | None = measure(
        "score 0-10", "score before macro", ge=0, le=10, null="not computed"
    )
    score_after_profile: Number | None = measure(
        "score 0-11", "score after the volume profile", ge=0, le=11, null="not computed"
    )
    trend_norm: Number | None = measure(
        "score 0-10", "trend strength", ge=0, le=10, null="not computed"
    )
    mean_rev_norm: Number | None = measure(
        "score 0-10", "mean-reversion strength", ge=0, le=10, null="not computed"
    )
    activation_threshold: Number | None = measure(
        "score 5.5-7.5", "threshold in force for this tier", ge=0, le=20, null="not computed"
    )
    macro_score_adjustment: Number | None = measure(
        "score", "macro adjustment", ge=-3, le=3, null="not applied"
    )
    alt_adjustment: Number | None = measure(
        "score", "altcoin adjustment", ge=-2.75, le=2.75, null="not an altcoin, or no data"
    )
    technical_score: Number | None = measure(
        "score 0-10", "technical score", ge=0, le=10, null="not computed"
    )
    confidence: Number | None = measure(
        "score 0-10", "confidence before the LLM", ge=0, le=10, null="the agent has none"
    )
    score_threshold: Number | None = measure(
        "score", "score needed to pass the agent's gate", ge=0, le=20, null="no such gate"
    )
    pattern_memory: PatternMemory | None = measure(
        "object", "memory of this pattern", null="no memory"
    )

    rsi: Number | None = measure(
        "index 0-100", "relative strength index, 14", ge=0, le=100, null="not computed"
    )
    macd: Number | None = measure("price", "MACD histogram", null="history too short")
    macd_signal: Number | None = measure("price", "MACD signal line", null="history too short")
    adx: Number | None = measure(
        "index 0-100", "average directional index, 14", ge=0, le=100, null="history too short"
    )
    di_plus: Number | None = measure(
        "index 0-100", "+DI, 14", ge=0, le=100, null="history too short"
    )
    di_minus: Number | None = measure(
        "index 0-100", "-DI, 14", ge=0, le=100, null="history too short"
    )
    next_return: Number | None = measure(
        "fraction", "sequence model's forecast of the next return", ge=-1, le=10, null="no forecast"
    )
    atr: Number | None = measure("price", "average true range, 14", gt=0, null="not computed")
    atr_15m_ratio: Number | None = measure(
        "ratio", "15-minute ATR over ATR", gt=0, null="no 15-minute bars"
    )
    hurst: Number | None = measure(
        "exponent, about 0-1", "Hurst exponent", ge=-0.5, le=1.5, null="history too short"
    )
    volatility_pct: Number | None = measure(
        "fraction 0-1", "percentile of ATR in its history", ge=0, le=1, null="history too short"
    )
    htf_trend_pct: Number | None = measure(
        "percent of price", "higher-time-frame trend", ge=-1000, le=1000, null="history too short"
    )
    near_support: Flag | None = measure("flag", "price is near support", null="not evaluated")
    near_resistance: Flag | None = measure("flag", "price is near resistance", null="not evaluated")

    btc_dominance: Number | None = measure(
        "percent 0-100",
        "share of BTC in market value; 50 without an age may be a default",
        ge=0,
        le=100,
        null="no reading",
    )
    fear_greed: Whole | None = measure(
        "index 0-100",
        "crypto fear and greed; 50 without an age may be a default",
        ge=0,
        le=100,
        null="no reading",
    )
    btc_dominance_age_s: Number | None = measure(
        "s", "age of btc_dominance at ts", ge=0, null="age unknown"
    )
    fear_greed_age_s: Number | None = measure(
        "s", "age of fear_greed at ts", ge=0, null="age unknown"
    )
    macro_flags: tuple[ShortText, ...] = Field(
        (),
        max_length=32,
        description="macro gate tokens",
        json_schema_extra={"unit": "labels"},
    )
    sentiment_bias: SentimentBias | None = measure(
        "label", "bias of the macro sentiment", null="no sentiment"
    )
    sentiment_confidence: Number | None = measure(
        "score 0-10", "confidence in the bias", ge=0, le=10, null="no sentiment"
    )
    macro_indicator: Number | None = measure(
        "index", "-100, 0 or 100", ge=-100, le=100, null="not computed"
    )
    macro_news_safe: Flag | None = measure(
        "flag", "no macro event forbids trading", null="not evaluated"
    )
    macro_news_reason: Text | None = measure(
        "untrusted text", "why macro news is unsafe", null="no reason given"
    )
    news_summary: Text | None = measure("untrusted text", "market news", null="no news read")
    symbol_news_summary: Text | None = measure(
        "untrusted text", "news of the symbol", null="no news read"
    )
    news_severity: Whole | None = measure(
        "level 0-3", "severity of the worst item", ge=0, le=3, null="no news read"
    )
    time_to_news_minutes: Annotated[Number, Field(ge=0)] | Literal["clear"] | None = measure(
        "min, or `clear`",
        "time to the nearest scheduled event; `clear`: none is scheduled",
        null="calendar unknown",
    )
    btc_trend: BtcTrend | None = measure("label", "trend of BTCUSDT", null="not evaluated")

    orderflow: Orderflow | None = measure("label", "who is aggressive", null="no order-flow data")
    order_flow_score: Number | None = measure(
        "ratio", "order-flow score", ge=-1, le=1, null="no order-flow data"
    )
    order_flow_flag: Whole | None = measure(
        "-1, 0 or 1", "sign of the flow", ge=-1, le=1, null="no order-flow data"
    )
    order_imbalance: Number | None = measure(
        "percent", "book imbalance", ge=-100, le=100, null="no book"
    )
    cvd: Number | None = measure("normalised", "cumulative volume delta", null="no trades feed")
    cvd_change: Number | None = measure("normalised", "change of cvd", null="no trades feed")
    cvd_divergence: Number | None = measure(
        "normalised", "cvd against price", null="no trades feed"
    )
    cvd_absorption: Number | None = measure("normalised", "absorption", null="no trades feed")
    cvd_accumulation: Number | None = measure("normalised", "accumulation", null="no trades feed")
    taker_buy_ratio: Number | None = measure(
        "ratio", "taker buys against sells", ge=-1, le=1, null="no trades feed"
    )
    trade_imbalance: Number | None = measure(
        "ratio", "trade imbalance", ge=-1, le=1, null="no trades feed"
    )
    aggressive_trade_rate: Number | None = measure(
        "normalised", "rate of aggressive trades", null="no trades feed"
    )
    spoofing_intensity: Number | None = measure("ratio", "spoofing", ge=-1, le=1, null="no book")
    spoofing_alert: Flag | None = measure("flag", "abs(spoofing_intensity) >= 0.5", null="no book")
    volume_ratio: Number | None = measure(
        "ratio", "volume against its mean", ge=-1, le=1, null="history too short"
    )
    price_change_pct: Number | None = measure(
        "fraction", "price change over 5 bars", ge=-1, le=100, null="history too short"
    )
    spread_bps: Number | None = measure(
        "bps", "bid-ask spread over mid", ge=0, le=10_000, null="no book"
    )
    social: Social | None = measure("object", "social sentiment", null="no posts read")
    onchain: Onchain | None = measure("object", "on-chain flows", null="no data")
    volume_profile: VolumeProfile | None = measure("object", "volume profile", null="not computed")
    lvn_level: Number | None = measure("price", "nearest low-volume node", gt=0, null="none near")
    open_positions: Whole | None = measure(
        "count", "the agent's open trades", ge=0, le=10_000, null="not reported"
    )
    max_trades: Whole | None = measure(
        "count", "trades the agent allows at once", ge=0, le=10_000, null="not reported"
    )
    ml_probability: Number | None = measure(
        "probability",
        "the agent's ML win probability",
        ge=0,
        le=1,
        null="not computed at this hook",
    )
    extra: Annotated[dict[str, Any], AfterValidator(exact), Field(max_length=MAX_EXTRA_KEYS)] = (
        Field(
            default_factory=dict,
            description="keys of the candidate that this schema does not know, kept as they came",
            json_schema_extra={"unit": "any JSON"},
        )
    )

    @model_validator(mode="before")
    @classmethod
    def keep_unknown_keys(cls, value: Any) -> Any:
        """Nothing the agent sends is lost: keys this schema does not know move to `extra`."""
        return keeping_unknown(cls, value)
