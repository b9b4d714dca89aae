"""A scenario's values are columns of `decisions` instead of JSON under their names: a number takes
8 bytes there, and some 40 in JSONB.

`whole_decisions` shows the scenario as it was made. Rows that are there already stay as they are,
with nulls in the new columns. R is worked out of numbers instead of JSON, to the same values.

Revision: 0026, after 0025
"""

from __future__ import annotations

from alembic import context, op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None
stops_earlier = True

COLUMNS = {
    "DOUBLE PRECISION": """
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
    "TIMESTAMP WITH TIME ZONE": "market.bar_closed_at",
    "INTEGER": """
        candidate.fear_greed candidate.news_severity candidate.order_flow_flag
        candidate.open_positions candidate.max_trades candidate.pattern_memory.trades
        account.consecutive_losses
    """,
    "BOOLEAN": """
        candidate.near_support candidate.near_resistance candidate.macro_news_safe
        candidate.spoofing_alert
    """,
    "DOUBLE PRECISION[]": "plan.targets",
    "TEXT": """
        candidate.direction candidate.pattern candidate.auction_state candidate.sentiment_bias
        candidate.macro_news_reason candidate.news_summary candidate.symbol_news_summary
        candidate.btc_trend candidate.orderflow
    """,
}
EARLIER = ("symbol", "session", "setup_type", "tier", "score")
SECTIONS = ("candidate", "plan", "account", "market")
INSTANT = """
CREATE FUNCTION advisor_instant(moment timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN replace(
    to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '.000000', ''
) || 'Z';
GRANT EXECUTE ON FUNCTION advisor_instant TO advisor_writer, advisor_reader;
"""
# Of earlier rows all columns are null, and their JSON is whole.
VIEW = """
CREATE VIEW whole_decisions AS
SELECT {columns}, CASE WHEN d.direction IS NULL THEN d.scenario ELSE {scenario} END AS scenario
FROM decisions d;
COMMENT ON VIEW whole_decisions IS
    'Decisions, with the scenario as it was made: what columns say of it, and what they do not';
GRANT SELECT ON whole_decisions TO advisor_writer, advisor_reader;
"""
# One expression each, so that Postgres puts them into the query instead of calling them.
UNIT = """
CREATE FUNCTION advisor_order_risk(quantity float8, entry float8, stop float8) RETURNS float8
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN quantity BETWEEN 1e-15 AND 1e15 AND abs(entry - stop) BETWEEN 1e-15 AND 1e15
       THEN quantity * abs(entry - stop) END;
COMMENT ON FUNCTION advisor_order_risk IS 'quantity x |entry - stop| in quote currency';
CREATE FUNCTION advisor_plan_r(
    plan_risk float8, net_pnl float8, r_multiple float8, own_risk float8
) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN net_pnl = 0 OR net_pnl IS NULL AND r_multiple = 0 THEN 0
    WHEN abs(net_pnl) BETWEEN 1e-15 AND 1e15 THEN net_pnl / plan_risk
    WHEN net_pnl IS NULL AND abs(r_multiple) BETWEEN 1e-15 AND 1e15
    THEN r_multiple * own_risk / plan_risk
END;
COMMENT ON FUNCTION advisor_plan_r IS
    'R: net profit over the risk of the agent''s plan. From net_pnl, else from what was reported '
    'over the own risk of the order';
"""
PLAN = """
CROSS JOIN LATERAL (
    SELECT coalesce(d.plan_quantity, (d.scenario #>> '{plan,quantity}')::float8) AS quantity,
           coalesce(d.plan_entry, (d.scenario #>> '{plan,entry}')::float8) AS entry,
           coalesce(d.plan_stop, (d.scenario #>> '{plan,stop}')::float8) AS stop
    OFFSET 0
) plan
CROSS JOIN LATERAL (
    SELECT advisor_order_risk(plan.quantity, plan.entry, plan.stop) AS risk OFFSET 0
) plans
"""
RS = {
    """CASE WHEN c.decision AND oa.source = 'reported'
           THEN advisor_r(d.scenario -> 'plan', oa.net_pnl, oa.r_multiple, c.quantity,
                          (c.record ->> 'entry')::float8, (c.record ->> 'stop')::float8)
           ELSE advisor_r(d.scenario -> 'plan', oa.net_pnl, oa.r_multiple)
       END AS agent_r""": """advisor_plan_r(plans.risk, oa.net_pnl, oa.r_multiple,
           CASE WHEN c.decision AND oa.source = 'reported'
               THEN advisor_order_risk(coalesce(c.quantity, plan.quantity),
                   coalesce((c.record ->> 'entry')::float8, plan.entry),
                   coalesce((c.record ->> 'stop')::float8, plan.stop))
               ELSE plans.risk
           END) AS agent_r""",
    """advisor_r(d.scenario -> 'plan', ov.net_pnl, ov.r_multiple, coalesce(a.quantity, 0), NULL,
                 a.stop) AS advice_r""": """advisor_plan_r(plans.risk, ov.net_pnl, ov.r_multiple,
           advisor_order_risk(coalesce(a.quantity, 0), plan.entry, coalesce(a.stop, plan.stop))
       ) AS advice_r""",
    "FROM decisions d": f"FROM decisions d{PLAN.rstrip()}",
}
BOOKS = {
    "as_of, symbol, scenario\n    FROM decisions": "as_of, symbol, scenario, account_equity,\n"
    "           plan_quantity, plan_entry, plan_stop\n    FROM decisions",
    "(scenario #>> '{account,equity}')::float8 AS": "coalesce(\n        account_equity,"
    " (scenario #>> '{account,equity}')::float8\n    ) AS",
    "k.scenario -> 'plan' AS plan": "CASE WHEN k.plan_entry IS NULL THEN k.scenario -> 'plan'"
    " ELSE jsonb_build_object('quantity', k.plan_quantity, 'entry', k.plan_entry,\n"
    "               'stop', k.plan_stop) END AS plan",
}
WHOLE = """
ALTER TABLE decisions DISABLE TRIGGER append_only;
UPDATE decisions d SET scenario = {scenario} WHERE d.direction IS NOT NULL;
ALTER TABLE decisions ENABLE TRIGGER append_only;
"""


def upgrade() -> None:
    added = [(_column(path), kind) for kind, paths in COLUMNS.items() for path in paths.split()]
    op.execute(
        "ALTER TABLE decisions " + ", ".join(f"ADD COLUMN {name} {kind}" for name, kind in added)
    )
    op.execute(INSTANT)
    op.execute(whole_decisions())
    op.execute(UNIT)
    op.execute(source())
    op.execute(_changed(_paper_books(), BOOKS))


def downgrade() -> None:
    """A release of before looks for all of it in the JSON."""
    op.execute(WHOLE.format(scenario=scenario()))
    op.execute(_paper_books())
    op.execute(_source_of_before())
    op.execute("DROP FUNCTION advisor_plan_r, advisor_order_risk")
    op.execute("DROP VIEW whole_decisions")
    op.execute("DROP FUNCTION advisor_instant")
    names = (_column(path) for paths in COLUMNS.values() for path in paths.split())
    op.execute("ALTER TABLE decisions " + ", ".join(f"DROP COLUMN {name}" for name in names))


def whole_decisions() -> str:
    """The statement that makes the view."""
    columns = ", ".join(f"d.{name}" for name in columns_of_before() if name != "scenario")
    return VIEW.format(columns=columns, scenario=scenario())


def source() -> str:
    """The statement that makes `comparison_source`."""
    return _changed(_source_of_before(), RS)


def _column(path: str) -> str:
    return path.removeprefix("candidate.").replace(".", "_")


def columns_of_before() -> list[str]:
    """Those that every row has."""
    rows = op.get_bind().exec_driver_sql(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'decisions'::regclass AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum"
    )
    added = {_column(path) for paths in COLUMNS.values() for path in paths.split()}
    return [row.attname for row in rows if row.attname not in added]


def scenario() -> str:
    """The expression of a scenario, put together of columns and what they do not say."""
    built = {section: _section(section) for section in SECTIONS}
    each = ", ".join(
        f"'{section}', {parts} || coalesce(d.scenario -> '{section}', '{{}}')"
        for section, parts in built.items()
    )
    return f"d.scenario || jsonb_build_object({each})"


def _section(section: str) -> str:
    fields = {name: f"d.{name}" for name in EARLIER} if section == "candidate" else {}
    if section == "candidate":
        fields["ts"] = "advisor_instant(d.as_of)"
    objects: dict[str, dict[str, str]] = {}
    for kind, paths in COLUMNS.items():
        for path in paths.split():
            of, name, *inner = path.split(".")
            value = f"d.{_column(path)}"
            value = f"advisor_instant({value})" if kind.startswith("TIMESTAMP") else value
            if of == section and inner:
                objects.setdefault(name, {})[inner[0]] = value
            elif of == section:
                fields[name] = value
    parts = [_object(fields)]
    for name, values in objects.items():
        parts.append(
            f"CASE WHEN num_nonnulls({', '.join(values.values())}) = 0 THEN '{{}}'"
            f" ELSE jsonb_build_object('{name}', {_object(values, nulls=True)}) END"
        )
    return " || ".join(parts)


def _object(fields: dict[str, str], nulls: bool = False) -> str:
    """A function of Postgres takes a hundred arguments. An object within a section keeps nulls."""
    pairs = [f"'{name}', {value}" for name, value in fields.items()]
    parts = (", ".join(pairs[first : first + 50]) for first in range(0, len(pairs), 50))
    built = (f"jsonb_build_object({part})" for part in parts)
    return " || ".join(part if nulls else f"jsonb_strip_nulls({part})" for part in built)


def _changed(view: str, changes: dict[str, str]) -> str:
    for before, now in changes.items():
        assert before in view, before
        view = view.replace(before, now)
    return view


def _source_of_before() -> str:
    text = _written("0015", "SOURCE").replace("CREATE VIEW", "CREATE OR REPLACE VIEW")
    return text.split(";")[0]


def _paper_books() -> str:
    text = _written("0005", "PAPER_BOOKS").replace("JOIN advices a", "JOIN all_advices a")
    return text[text.index("CREATE OR REPLACE VIEW paper_books") :].split(";")[0]


def _written(number: str, name: str) -> str:
    script = context.script.get_revision(number)  # type: ignore[union-attr]
    written: str = getattr(script.module, name)  # type: ignore[union-attr]
    return written
