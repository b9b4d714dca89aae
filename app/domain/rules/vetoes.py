"""The closed set of vetoes, and the rule behind each.

A rule is a pure function of (case, limits) that gives a `Refusal` or None. It is declared once,
with its code, its table of the limits and the fields it reads there; its docstring is its row in
docs/vetoes.md. A missing input refuses unless that table says `when_missing = "pass"`. Comparisons
are written so that NaN refuses. `review.py` runs the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from math import isfinite
from typing import NamedTuple, TypeVar

from app.domain.candidate import CLEAR, BtcTrend, Direction
from app.domain.model.outlook import Outlook
from app.domain.rules.case import Case, Scene, TradingState
from app.domain.rules.limits import ExcessLimits, Limits, RuleLimits
from app.domain.scenario import Position, Scenario, pair_of


class VetoCode(StrEnum):
    """Closed set; each has a row in docs/vetoes.md."""

    STATE_HALTED = "STATE_HALTED"
    STATE_REDUCING = "STATE_REDUCING"
    STALE_SNAPSHOT = "STALE_SNAPSHOT"
    INPUT_SANITY = "INPUT_SANITY"
    PRICE_SANITY = "PRICE_SANITY"
    DIRECTION = "DIRECTION"
    STOP_DISTANCE = "STOP_DISTANCE"
    BTC_TREND_CONFLICT = "BTC_TREND_CONFLICT"
    NEWS_WINDOW = "NEWS_WINDOW"
    MACRO_NEWS = "MACRO_NEWS"
    VOLATILITY_SPIKE = "VOLATILITY_SPIKE"
    REWARD_RISK = "REWARD_RISK"
    COST_OVER_RISK = "COST_OVER_RISK"
    SPREAD = "SPREAD"
    LIQUIDITY = "LIQUIDITY"
    RISK_PER_TRADE = "RISK_PER_TRADE"
    FORETOLD_RANGE = "FORETOLD_RANGE"
    SYMBOL_EXPOSURE = "SYMBOL_EXPOSURE"
    TOTAL_EXPOSURE = "TOTAL_EXPOSURE"
    MIN_NOTIONAL = "MIN_NOTIONAL"
    OPEN_POSITIONS = "OPEN_POSITIONS"
    DAILY_LOSS = "DAILY_LOSS"
    DRAWDOWN = "DRAWDOWN"
    CONSECUTIVE_LOSSES = "CONSECUTIVE_LOSSES"
    COOL_DOWN = "COOL_DOWN"
    DUPLICATE_SYMBOL = "DUPLICATE_SYMBOL"
    RESTRICTED_SYMBOL = "RESTRICTED_SYMBOL"
    SESSION_CLOSED = "SESSION_CLOSED"
    MAINTENANCE_WINDOW = "MAINTENANCE_WINDOW"
    MODEL_CONFIDENCE = "MODEL_CONFIDENCE"
    RULE_FAILED = "RULE_FAILED"


class Refusal(NamedTuple):
    """What a rule saw, and the limit that it compares with."""

    observed: float | str | None
    limit: float | str | None = None


class MissingInput(Exception):
    """A rule needs an input that is not known; the argument names it."""


Known = TypeVar("Known")
Check = Callable[[Case, Limits], Refusal | None]
SceneCheck = Callable[[Scene, Limits], Refusal | None]


class Rule(NamedTuple):
    """A declared rule.

    Parameters
    ----------
    section : its table of the limits, which says what a missing input does; "" has none.
    fields : what it reads in that table.
    of_order : whether it judges the order; else it says the same of every order of a scenario.
    """

    code: VetoCode
    section: str
    fields: tuple[str, ...]
    check: Check
    of_order: bool

    @property
    def row(self) -> str:
        """Its row in docs/vetoes.md."""
        refuses = " ".join((self.check.__doc__ or "").split())
        limits = ", ".join(f"`{self.section}.{field}`" for field in self.fields)
        return f"| `{self.code}` | {refuses} | {limits or '-'} |"


_declared: list[Rule] = []
_declared_after_caps: list[Rule] = []


def rule(code: VetoCode, section: str = "", *fields: str) -> Callable[[SceneCheck], SceneCheck]:
    """Declare a rule that looks at no order. Rules run, and their refusals are recorded, in the
    order of this file."""

    def declare(check: SceneCheck) -> SceneCheck:
        _declared.append(Rule(code, section, fields, check, of_order=False))
        return check

    return declare


def order_rule(
    code: VetoCode, section: str = "", *fields: str, after_caps: bool = False
) -> Callable[[Check], Check]:
    """Declare a rule that judges an order; `after_caps`: the one that the caps left."""

    def declare(check: Check) -> Check:
        declared = _declared_after_caps if after_caps else _declared
        declared.append(Rule(code, section, fields, check, of_order=True))
        return check

    return declare


def known(value: Known | None, name: str) -> Known:
    """`value`, or `MissingInput` when it is not known."""
    if value is None:
        raise MissingInput(name)
    return value


def passes(scene: Scene, table: RuleLimits | None, name: str) -> bool:
    """Whether a rule may do without an input that is missing. One that was sent and left out is not
    missing."""
    return table is not None and table.when_missing != "refuse" and not scene.scenario.lost(name)


def calm(scene: Scene, table: RuleLimits, name: str) -> bool:
    """Whether an input, if it is missing, counts as calm."""
    return table.when_missing == "calm" and not scene.scenario.lost(name)


def reaches(value: float, limit: float, limits: Limits) -> bool:
    """value >= limit, or equal within the limits' tolerance. False for NaN."""
    return value >= limit - (limits.tolerance or 0.0) * abs(limit)


def within(value: float, limit: float, limits: Limits) -> bool:
    """value <= limit, or equal within the limits' tolerance. False for NaN."""
    return value <= limit + (limits.tolerance or 0.0) * abs(limit)


def below(value: float, limit: float, limits: Limits) -> bool:
    """value < limit, and not equal within the limits' tolerance. False for NaN."""
    return value < limit - (limits.tolerance or 0.0) * abs(limit)


@rule(VetoCode.STATE_HALTED)
def state_halted(scene: Scene, limits: Limits) -> Refusal | None:
    """The trading state (`PUT /state`) is HALTED, or not known."""
    return Refusal(scene.state) if scene.state is TradingState.HALTED else None


@rule(VetoCode.STATE_REDUCING)
def state_reducing(scene: Scene, limits: Limits) -> Refusal | None:
    """The state is REDUCING: every spot entry is new exposure."""
    return Refusal(scene.state) if scene.state is TradingState.REDUCING else None


@rule(
    VetoCode.STALE_SNAPSHOT, "stale_snapshot", "max_age_s", "max_clock_skew_s", "max_bar_age_bars"
)
def stale_snapshot(scene: Scene, limits: Limits) -> Refusal | None:
    """The scenario is older, or further in the future, than allowed (s), or its last bar is
    (bars)."""
    bound = limits.stale_snapshot
    age = (scene.now - scene.scenario.as_of).total_seconds()
    if not -bound.max_clock_skew_s <= age <= bound.max_age_s:
        return Refusal(age, bound.max_age_s)
    market = scene.scenario.market
    since = scene.scenario.as_of - known(market.bar_closed_at, "market.bar_closed_at")
    bars = since.total_seconds() / known(market.bar_seconds, "market.bar_seconds")
    if not 0 <= bars <= bound.max_bar_age_bars:
        return Refusal(f"last bar closed {bars:.2f} bars ago", bound.max_bar_age_bars)
    return None


@rule(VetoCode.INPUT_SANITY, "input_sanity", "max_atr_fraction", "max_entry_gap_fraction")
def input_sanity(scene: Scene, limits: Limits) -> Refusal | None:
    """Units do not fit: ATR is too large a share of price, entry too far from the last close."""
    bound, s = limits.input_sanity, scene.scenario
    last_close, atr = known(s.market.last_close, "market.last_close"), s.candidate.atr
    if atr is not None or not passes(scene, bound, "atr"):
        share = known(atr, "atr") / last_close
        if not (share > 0 and within(share, bound.max_atr_fraction, limits)):
            return Refusal(f"atr is {share:.4g} of last_close", bound.max_atr_fraction)
    gap = abs(s.plan.entry / last_close - 1)
    if not within(gap, bound.max_entry_gap_fraction, limits):
        return Refusal(f"entry is {gap:.4g} away from last_close", bound.max_entry_gap_fraction)
    return None


@order_rule(VetoCode.PRICE_SANITY)
def price_sanity(case: Case, limits: Limits) -> Refusal | None:
    """Not 0 < stop < entry < target (of a short the other way round), or no positive quantity, in
    the order or in the agent's plan."""
    order, plan = case.order, case.scenario.plan
    if not (isfinite(order.target) and isfinite(order.quantity) and order.quantity > 0):
        return Refusal("quantity or target is not a positive number")
    for name, stop, entry in (
        ("stop", order.stop, order.entry),
        ("plan.stop", plan.stop, plan.entry),
    ):
        if not stop > 0 or not order.side * stop < order.side * entry:
            between = "between 0 and" if order.side == 1 else "above"
            return Refusal(f"{name} {stop:.10g} is not {between} entry", entry)
        if name == "stop" and not order.reward > 0:
            beyond = "above" if order.side == 1 else "below"
            return Refusal(f"target {order.target:.10g} is not {beyond} entry", order.entry)
    return None


@rule(VetoCode.DIRECTION, "direction", "allowed")
def direction(scene: Scene, limits: Limits) -> Refusal | None:
    """The direction is not allowed: long alone, where nothing else is said."""
    side = scene.scenario.candidate.direction
    allowed = limits.direction.allowed if limits.direction is not None else (Direction.LONG,)
    return None if side in allowed else Refusal(side, ", ".join(allowed))


@order_rule(
    VetoCode.STOP_DISTANCE, "stop_distance", "min_atr", "max_atr", "min_fraction", "max_fraction"
)
def stop_distance(case: Case, limits: Limits) -> Refusal | None:
    """The stop is too near; or too far, where `stop_distance.on_excess` is `refuse` (price
    units)."""
    floor, ceiling = stop_bounds(case, limits)
    distance = case.order.distance
    if not distance >= floor:
        return Refusal(distance, floor)
    too_far = not distance <= ceiling
    if too_far and (limits.stop_distance.on_excess == "refuse" or ceiling < floor):
        return Refusal(distance, ceiling)
    return None


def stop_bounds(case: Case, limits: Limits) -> tuple[float, float]:
    """Least and greatest distance of the stop, price units. Raises `MissingInput`, unless the rule
    may do without the ATR."""
    bound, atr, entry = limits.stop_distance, case.scenario.candidate.atr, case.order.entry
    floors, ceilings = [bound.min_fraction * entry], [bound.max_fraction * entry]
    if atr is not None or not passes(case, bound, "atr"):
        floors.append(bound.min_atr * known(atr, "atr"))
        ceilings.append(bound.max_atr * known(atr, "atr"))
    # One part in 10^9 of slack: 1.5 ATR below entry is 1.5 ATR, whatever the rounding of the
    # subtraction says.
    return max(floors) * (1 - 1e-9), min(ceilings) * (1 + 1e-9)


@rule(VetoCode.BTC_TREND_CONFLICT, "btc_trend_conflict", "allowed_setups")
def btc_trend_conflict(scene: Scene, limits: Limits) -> Refusal | None:
    """BTC falls and the setup is not an allowed one."""
    trend = known(scene.scenario.candidate.btc_trend, "btc_trend")
    setup = scene.scenario.candidate.setup_type
    if trend is not BtcTrend.DOWN or setup in limits.btc_trend_conflict.allowed_setups:
        return None
    return Refusal(f"{setup} while BTC is {trend}")


@rule(VetoCode.NEWS_WINDOW, "news_window", "min_minutes", "systemic_severity", "systemic_minutes")
def news_window(scene: Scene, limits: Limits) -> Refusal | None:
    """A scheduled event is too near (min); the window is longer from a severity on."""
    bound, candidate = limits.news_window, scene.scenario.candidate
    minutes, severity = candidate.time_to_news_minutes, candidate.news_severity
    if minutes is None and calm(scene, bound, "time_to_news_minutes"):
        return None
    if severity is None and calm(scene, bound, "news_severity"):
        severity = 0
    if minutes is None:
        raise MissingInput("time_to_news_minutes")
    systemic = known(severity, "news_severity") >= bound.systemic_severity
    limit = max(bound.min_minutes, bound.systemic_minutes) if systemic else bound.min_minutes
    if minutes == CLEAR or reaches(minutes, limit, limits):
        return None
    return Refusal(minutes, limit)


@rule(VetoCode.MACRO_NEWS, "news_window", "allow_unsafe_macro")
def macro_news(scene: Scene, limits: Limits) -> Refusal | None:
    """The agent's macro gate calls trading unsafe."""
    safe = known(scene.scenario.candidate.macro_news_safe, "macro_news_safe")
    return None if safe or limits.news_window.allow_unsafe_macro else Refusal("unsafe")


@rule(VetoCode.VOLATILITY_SPIKE, "volatility_spike", "max_percentile")
def volatility_spike(scene: Scene, limits: Limits) -> Refusal | None:
    """The ATR percentile (0-1) is at or above the limit."""
    percentile = known(scene.scenario.candidate.volatility_pct, "volatility_pct")
    limit = limits.volatility_spike.max_percentile
    return None if below(percentile, limit, limits) else Refusal(percentile, limit)


@order_rule(
    VetoCode.REWARD_RISK,
    "reward_risk",
    "min_ratio",
    "high_volatility_percentile",
    "min_ratio_high_volatility",
)
def reward_risk(case: Case, limits: Limits) -> Refusal | None:
    """Nearest target over stop distance is below the limit, which is higher in high volatility."""
    bound, order = limits.reward_risk, case.order
    percentile = case.scenario.candidate.volatility_pct
    if percentile is None and calm(case, bound, "volatility_pct"):
        percentile = 0.0
    percentile = known(percentile, "volatility_pct")
    quiet = below(percentile, bound.high_volatility_percentile, limits)
    limit = bound.min_ratio if quiet else max(bound.min_ratio, bound.min_ratio_high_volatility)
    ratio = order.reward / order.distance
    return None if reaches(ratio, limit, limits) else Refusal(ratio, limit)


@rule(VetoCode.SPREAD, "spread", "max_bps")
def spread(scene: Scene, limits: Limits) -> Refusal | None:
    """The spread is above the limit (bps)."""
    value = known(scene.scenario.candidate.spread_bps, "spread_bps")
    limit = limits.spread.max_bps
    return None if within(value, limit, limits) else Refusal(value, limit)


@order_rule(VetoCode.LIQUIDITY, "liquidity", "min_volume_24h", "max_volume_fraction")
def liquidity(case: Case, limits: Limits) -> Refusal | None:
    """The 24 h volume (quote) is below the floor; or the order is above its share, where
    `liquidity.on_excess` is `refuse`."""
    bound = limits.liquidity
    volume = known(case.scenario.market.volume_24h, "market.volume_24h")
    if not reaches(volume, bound.min_volume_24h, limits):
        return Refusal(volume, bound.min_volume_24h)
    return _excess(case.order.notional, bound.max_volume_fraction * volume, bound, limits)


@order_rule(VetoCode.RISK_PER_TRADE, "risk_per_trade", "max_equity_fraction")
def risk_per_trade(case: Case, limits: Limits) -> Refusal | None:
    """Nothing may be risked (quote); or too much is, where `risk_per_trade.on_excess` is
    `refuse`."""
    bound = limits.risk_per_trade
    allowed = bound.max_equity_fraction * known(case.scenario.account.equity, "account.equity")
    return _excess(case.order.risk, allowed, bound, limits)


@order_rule(VetoCode.FORETOLD_RANGE, "foretold_range", "max_equity_fraction")
def foretold_range(case: Case, limits: Limits) -> Refusal | None:
    """The range that the version foretells may not move the account at all; or would move it by
    more than this share of equity, where `foretold_range.on_excess` is `refuse`. Not asked of the
    control."""
    bound, room = limits.foretold_range, range_room(case, limits)
    if bound is None or room is None:
        return None
    return _excess(case.order.notional, room, bound, limits)


def range_room(case: Case, limits: Limits) -> float | None:
    """Notional (quote) that the foretold range moves by as much as the limit allows; None where
    nobody asks. Raises `MissingInput`."""
    bound, s = limits.foretold_range, case.scenario
    if bound is None or case.approve_probability is None:
        return None
    foretold = known((case.outlook or Outlook()).range_atr, "range_atr")
    share_of_price = foretold * known(s.candidate.atr, "atr") / case.order.entry
    return bound.max_equity_fraction * known(s.account.equity, "account.equity") / share_of_price


@order_rule(VetoCode.SYMBOL_EXPOSURE, "exposure", "max_symbol_fraction")
def symbol_exposure(case: Case, limits: Limits) -> Refusal | None:
    """No room is left for the symbol (quote); or too little, where `exposure.on_excess` is
    `refuse`."""
    room = symbol_room(case.scenario, limits)
    return _excess(case.order.notional, room, limits.exposure, limits)


@order_rule(VetoCode.TOTAL_EXPOSURE, "exposure", "max_total_fraction")
def total_exposure(case: Case, limits: Limits) -> Refusal | None:
    """No room is left in the book (quote); or too little, where `exposure.on_excess` is
    `refuse`."""
    room = total_room(case.scenario, limits)
    return _excess(case.order.notional, room, limits.exposure, limits)


def symbol_room(s: Scenario, limits: Limits) -> float:
    equity = known(s.account.equity, "account.equity")
    pair = pair_of(s.candidate.symbol)
    held = [p for p in _positions(s) if p.symbol is None or pair_of(p.symbol) == pair]
    return limits.exposure.max_symbol_fraction * equity - _notional(held)


def total_room(s: Scenario, limits: Limits) -> float:
    equity = known(s.account.equity, "account.equity")
    return limits.exposure.max_total_fraction * equity - _notional(_positions(s))


def _positions(s: Scenario) -> tuple[Position, ...]:
    return known(s.account.positions, "account.positions")


def _notional(positions: Iterable[Position]) -> float:
    """Together, longs and shorts alike. Raises `MissingInput` when a position is told in part."""
    return sum(known(p.notional, "account.positions[].notional") for p in positions)


def _excess(observed: float, allowed: float, table: ExcessLimits, limits: Limits) -> Refusal | None:
    """Refuse when nothing is allowed, or when more than allowed is asked and the limit does not
    cap."""
    capped = table.on_excess == "cap" and isfinite(observed)
    if allowed > 0 and (capped or within(observed, allowed, limits)):
        return None
    return Refusal(observed, allowed)


@rule(VetoCode.OPEN_POSITIONS, "open_positions", "max_count")
def open_positions(scene: Scene, limits: Limits) -> Refusal | None:
    """As many positions are open as allowed."""
    positions = scene.scenario.account.positions
    count = len(positions) if positions is not None else None
    reported = scene.scenario.candidate.open_positions
    if count is None and reported is None:
        raise MissingInput("account.positions")
    number = max(count or 0, reported or 0)
    limit = limits.open_positions.max_count
    return None if number < limit else Refusal(number, limit)


@rule(VetoCode.DAILY_LOSS, "daily_loss", "max_fraction")
def daily_loss(scene: Scene, limits: Limits) -> Refusal | None:
    """The day's loss has reached the limit (fraction of equity)."""
    pnl = known(scene.scenario.account.day_pnl_fraction, "account.day_pnl_fraction")
    limit = -limits.daily_loss.max_fraction
    return None if below(-pnl, -limit, limits) else Refusal(pnl, limit)


@rule(VetoCode.DRAWDOWN, "drawdown", "max_fraction")
def drawdown(scene: Scene, limits: Limits) -> Refusal | None:
    """The fall from the peak has reached the limit (fraction)."""
    value = known(scene.scenario.account.drawdown_fraction, "account.drawdown_fraction")
    limit = limits.drawdown.max_fraction
    return None if below(value, limit, limits) else Refusal(value, limit)


@rule(VetoCode.CONSECUTIVE_LOSSES, "consecutive_losses", "max_count")
def consecutive_losses(scene: Scene, limits: Limits) -> Refusal | None:
    """As many losses in a row as allowed."""
    count = known(scene.scenario.account.consecutive_losses, "account.consecutive_losses")
    limit = limits.consecutive_losses.max_count
    return None if count < limit else Refusal(count, limit)


@rule(VetoCode.COOL_DOWN, "consecutive_losses", "cool_down_after", "cool_down_s")
def cool_down(scene: Scene, limits: Limits) -> Refusal | None:
    """Too soon after a run of losses (s)."""
    bound, account = limits.consecutive_losses, scene.scenario.account
    if known(account.consecutive_losses, "account.consecutive_losses") < bound.cool_down_after:
        return None
    waited = known(account.seconds_since_loss, "account.seconds_since_loss")
    limit = bound.cool_down_s
    return None if reaches(waited, limit, limits) else Refusal(waited, limit)


@rule(VetoCode.DUPLICATE_SYMBOL, "exposure")
def duplicate_symbol(scene: Scene, limits: Limits) -> Refusal | None:
    """The symbol is held already, however it is spelt."""
    symbol = scene.scenario.candidate.symbol
    held = [p.symbol for p in _positions(scene.scenario)]
    if any(name is not None and pair_of(name) == pair_of(symbol) for name in held):
        return Refusal(symbol)
    if None in held:
        raise MissingInput("account.positions[].symbol")
    return None


@rule(VetoCode.RESTRICTED_SYMBOL, "restricted_symbols", "symbols")
def restricted_symbol(scene: Scene, limits: Limits) -> Refusal | None:
    """The symbol is on the list."""
    symbol = scene.scenario.candidate.symbol
    restricted = {pair_of(name) for name in limits.restricted_symbols.symbols}
    return Refusal(symbol) if pair_of(symbol) in restricted else None


@rule(VetoCode.SESSION_CLOSED, "trading_hours", "sessions")
def session_closed(scene: Scene, limits: Limits) -> Refusal | None:
    """The session is not among those that may trade."""
    session, allowed = scene.scenario.candidate.session, limits.trading_hours.sessions
    return None if session in allowed else Refusal(session, ", ".join(allowed))


@rule(VetoCode.MAINTENANCE_WINDOW, "trading_hours", "daily_maintenance", "maintenance")
def maintenance_window(scene: Scene, limits: Limits) -> Refusal | None:
    """Now lies in a window (UTC)."""
    window = limits.trading_hours.closed_by(scene.now)
    return Refusal(scene.now.isoformat(), window) if window else None


@order_rule(
    VetoCode.MODEL_CONFIDENCE,
    "model_confidence",
    "min_approve_probability",
    "min_win_probability",
    "min_expected_r",
)
def model_confidence(case: Case, limits: Limits) -> Refusal | None:
    """The policy's approvals have too little probability together; or, where these limits are set,
    its chance that the plan wins or its expected R is below them. Not asked of the control."""
    if case.approve_probability is None:
        return None
    bound, outlook = limits.model_confidence, case.outlook or Outlook()
    asked = (
        ("approve_probability", case.approve_probability, bound.min_approve_probability),
        ("win_probability", outlook.win_probability, bound.min_win_probability),
        ("expected_r", outlook.expected_r, bound.min_expected_r),
    )
    for name, value, limit in asked:
        if limit is not None and not reaches(known(value, name), limit, limits):
            return Refusal(value if name == "approve_probability" else f"{name} {value:.4f}", limit)
    return None


@order_rule(VetoCode.MIN_NOTIONAL, "exposure", "min_notional", "max_notional", after_caps=True)
def min_notional(case: Case, limits: Limits) -> Refusal | None:
    """What is left after the caps is too small to trade (quote)."""
    order, limit = case.order, limits.exposure.min_notional
    if not reaches(order.notional, limit, limits) or order.quantity <= 0:
        return Refusal(order.notional if isfinite(order.notional) else None, limit)
    return None


@order_rule(
    VetoCode.COST_OVER_RISK, "cost", "fee", "slippage", "max_share_of_risk", after_caps=True
)
def cost_over_risk(case: Case, limits: Limits) -> Refusal | None:
    """Entry and exit together cost more than this share of the order's risk: twice fee and
    slippage, and the spread where it is known."""
    bound, order = limits.cost, case.order
    if bound is None:
        return None
    spread = (case.scenario.candidate.spread_bps or 0.0) / 10_000
    share = (2 * (bound.fee + bound.slippage) + spread) * order.entry / order.distance
    limit = bound.max_share_of_risk
    return None if within(share, limit, limits) else Refusal(share, limit)


RULES = tuple(_declared)
AFTER_CAPS = tuple(_declared_after_caps)
