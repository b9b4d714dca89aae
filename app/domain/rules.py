"""Every rule, the caps, and `review()`, which runs them all. See `veto.py` for the words and the
contract."""

from __future__ import annotations

from math import isfinite

from app.domain.actions import Action
from app.domain.candidate import BtcTrend, Direction
from app.domain.limits import Limits, RuleLimits
from app.domain.scenario import Scenario
from app.domain.veto import (
    Cap,
    Case,
    MissingInput,
    Order,
    Review,
    Rule,
    TradingState,
    Veto,
    VetoCode,
    known,
)


def order_for(action: Action, scenario: Scenario) -> Order:
    """The order that an approving action means: its stop in ATR below entry, and the quantity that
    follows.

    quantity = min(agent's quantity, fraction x agent's risk / stop distance): never more than the
    agent's own risk, never more than its own notional.
    """
    plan = scenario.plan
    distance = action.stop_atr * scenario.candidate.atr
    quantity = min(plan.quantity, action.risk_fraction * plan.risk / distance)
    return Order(plan.entry, plan.entry - distance, min(plan.targets), quantity)


def agents_order(scenario: Scenario) -> Order:
    """The agent's own plan as an order."""
    plan = scenario.plan
    return Order(plan.entry, plan.stop, min(plan.targets), plan.quantity)


def review(case: Case, limits: Limits) -> Review:
    """Run every rule on `case` and cap its order. Total: whatever a rule does, a verdict comes
    back."""
    vetoes = [
        veto for code, section, rule in RULES if (veto := _judge(code, section, rule, case, limits))
    ]
    order: Order = case.order
    caps: tuple[Cap, ...] = ()
    try:
        order, caps = _cap(case, limits)
    except Exception as error:
        vetoes.append(_failed("caps", error))
    if order.notional < limits.exposure.min_notional or order.quantity <= 0:
        vetoes.append(
            Veto(
                code=VetoCode.MIN_NOTIONAL,
                observed=_number(order.notional),
                limit=limits.exposure.min_notional,
            )
        )
    return Review(
        vetoes=tuple(vetoes), caps=caps, quantity=_number(order.quantity), stop=_number(order.stop)
    )


def _judge(code: VetoCode, section: str, rule: Rule, case: Case, limits: Limits) -> Veto | None:
    """One rule, failing closed."""
    try:
        return rule(case, limits)
    except MissingInput as missing:
        passes: RuleLimits | None = getattr(limits, section, None)
        if passes is not None and passes.when_missing == "pass":
            return None
        return Veto(code=code, missing=str(missing))
    except Exception as error:
        return _failed(code.value, error)


def _failed(what: str, error: Exception) -> Veto:
    return Veto(
        code=VetoCode.RULE_FAILED, observed=f"{what}: {type(error).__name__}: {error}"[:300]
    )


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _refuse(code: VetoCode, observed: float | str, limit: float | str | None = None) -> Veto:
    return Veto(code=code, observed=observed, limit=limit)


def state_halted(case: Case, limits: Limits) -> Veto | None:
    """HALTED refuses every trade."""
    return _refuse(VetoCode.STATE_HALTED, case.state) if case.state is TradingState.HALTED else None


def state_reducing(case: Case, limits: Limits) -> Veto | None:
    """REDUCING refuses new exposure; every spot entry is new exposure."""
    return (
        _refuse(VetoCode.STATE_REDUCING, case.state)
        if case.state is TradingState.REDUCING
        else None
    )


def stale_snapshot(case: Case, limits: Limits) -> Veto | None:
    """The scenario is too old (s), from the future, or its last bar is (in bar lengths)."""
    bound = limits.stale_snapshot
    age = (case.now - case.scenario.as_of).total_seconds()
    if not -bound.max_clock_skew_s <= age <= bound.max_age_s:
        return _refuse(VetoCode.STALE_SNAPSHOT, age, bound.max_age_s)
    market = case.scenario.market
    bars = (case.scenario.as_of - market.bar_closed_at).total_seconds() / market.bar_seconds
    if not 0 <= bars <= bound.max_bar_age_bars:
        return _refuse(
            VetoCode.STALE_SNAPSHOT, f"last bar closed {bars:.2f} bars ago", bound.max_bar_age_bars
        )
    return None


def input_sanity(case: Case, limits: Limits) -> Veto | None:
    """Units that do not fit each other: ATR against price, entry against the last close."""
    bound, s = limits.input_sanity, case.scenario
    atr = s.candidate.atr / s.market.last_close
    if not 0 < atr <= bound.max_atr_fraction:
        return _refuse(
            VetoCode.INPUT_SANITY, f"atr is {atr:.4g} of last_close", bound.max_atr_fraction
        )
    gap = abs(s.plan.entry / s.market.last_close - 1)
    if not gap <= bound.max_entry_gap_fraction:
        return _refuse(
            VetoCode.INPUT_SANITY,
            f"entry is {gap:.4g} away from last_close",
            bound.max_entry_gap_fraction,
        )
    return None


def price_sanity(case: Case, limits: Limits) -> Veto | None:
    """Long: 0 < stop < entry < target and a positive quantity, in the order and in the agent's plan
    behind it."""
    order, plan = case.order, case.scenario.plan
    if not (isfinite(order.target) and isfinite(order.quantity) and order.quantity > 0):
        return _refuse(VetoCode.PRICE_SANITY, "quantity or target is not a positive number")
    if not 0 < order.stop < order.entry:
        return _refuse(
            VetoCode.PRICE_SANITY, f"stop {order.stop:.10g} is not between 0 and entry", order.entry
        )
    if not order.entry < order.target:
        return _refuse(
            VetoCode.PRICE_SANITY, f"target {order.target:.10g} is not above entry", order.entry
        )
    if not 0 < plan.stop < plan.entry:
        return _refuse(
            VetoCode.PRICE_SANITY,
            f"plan.stop {plan.stop:.10g} is not between 0 and entry",
            plan.entry,
        )
    return None


def direction(case: Case, limits: Limits) -> Veto | None:
    """Spot: long only."""
    side = case.scenario.candidate.direction
    return None if side is Direction.LONG else _refuse(VetoCode.DIRECTION, side, Direction.LONG)


def stop_distance(case: Case, limits: Limits) -> Veto | None:
    """The stop is too near, or too far where the limits refuse rather than clamp (price units)."""
    floor, ceiling = _stop_bounds(case, limits)
    distance = case.order.distance
    if not distance >= floor:
        return _refuse(VetoCode.STOP_DISTANCE, distance, floor)
    too_far = not distance <= ceiling
    if too_far and (limits.stop_distance.on_excess == "refuse" or ceiling < floor):
        return _refuse(VetoCode.STOP_DISTANCE, distance, ceiling)
    return None


def _stop_bounds(case: Case, limits: Limits) -> tuple[float, float]:
    bound, atr, entry = limits.stop_distance, case.scenario.candidate.atr, case.order.entry
    # One part in 10^9 of slack: 1.5 ATR below entry is 1.5 ATR, whatever the rounding of the
    # subtraction says.
    floor = max(bound.min_atr * atr, bound.min_fraction * entry) * (1 - 1e-9)
    ceiling = min(bound.max_atr * atr, bound.max_fraction * entry) * (1 + 1e-9)
    return floor, ceiling


def btc_trend_conflict(case: Case, limits: Limits) -> Veto | None:
    """A long against a falling BTC, unless the setup is allowed to be."""
    trend = known(case.scenario.candidate.btc_trend, "btc_trend")
    setup = case.scenario.candidate.setup_type
    if trend is not BtcTrend.DOWN or setup in limits.btc_trend_conflict.allowed_setups:
        return None
    return _refuse(VetoCode.BTC_TREND_CONFLICT, f"{setup} while BTC is {trend}")


def news_window(case: Case, limits: Limits) -> Veto | None:
    """Too near a scheduled event (minutes); the window is longer for systemic news."""
    bound, candidate = limits.news_window, case.scenario.candidate
    minutes = known(candidate.time_to_news_minutes, "time_to_news_minutes")
    systemic = known(candidate.news_severity, "news_severity") >= bound.systemic_severity
    limit = max(bound.min_minutes, bound.systemic_minutes) if systemic else bound.min_minutes
    return None if minutes >= limit else _refuse(VetoCode.NEWS_WINDOW, minutes, limit)


def macro_news(case: Case, limits: Limits) -> Veto | None:
    """The agent's macro gate calls trading unsafe."""
    safe = known(case.scenario.candidate.macro_news_safe, "macro_news_safe")
    return (
        None
        if safe or limits.news_window.allow_unsafe_macro
        else _refuse(VetoCode.MACRO_NEWS, "unsafe")
    )


def volatility_spike(case: Case, limits: Limits) -> Veto | None:
    """ATR percentile (0-1) at or above the limit."""
    percentile = known(case.scenario.candidate.volatility_pct, "volatility_pct")
    limit = limits.volatility_spike.max_percentile
    return None if percentile < limit else _refuse(VetoCode.VOLATILITY_SPIKE, percentile, limit)


def reward_risk(case: Case, limits: Limits) -> Veto | None:
    """Nearest target over stop distance below the limit, which is higher in high volatility."""
    bound, order = limits.reward_risk, case.order
    percentile = known(case.scenario.candidate.volatility_pct, "volatility_pct")
    calm = percentile < bound.high_volatility_percentile
    limit = bound.min_ratio if calm else max(bound.min_ratio, bound.min_ratio_high_volatility)
    ratio = (order.target - order.entry) / order.distance
    return None if ratio >= limit else _refuse(VetoCode.REWARD_RISK, ratio, limit)


def spread(case: Case, limits: Limits) -> Veto | None:
    """Bid-ask spread above the limit (bps)."""
    value = known(case.scenario.candidate.spread_bps, "spread_bps")
    return (
        None
        if value <= limits.spread.max_bps
        else _refuse(VetoCode.SPREAD, value, limits.spread.max_bps)
    )


def liquidity(case: Case, limits: Limits) -> Veto | None:
    """24 h volume (quote) below the floor, or an order above its share of it where the limits
    refuse."""
    bound = limits.liquidity
    volume = known(case.scenario.market.volume_24h, "market.volume_24h")
    if not volume >= bound.min_volume_24h:
        return _refuse(VetoCode.LIQUIDITY, volume, bound.min_volume_24h)
    return _excess(
        VetoCode.LIQUIDITY, case.order.notional, bound.max_volume_fraction * volume, bound.on_excess
    )


def risk_per_trade(case: Case, limits: Limits) -> Veto | None:
    """Risk (quote) above the allowed share of equity, where the limits refuse."""
    bound = limits.risk_per_trade
    allowed = bound.max_equity_fraction * known(case.scenario.account.equity, "account.equity")
    return _excess(VetoCode.RISK_PER_TRADE, case.order.risk, allowed, bound.on_excess)


def symbol_exposure(case: Case, limits: Limits) -> Veto | None:
    """No room left for this symbol, or too little where the limits refuse (quote)."""
    room = _symbol_room(case.scenario, limits)
    return _excess(VetoCode.SYMBOL_EXPOSURE, case.order.notional, room, limits.exposure.on_excess)


def total_exposure(case: Case, limits: Limits) -> Veto | None:
    """No room left in the whole book, or too little where the limits refuse (quote)."""
    room = _total_room(case.scenario, limits)
    return _excess(VetoCode.TOTAL_EXPOSURE, case.order.notional, room, limits.exposure.on_excess)


def _symbol_room(s: Scenario, limits: Limits) -> float:
    equity = known(s.account.equity, "account.equity")
    held = sum(
        p.notional
        for p in known(s.account.positions, "account.positions")
        if p.symbol == s.candidate.symbol
    )
    return limits.exposure.max_symbol_fraction * equity - held


def _total_room(s: Scenario, limits: Limits) -> float:
    equity = known(s.account.equity, "account.equity")
    return limits.exposure.max_total_fraction * equity - sum(
        p.notional for p in known(s.account.positions, "account.positions")
    )


def _excess(code: VetoCode, observed: float, allowed: float, on_excess: str) -> Veto | None:
    """Refuse when nothing is allowed, or when more than allowed is asked and the limit does not
    cap."""
    if allowed > 0 and (observed <= allowed or (on_excess == "cap" and isfinite(observed))):
        return None
    return _refuse(code, observed, allowed)


def open_positions(case: Case, limits: Limits) -> Veto | None:
    """As many positions are open as the limit allows."""
    positions = case.scenario.account.positions
    count = len(positions) if positions is not None else None
    reported = case.scenario.candidate.open_positions
    if count is None and reported is None:
        raise MissingInput("account.positions")
    number = max(count or 0, reported or 0)
    limit = limits.open_positions.max_count
    return None if number < limit else _refuse(VetoCode.OPEN_POSITIONS, number, limit)


def daily_loss(case: Case, limits: Limits) -> Veto | None:
    """The day's loss has reached the limit (fraction of equity)."""
    pnl = known(case.scenario.account.day_pnl_fraction, "account.day_pnl_fraction")
    limit = -limits.daily_loss.max_fraction
    return None if pnl > limit else _refuse(VetoCode.DAILY_LOSS, pnl, limit)


def drawdown(case: Case, limits: Limits) -> Veto | None:
    """The fall from the peak has reached the limit (fraction)."""
    value = known(case.scenario.account.drawdown_fraction, "account.drawdown_fraction")
    limit = limits.drawdown.max_fraction
    return None if value < limit else _refuse(VetoCode.DRAWDOWN, value, limit)


def consecutive_losses(case: Case, limits: Limits) -> Veto | None:
    """As many losses in a row as the limit allows."""
    count = known(case.scenario.account.consecutive_losses, "account.consecutive_losses")
    limit = limits.consecutive_losses.max_count
    return None if count < limit else _refuse(VetoCode.CONSECUTIVE_LOSSES, count, limit)


def cool_down(case: Case, limits: Limits) -> Veto | None:
    """Too soon after a run of losses (s)."""
    bound, account = limits.consecutive_losses, case.scenario.account
    if known(account.consecutive_losses, "account.consecutive_losses") < bound.cool_down_after:
        return None
    waited = known(account.seconds_since_loss, "account.seconds_since_loss")
    return (
        None
        if waited >= bound.cool_down_s
        else _refuse(VetoCode.COOL_DOWN, waited, bound.cool_down_s)
    )


def duplicate_symbol(case: Case, limits: Limits) -> Veto | None:
    """The symbol is held already."""
    symbol = case.scenario.candidate.symbol
    positions = known(case.scenario.account.positions, "account.positions")
    return (
        _refuse(VetoCode.DUPLICATE_SYMBOL, symbol)
        if any(p.symbol == symbol for p in positions)
        else None
    )


def restricted_symbol(case: Case, limits: Limits) -> Veto | None:
    """The symbol is on the restricted list."""
    symbol = case.scenario.candidate.symbol
    return (
        _refuse(VetoCode.RESTRICTED_SYMBOL, symbol)
        if symbol in limits.restricted_symbols.symbols
        else None
    )


def session_closed(case: Case, limits: Limits) -> Veto | None:
    """The session is not among those that may trade."""
    session, allowed = case.scenario.candidate.session, limits.trading_hours.sessions
    return (
        None
        if session in allowed
        else _refuse(VetoCode.SESSION_CLOSED, session, ", ".join(allowed))
    )


def maintenance_window(case: Case, limits: Limits) -> Veto | None:
    """Now lies in a maintenance window (UTC)."""
    window = limits.trading_hours.closed_by(case.now)
    return _refuse(VetoCode.MAINTENANCE_WINDOW, case.now.isoformat(), window) if window else None


def model_confidence(case: Case, limits: Limits) -> Veto | None:
    """The policy approves with too little probability; the agent's own order has none and
    passes."""
    if case.approve_probability is None:
        return None
    limit = limits.model_confidence.min_approve_probability
    return (
        None
        if case.approve_probability >= limit
        else _refuse(VetoCode.MODEL_CONFIDENCE, case.approve_probability, limit)
    )


def _cap(case: Case, limits: Limits) -> tuple[Order, tuple[Cap, ...]]:
    """Clamp the stop towards entry and take the smallest quantity that any limit allows.

    Size is capped by the risk at the *unclamped* stop, so that allowing wider stops never shrinks
    an order.
    """
    order, caps = case.order, []
    _, ceiling = _stop_bounds(case, limits)
    if order.distance > ceiling and limits.stop_distance.on_excess == "cap":
        stop = max(order.stop, order.entry - ceiling)
        caps.append(Cap(limit="stop_distance", before=order.stop, after=stop))
        order = order._replace(stop=stop)
    for name, allowed in _allowed_quantities(case, limits):
        if order.quantity > allowed:
            caps.append(Cap(limit=name, before=order.quantity, after=max(allowed, 0.0)))
            order = order._replace(quantity=max(allowed, 0.0))
    return order, tuple(caps)


def _allowed_quantities(case: Case, limits: Limits) -> list[tuple[str, float]]:
    """Upper bounds on quantity (base units) from every limit whose inputs are known."""
    s, order, bound = case.scenario, case.order, limits.exposure
    allowed = [("exposure.max_notional", bound.max_notional / order.entry)]
    if s.market.volume_24h is not None:
        share = limits.liquidity.max_volume_fraction * s.market.volume_24h
        allowed.append(("liquidity.max_volume_fraction", share / order.entry))
    if s.account.equity is not None:
        risk = limits.risk_per_trade.max_equity_fraction * s.account.equity
        allowed.append(("risk_per_trade.max_equity_fraction", risk / order.distance))
        if s.account.positions is not None:
            allowed.append(("exposure.max_symbol_fraction", _symbol_room(s, limits) / order.entry))
            allowed.append(("exposure.max_total_fraction", _total_room(s, limits) / order.entry))
    return allowed


RULES: tuple[tuple[VetoCode, str, Rule], ...] = (
    (VetoCode.STATE_HALTED, "", state_halted),
    (VetoCode.STATE_REDUCING, "", state_reducing),
    (VetoCode.STALE_SNAPSHOT, "stale_snapshot", stale_snapshot),
    (VetoCode.INPUT_SANITY, "input_sanity", input_sanity),
    (VetoCode.PRICE_SANITY, "", price_sanity),
    (VetoCode.DIRECTION, "", direction),
    (VetoCode.STOP_DISTANCE, "stop_distance", stop_distance),
    (VetoCode.BTC_TREND_CONFLICT, "btc_trend_conflict", btc_trend_conflict),
    (VetoCode.NEWS_WINDOW, "news_window", news_window),
    (VetoCode.MACRO_NEWS, "news_window", macro_news),
    (VetoCode.VOLATILITY_SPIKE, "volatility_spike", volatility_spike),
    (VetoCode.REWARD_RISK, "reward_risk", reward_risk),
    (VetoCode.SPREAD, "spread", spread),
    (VetoCode.LIQUIDITY, "liquidity", liquidity),
    (VetoCode.RISK_PER_TRADE, "risk_per_trade", risk_per_trade),
    (VetoCode.SYMBOL_EXPOSURE, "exposure", symbol_exposure),
    (VetoCode.TOTAL_EXPOSURE, "exposure", total_exposure),
    (VetoCode.OPEN_POSITIONS, "open_positions", open_positions),
    (VetoCode.DAILY_LOSS, "daily_loss", daily_loss),
    (VetoCode.DRAWDOWN, "drawdown", drawdown),
    (VetoCode.CONSECUTIVE_LOSSES, "consecutive_losses", consecutive_losses),
    (VetoCode.COOL_DOWN, "consecutive_losses", cool_down),
    (VetoCode.DUPLICATE_SYMBOL, "exposure", duplicate_symbol),
    (VetoCode.RESTRICTED_SYMBOL, "", restricted_symbol),
    (VetoCode.SESSION_CLOSED, "", session_closed),
    (VetoCode.MAINTENANCE_WINDOW, "", maintenance_window),
    (VetoCode.MODEL_CONFIDENCE, "", model_confidence),
)
"""Code, section of the limits (for `when_missing`), rule. MIN_NOTIONAL is judged after caps, in
`review()`."""
