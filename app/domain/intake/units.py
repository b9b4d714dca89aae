"""Units held against each other: a value that fits its field's range, and no other value beside it,
was most likely meant in another unit.

A doubt names that unit. What is doubted is left out, or refused where a decision needs it; that is
no part of a record's schema: what was recorded before stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from app.domain.candidate import Candidate
from app.domain.intake.reception import Doubt, Path
from app.domain.scenario import LARGEST, SMALLEST, Plan, Scenario

_PLAIN = frozenset({str, int, bool, type(None)})
MOST_LEVERAGE = 25.0
"""Notional over equity from which a quantity looks like money."""
MOST_OF_DAY = 0.01
MOST_ALONE = 5e6
"""As much, of a day's volume or in quote currency, where the equity is not told."""
DAILY_ATR = 0.04
"""A usual ATR of a day's bars, over price; it grows with the square root of the bars' length."""
ATR_FACTOR = 30.0
"""How far from that an ATR may lie, either way, before it is doubted."""
STOP_IN_ATR = (0.05, 60.0)
"""What stop distances are, in ATR, of plans that mean the ATR that they send."""
MOVE_IN_ATR = 25.0
"""How many ATR a price moves at most within five bars."""
FORECAST_IN_ATR = 15.0
MOST_RETURN = {"1h": 0.5, "6h": 0.7, "24h": 1.0, "7d": 2.0, "30d": 3.5}
"""Log returns that a market all but never has: a price that is 1.6, 2, 2.7, 7 and 33 times as high,
or as low."""
MOST_VOLATILITY = 0.5
"""Fraction per hour."""
MOST_GAIN = 20.0
"""A target further from the entry, as a multiple of it, has noughts too many."""
DAY_S = 86_400.0


def doubts(scenario: Scenario) -> list[Doubt]:
    """Everything in a scenario that seems to have another unit than its field, or none at all."""
    return [*_beyond(scenario)] or [
        *_size(scenario),
        *_atr(scenario),
        *_moves(scenario),
        *_surroundings(scenario),
        *_targets(scenario.plan),
        *_scales(scenario.candidate),
        *_flat(scenario),
        *_day(scenario),
    ]


def _beyond(s: Scenario) -> Iterator[Doubt]:
    """Numbers that nothing can have: what is worked out with them would be infinite, and so would
    what is divided by them."""
    for section in ("candidate", "plan", "account", "market"):
        for path, value in _odd(getattr(s, section), (section,)):
            told = f"{LARGEST:g}: nothing is as large"
            if abs(value) < 1:
                told = f"{SMALLEST:g}, and not 0: nothing is as small"
            yield Doubt(path, f"{value:g} is beyond {told}")


def _odd(record: BaseModel, path: Path) -> Iterator[tuple[Path, float]]:
    """The numbers beyond the largest and the smallest; of a hundred values hardly one is looked at
    twice."""
    for name, value in record.__dict__.items():
        kind = type(value)
        if kind is float:
            if not SMALLEST < abs(value) < LARGEST and value != 0:
                yield (*path, name), value
        elif kind is tuple:
            for number, element in enumerate(value):
                if isinstance(element, BaseModel):
                    yield from _odd(element, (*path, name, number))
                elif (
                    isinstance(element, float) and element and not SMALLEST < abs(element) < LARGEST
                ):
                    yield (*path, name, number), element
        elif kind not in _PLAIN and isinstance(value, BaseModel):
            yield from _odd(value, (*path, name))


def _size(s: Scenario) -> Iterator[Doubt]:
    """A quantity that is the notional, or as wrong: more money than the account could ever borrow,
    or, where no equity is told, than one order moves in a day's market."""
    equity, volume, plan = s.account.equity, s.market.volume_24h, s.plan
    if equity is not None:
        most, what = MOST_LEVERAGE * equity, f"{plan.notional / equity:.3g} times the equity"
    elif volume:
        most, what = MOST_OF_DAY * volume, f"{plan.notional / volume:.2%} of a day's volume"
    else:
        most, what = MOST_ALONE, "and nothing told is as large"
    if plan.notional > most and plan.entry > 1:
        meant = "likely money; send it as notional" if plan.quantity <= most else "too many noughts"
        yield Doubt(
            ("plan", "quantity"),
            f"{plan.quantity:g} base units are {plan.notional:.6g} of the quote currency, {what}:"
            f" {meant}",
        )


def _atr(s: Scenario) -> Iterator[Doubt]:
    """An ATR that fits neither price and bars nor the stop, and does as per cent or fraction."""
    atr, price = s.candidate.atr, s.market.last_close or s.plan.entry
    if atr is None:
        return
    usual: float = DAILY_ATR * ((s.market.bar_seconds or 3600.0) / DAY_S) ** 0.5
    distance, (nearest, furthest) = abs(s.plan.entry - s.plan.stop), STOP_IN_ATR

    def of_bars(value: float) -> bool:
        return usual / ATR_FACTOR <= value / price <= usual * ATR_FACTOR

    def of_stop(value: float) -> bool:
        return nearest * value <= distance <= furthest * value

    if of_bars(atr) or of_stop(atr):
        return
    meant = (("per cent of price", atr / 100 * price), ("a fraction of price", atr * price))
    for unit, value in meant:
        if of_bars(value) and of_stop(value):
            yield Doubt(
                ("candidate", "atr"),
                f"{atr:g} is {atr / price:.2g} of the price, the stop {distance / atr:.3g} ATR"
                f" away: likely {unit}; it is a price, {value:.6g}",
            )
            return


def _moves(s: Scenario) -> Iterator[Doubt]:
    """Returns in per cent where a fraction is asked."""
    c, price = s.candidate, s.market.last_close or s.plan.entry
    for name, value, in_atr in (
        ("price_change_pct", c.price_change_pct, MOVE_IN_ATR),
        ("next_return", c.next_return, FORECAST_IN_ATR),
    ):
        most = 1.0 if c.atr is None else in_atr * c.atr / price
        if value is not None and abs(value) > max(most, 0.01) and abs(value) / 100 <= most:
            yield Doubt(
                ("candidate", name),
                f"{value:g} would be {100 * value:.4g} %: likely per cent; it is a fraction,"
                f" {value / 100:g}",
            )


def _surroundings(s: Scenario) -> Iterator[Doubt]:
    """Returns and volatilities that no market has: in per cent, mostly."""
    around = s.market.surroundings
    for name in () if around is None else type(around).model_fields:
        value, horizon = getattr(around, name), name.rpartition("_")[2]
        if "return" in name:
            most = MOST_RETURN[horizon]
        elif "volatility" in name and name != "volatility_rank":
            most = MOST_VOLATILITY
        else:
            continue
        if value is not None and abs(value) > most:
            yield Doubt(
                ("market", "surroundings", name),
                f"{value:g} is more than any market moves: likely per cent; it is a fraction,"
                f" {value / 100:g}",
            )


def _targets(plan: Plan) -> Iterator[Doubt]:
    for number, target in enumerate(plan.targets):
        if target > MOST_GAIN * plan.entry:
            yield Doubt(
                ("plan", "targets", number),
                f"{target:g} is {target / plan.entry:.3g} times the entry: a nought too many",
            )


def _scales(c: Candidate) -> Iterator[Doubt]:
    """A share where a scale of ten or of a hundred is asked."""
    for name, value, scale in (
        ("confidence", c.confidence, 10),
        ("sentiment_confidence", c.sentiment_confidence, 10),
        ("order_imbalance", c.order_imbalance, 100),
        ("rsi", c.rsi, 100),
        ("adx", c.adx, 100),
        ("btc_dominance", c.btc_dominance, 100),
    ):
        if value is not None and 0 < abs(value) < 1:
            yield Doubt(
                ("candidate", name),
                f"{value:g} on a scale of {scale}: likely a share of 1; send {scale * value:g}",
            )


def _day(s: Scenario) -> Iterator[Doubt]:
    """A day's loss in per cent: nobody loses a share in a day that is not lost since the peak."""
    pnl, fall = s.account.day_pnl_fraction, s.account.drawdown_fraction
    if pnl is None or fall is None or pnl >= 0:
        return
    if -pnl > fall + 0.02 and -pnl / 100 <= fall + 0.02:
        yield Doubt(
            ("account", "day_pnl_fraction"),
            f"{pnl:g} is a loss of {-100 * pnl:.4g} % of equity, with a drawdown of"
            f" {100 * fall:.3g} %: likely per cent; it is a fraction, {pnl / 100:g}",
        )


def _flat(s: Scenario) -> Iterator[Doubt]:
    """Positions of no size: some exchanges list every contract that they have."""
    for number, position in enumerate(s.account.positions or ()):
        if position.quantity == 0:
            yield Doubt(
                ("account", "positions", number), "of quantity 0: nothing is held", is_none=True
            )
