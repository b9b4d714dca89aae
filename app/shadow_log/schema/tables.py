"""Tables of the shadow log, append-only but for `comparisons`, which is derived. `decisions`,
`advices` and `comparisons` are partitioned by month of `as_of`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    column,
    func,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.domain.errors import InvalidRecord

REVISION = "0028"
"""The schema that this release works with; a test holds it against the newest migration."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Time = DateTime(timezone=True)
PAPER_REQUEST = r"^[A-Za-z0-9._-]+/[A-Z0-9]+/\d{8}T\d{4}$"
"""Request ids of paper runs, as the view `paper_books` tells them from others."""


class Digest(TypeDecorator[str]):
    """A content hash: 32 bytes here, `sha256:` and 64 digits everywhere else."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> bytes | None:
        """Raises `InvalidRecord` for what is no hash."""
        return None if value is None else hash_bytes(value)

    def process_result_value(self, value: bytes | None, dialect: Any) -> str | None:
        return None if value is None else f"{_HASHED}{value.hex()}"


def hash_bytes(said: str) -> bytes:
    """The bytes of a content hash. Raises `InvalidRecord` for what is none."""
    try:
        if len(said) == HASH_LENGTH and said.startswith(_HASHED):
            return bytes.fromhex(said[len(_HASHED) :])
    except ValueError:
        pass
    raise InvalidRecord(f"no content hash: {said[:100]!r}")


_HASHED, HASH_LENGTH = "sha256:", 71


def _now() -> Column[object]:
    return Column("recorded_in_log_at", Time, nullable=False, server_default=func.now())


SCENARIO: dict[TypeEngine[Any], str] = {
    Double(): """
        candidate.normalized_score_pre_macro candidate.score_after_profile candidate.trend_norm
        candidate.mean_rev_norm candidate.activation_threshold candidate.macro_score_adjustment
        candidate.alt_adjustment candidate.technical_score candidate.confidence
        candidate.score_threshold candidate.rsi candidate.macd candidate.macd_signal candidate.adx
        candidate.di_plus candidate.di_minus candidate.next_return candidate.atr
        candidate.atr_15m_ratio candidate.hurst candidate.volatility_pct candidate.htf_trend_pct
        candidate.btc_dominance candidate.btc_dominance_age_s candidate.fear_greed_age_s
        candidate.sentiment_confidence candidate.macro_indicator candidate.time_to_news_minutes
        candidate.order_flow_score candidate.order_imbalance candidate.cvd candidate.cvd_change
        candidate.cvd_divergence candidate.cvd_absorption candidate.cvd_accumulation
        candidate.taker_buy_ratio candidate.trade_imbalance candidate.aggressive_trade_rate
        candidate.spoofing_intensity candidate.volume_ratio candidate.price_change_pct
        candidate.spread_bps candidate.lvn_level candidate.ml_probability
        candidate.pattern_memory.posterior_mean candidate.pattern_memory.variance
        candidate.pattern_memory.alpha candidate.pattern_memory.beta
        plan.entry plan.stop plan.quantity
        account.equity account.day_pnl_fraction account.drawdown_fraction account.seconds_since_loss
        market.last_close market.bar_seconds market.volume_24h
        market.surroundings.volatility_1h market.surroundings.volatility_6h
        market.surroundings.volatility_24h market.surroundings.volatility_7d
        market.surroundings.volatility_same_hours market.surroundings.return_6h
        market.surroundings.return_24h market.surroundings.return_7d market.surroundings.return_30d
        market.surroundings.momentum_rank market.surroundings.volatility_rank
        market.surroundings.market_return_24h market.surroundings.market_volatility_24h
        market.surroundings.btc_return_1h market.surroundings.btc_return_6h
        market.surroundings.btc_return_24h market.surroundings.btc_volatility_24h
    """,
    Time: "market.bar_closed_at",
    Integer(): """
        candidate.fear_greed candidate.news_severity candidate.order_flow_flag
        candidate.open_positions candidate.max_trades candidate.pattern_memory.trades
        account.consecutive_losses
    """,
    Boolean(): """
        candidate.near_support candidate.near_resistance candidate.macro_news_safe
        candidate.spoofing_alert
    """,
    ARRAY(Double): "plan.targets",
    Text(): """
        candidate.direction candidate.pattern candidate.auction_state candidate.sentiment_bias
        candidate.macro_news_reason candidate.news_summary candidate.symbol_news_summary
        candidate.btc_trend candidate.orderflow
    """,
}
"""What of a scenario has a column of its own in `decisions`, by type; the rest stays JSON. A number
takes 8 bytes there, and some 40 under its name in JSONB. In order of size: no room between."""


def column_of(path: str) -> str:
    """The column of a part of a scenario: `rsi` of `candidate.rsi`, `plan_entry` of
    `plan.entry`."""
    return path.removeprefix("candidate.").replace(".", "_")


decision_keys = Table(
    "decision_keys",
    metadata,
    Column("decision_id", Uuid, primary_key=True),
    Column("request_hash", Digest, nullable=False),
    Column("as_of", Time, nullable=False),
)
"""One row per decision for ever, also after its partition is dropped: what makes a decision arrive
exactly once."""

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Uuid, nullable=False),
    Column("as_of", Time, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("received_at", Time, nullable=False),
    Column("evaluated_at", Time, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("setup_type", Text, nullable=False),
    Column("tier", Text),
    Column("regime", Text, nullable=False),
    Column("score", Double),
    Column("state", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("approve", Boolean),
    Column("control_veto_codes", ARRAY(Text), nullable=False),
    Column("prompt_version", Text, nullable=False),
    Column("prompt_hash", Digest, nullable=False),
    Column("limits_version", Text, nullable=False),
    Column("limits_hash", Digest, nullable=False),
    Column("traceparent", Text),
    Column("scenario", JSONB, nullable=False),
    Column("record", JSONB, nullable=False),
    Column("record_hash", Digest, nullable=False),
    _now(),
    Column("principal", Text),
    *(Column(column_of(path), kind) for kind, paths in SCENARIO.items() for path in paths.split()),
    Column("request_hash", Digest),
    Column("prompt_head", Digest),
    Column("prompt_user", Text),
    Column("schema_version", Text),
    PrimaryKeyConstraint("decision_id", "as_of"),
    Index(None, "as_of"),
    Index(None, "symbol", "as_of"),
    Index(None, "request_id", postgresql_where=text(f"request_id ~ '{PAPER_REQUEST}'")),
    Index("ix_decisions_request_id_hash", "request_id", postgresql_using="hash"),
    postgresql_partition_by="RANGE (as_of)",
)

advices = Table(
    "advices",
    metadata,
    Column("decision_id", Uuid, nullable=False),
    Column("as_of", Time, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("manifest_hash", Digest, nullable=False),
    Column("role", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("abstain_reason", Text),
    Column("label", Text),
    Column("approve_probability", Double),
    Column("label_mass", Double),
    Column("veto_codes", ARRAY(Text), nullable=False),
    Column("approve", Boolean),
    Column("action", Text),
    Column("quantity", Double),
    Column("stop", Double),
    Column("record", JSONB, nullable=False),
    Column("win_probability", Double),
    Column("stopped_probability", Double),
    Column("range_atr", Double),
    Column("expected_r", Double),
    Column("log_probabilities", ARRAY(Double)),
    Column("probabilities", ARRAY(Double)),
    Column("calibration", Digest),
    PrimaryKeyConstraint("decision_id", "as_of", "ordinal"),
    Index(None, "model_version", "as_of"),
    postgresql_partition_by="RANGE (as_of)",
)

REPORTED_LATER = {
    "agent_actions": (
        *(Column(name, Double) for name in ("entry", "stop", "atr_at_entry")),
        Column("decided_at", Time),
        *(Column(name, Boolean) for name in ("llm_decision", "llm_approval")),
        Column("targets", ARRAY(Double)),
        *(
            Column(name, Text)
            for name in ("llm_error", "llm_model", "reason", "take_profit_strategy", "micro_plan")
        ),
    ),
    "outcomes": (
        *(
            Column(name, Double)
            for name in (
                "exit_price",
                "fees",
                "slippage",
                "pnl_pct",
                "max_price",
                "holding_seconds",
            )
        ),
        *(Column(name, Text) for name in ("outcome_word", "exit_reason")),
    ),
}
"""Columns of reports that came with migration 0027; rows of before have what they say in JSON."""

agent_actions = Table(
    "agent_actions",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("recorded_at", Time, nullable=False),
    Column("decision", Boolean, nullable=False),
    Column("llm_confidence", Double),
    Column("final_skip_reason", Text),
    Column("size_usd", Double),
    Column("quantity", Double),
    Column("record", JSONB, nullable=False),
    Column("reported_by", Text),
    Column("arrival", Integer),
    *REPORTED_LATER["agent_actions"],
    Index(None, "decision_id"),
    Index(None, "recorded_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("recorded_at", Time, nullable=False),
    Column("arm", Text, nullable=False),
    Column("model_version", Text),
    Column("source", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("exit_time", Time),
    Column("r_multiple", Double),
    Column("net_pnl", Double),
    Column("mae_r", Double),
    Column("mfe_r", Double),
    Column("exogenous_skip", Boolean, nullable=False),
    Column("record", JSONB, nullable=False),
    Column("reported_by", Text),
    Column("arrival", Integer),
    *REPORTED_LATER["outcomes"],
    Index(None, "decision_id"),
    Index(None, "recorded_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
)

rationales = Table(
    "rationales",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("recorded_at", Time, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("text", Text, nullable=False),
    Index(None, "decision_id"),
)

late_advices = Table(
    "late_advices",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("as_of", Time, nullable=False),
    Column("recorded_at", Time, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("manifest_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("abstain_reason", Text),
    Column("label", Text),
    Column("approve_probability", Double),
    Column("label_mass", Double),
    Column("veto_codes", ARRAY(Text), nullable=False),
    Column("approve", Boolean),
    Column("action", Text),
    Column("quantity", Double),
    Column("stop", Double),
    Column("question", Text),
    Column("seconds", Double),
    Column("cost", Double),
    Column("record", JSONB, nullable=False),
    Index(None, "decision_id"),
    Index(None, "model_version", "as_of"),
)
"""Advice of versions that are asked after the reply: one row for a decision and a version."""

repetitions = Table(
    "repetitions",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("decision_id", Uuid, nullable=False),
    Column("recorded_at", Time, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("manifest_hash", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("again_label", Text, nullable=False),
    Column("flipped", Boolean, nullable=False),
    Column("distance", Double, nullable=False),
    Column("record", JSONB, nullable=False),
    Index(None, "decision_id"),
    Index(None, "model_version", "recorded_at"),
)
"""Versions asked again about a decision; no row of it counts as advice."""

state_changes = Table(
    "state_changes",
    metadata,
    Column("event_key", Text, primary_key=True),
    Column("recorded_at", Time, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
)

shared_parts = Table(
    "shared_parts",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("content", JSONB, nullable=False),
)
"""Limits, heads of prompts and calibrations, once each under their hash: what decisions share."""

model_versions = Table(
    "model_versions",
    metadata,
    Column("model_version", Text, primary_key=True),
    Column("manifest_hash", Text, nullable=False),
    Column("manifest", JSONB, nullable=False),
    Column("registered_at", Time, nullable=False, server_default=func.now()),
    UniqueConstraint("manifest_hash"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("alias", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_at", Time, nullable=False, server_default=func.now()),
)
"""Every move of an alias; the newest row of an alias is where it points."""

dropped_months = Table(
    "dropped_months",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("month", Text, nullable=False),
    Column("decisions", BigInteger, nullable=False),
    Column("dropped_at", Time, nullable=False, server_default=func.now()),
)
"""What retention took, so that `advisor verify` can tell it from rows that vanished."""

imported_trades = Table(
    "imported_trades",
    metadata,
    Column("import_id", Uuid, primary_key=True),
    Column("source", Text, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("direction", Text, nullable=False),
    Column("as_of", Time, nullable=False),
    Column("decision", Boolean, nullable=False),
    Column("outcome", Text),
    Column("net_pnl", Double),
    Column("missing", ARRAY(Text), nullable=False),
    Column("scenario", JSONB(none_as_null=True)),
    Column("action", JSONB, nullable=False),
    Column("outcome_record", JSONB(none_as_null=True)),
    _now(),
    Index(None, "as_of"),
)
"""What other programs recorded of trades. A table of its own: no decision was made here, so that no
view, metric or gate can count one."""

limits_proposals = Table(
    "limits_proposals",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("profile", Text, nullable=False),
    Column("toml", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("since", Time),
    Column("until", Time),
    Column("proposed_by", Text, nullable=False),
    Column("proposed_at", Time, nullable=False, server_default=func.now()),
)
"""Limits that somebody would have; `profile` is empty for the general ones."""

limits_reports = Table(
    "limits_reports",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("proposal_id", BigInteger, nullable=False),
    Column("against", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("made_at", Time, nullable=False, server_default=func.now()),
    Index(None, "proposal_id"),
)
"""What a proposal would have done to the record; `against` is the hash of what it was compared
with."""

limits_adoptions = Table(
    "limits_adoptions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("profile", Text, nullable=False),
    Column("previous", BigInteger, nullable=False),
    Column("toml", Text),
    Column("hash", Text, nullable=False),
    Column("file_hash", Text, nullable=False),
    Column("proposal_id", BigInteger),
    Column("report_id", BigInteger),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_at", Time, nullable=False, server_default=func.now()),
    UniqueConstraint("profile", "previous"),
)
"""Which limits judge in the place of a file's, each after the one before it (`previous`; 0: none);
the newest counts where the file is the one that was replaced (`file_hash`). Without text the file
judges again."""

links = Table(
    "links",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("producer_id", Integer, nullable=False),
    Column("fate", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("previous", LargeBinary, nullable=False),
    Column("key", Text, nullable=False),
    Column("other_claim", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("producer_id", "seq", "fate"),
    Index(None, "key", postgresql_using="hash"),
    Index(None, "fate", "id", postgresql_where=text("fate IN ('accepted', 'forgotten')")),
)
"""One row per numbered event for ever. `id` is the order in the tree of the checkpoints; hashes are
bytes, and `other_claim` is empty where the claim is the key."""

link_producers = Table(
    "link_producers",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False),
    UniqueConstraint("name"),
)

event_links = table(
    "event_links",
    column("id", BigInteger),
    column("producer", Text),
    column("seq", BigInteger),
    column("fate", Text),
    column("previous", Text),
    column("kind", Text),
    column("key", Text),
    column("claim", Text),
    column("payload", Text),
)
"""The view that reads `links` as they were given: what proofs are made of."""

put_aside = Table(
    "put_aside",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("claim", Text, nullable=False),
    Column("payload_hash", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("put_aside_at", Time, nullable=False, server_default=func.now()),
    UniqueConstraint("kind", "key", "payload_hash"),
)

chain_heads = Table(
    "chain_heads",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("producer", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("seen_at", Time, nullable=False, server_default=func.now()),
    Index(None, "producer", "seq"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("decision_id", Uuid, nullable=False),
    Column("as_of", Time, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("received_at", Time, nullable=False),
    Column("symbol", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("setup_type", Text, nullable=False),
    Column("tier", Text),
    Column("regime", Text, nullable=False),
    Column("score", Double),
    Column("state", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("agent_approve", Boolean),
    Column("final_skip_reason", Text),
    Column("llm_confidence", Double),
    Column("control_veto_codes", ARRAY(Text), nullable=False),
    Column("status", Text, nullable=False),
    Column("abstain_reason", Text),
    Column("label", Text),
    Column("approve_probability", Double),
    Column("label_mass", Double),
    Column("advice_approve", Boolean),
    Column("advice_action", Text),
    Column("advice_quantity", Double),
    Column("advice_stop", Double),
    Column("veto_codes", ARRAY(Text), nullable=False),
    Column("agree", Boolean),
    *(
        Column(f"{arm}_{name}", kind)
        for arm in ("agent", "advice")
        for name, kind in (
            ("outcome", Text),
            ("outcome_source", Text),
            ("r", Double),
            ("pnl", Double),
        )
    ),
    Column("win_probability", Double),
    Column("stopped_probability", Double),
    Column("range_atr", Double),
    Column("expected_r", Double),
    PrimaryKeyConstraint("decision_id", "as_of", "ordinal", "model_version"),
    Index(None, "as_of", "decision_id"),
    postgresql_partition_by="RANGE (as_of)",
)
"""Derived, and the one table whose rows change: see `app.shadow_log.comparisons`."""

advice_days = Table(
    "advice_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("role", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "decisions",
            "abstained",
            "compared",
            "agreements",
            "agent_approvals",
            "advice_approvals",
            "judged",
        )
    ),
    *(Column(name, Numeric, nullable=False) for name in ("agent_r", "advice_r")),
)
chance_days = Table(
    "chance_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    Column("fifth", Integer, primary_key=True, autoincrement=False),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    *(Column(name, BigInteger, nullable=False) for name in ("decisions", "won")),
    Column("told", Numeric, nullable=False),
)
veto_days = Table(
    "veto_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("code", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "refused",
            "with_outcome",
            "with_pnl",
            "alone_with_outcome",
            "losers",
            "winners",
        )
    ),
    *(Column(name, Numeric, nullable=False) for name in ("r", "pnl", "r_alone")),
)
pair_days = Table(
    "pair_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("one", Text, primary_key=True),
    Column("other", Text, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    *(Column(name, BigInteger, nullable=False) for name in ("decisions", "agreements")),
)
DAYS = (advice_days, chance_days, veto_days, pair_days)
"""Sums by day of what `comparisons` says, kept by its triggers; of each day as many rows as ever
appended at once (`slot`)."""

PARTITIONED = ("decisions", "advices", "comparisons")
"""Dropping a month of all is the only way in which rows leave. Written, made and dropped in this
order."""

OWN_KEYS = {
    "model": ("model_version", "manifest_hash"),
    "alias": ("id", "model_version"),
    "month": ("id", "month"),
    "imported_trade": ("import_id", "source"),
    "limits_proposal": ("id", "hash"),
    "limits_report": ("id", "against"),
    "limits_adoption": ("id", "hash"),
}
"""Kinds of rows that the log links by itself: which columns are key and claim of the link."""
OWN_TABLES = {
    "model": model_versions,
    "alias": aliases,
    "month": dropped_months,
    "imported_trade": imported_trades,
    "limits_proposal": limits_proposals,
    "limits_report": limits_reports,
    "limits_adoption": limits_adoptions,
}


def summed(days: Table) -> dict[str, str]:
    """What the rows of a table of `DAYS` sum up, by the type that its sum is told as."""
    told = {"BIGINT": "bigint", "NUMERIC": "float8"}
    return {c.name: told[str(c.type)] for c in days.c if not c.primary_key}
