"""What freqtrade knows, as documents for the service. Pure: no freqtrade and no pandas in it.

Prices are in quote currency, quantities in base units with leverage in them, times in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

NO_TARGET = 10.0
"""freqtrade's own default of `minimal_roi`: a profit of 1000 %, which means none."""
NEAREST_TO_ZERO = 0.001
"""Of the entry: a stop or target that a loss or profit of everything would put at zero."""
COLUMNS = {
    "rsi": "rsi",
    "adx": "adx",
    "atr": "atr",
    "plus_di": "di_plus",
    "minus_di": "di_minus",
    "macdhist": "macd",
    "macdsignal": "macd_signal",
}
"""Columns as strategies name them by convention, and the candidate's field: freqtrade's `macd` is
the line, the candidate's is the histogram."""
SWITCHES = {
    "use_custom_stoploss": "custom_stoploss",
    "use_custom_roi": "custom_roi",
    "position_adjustment_enable": "adjust_trade_position",
    "ignore_roi_if_entry_signal": "ignore_roi_if_entry_signal",
}
"""What lets a strategy end its trades by more than prices, and the name of it."""
HOOKS = ("custom_exit", "custom_exit_price", "confirm_trade_exit")
"""The same, where a strategy defines them."""
OUTCOMES = {
    "roi": "tp1",
    "stop_loss": "sl",
    "stoploss_on_exchange": "sl",
    "liquidation": "sl",
    "trailing_stop_loss": "trailing_sl",
}
"""Codes of freqtrade's reasons to exit; all others end a trade early."""


class Candle(NamedTuple):
    """One row of a strategy's frame; `date` is when it opened."""

    date: datetime
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True)
class Entry:
    """An order that the bot is about to place."""

    pair: str
    side: str
    rate: float
    amount: float
    leverage: float
    at: datetime
    tag: str | None


@dataclass(frozen=True)
class Exits:
    """A strategy's exits as it declares them, over the stake.

    hours : what is still open so long after entry counts as sold, where the service follows it.
    known : false: nobody can follow them, and only outcomes that are reported tell.
    """

    stoploss: float
    minimal_roi: Mapping[Any, float]
    trailing_stop: bool = False
    trailing_stop_positive: float | None = None
    trailing_stop_positive_offset: float = 0.0
    trailing_only_offset_is_reached: bool = False
    hours: float = 168.0
    known: bool = True

    @classmethod
    def of(cls, strategy: Any, hours: float, known: bool) -> Exits:
        """Of a strategy; followed by nobody where it has others than these."""
        return cls(
            strategy.stoploss,
            strategy.minimal_roi,
            bool(getattr(strategy, "trailing_stop", False)),
            getattr(strategy, "trailing_stop_positive", None),
            getattr(strategy, "trailing_stop_positive_offset", 0.0),
            bool(getattr(strategy, "trailing_only_offset_is_reached", False)),
            hours,
            known,
        )

    def declared(self, leverage: float) -> dict[str, Any]:
        """As the service takes them: over the notional."""
        if not self.known:
            return {"kind": "reported"}
        # A ratio of -1 sells at any price, whatever the leverage.
        roi = {
            str(int(minutes)): ratio if ratio <= -1 else ratio / leverage
            for minutes, ratio in (self.minimal_roi or {}).items()
        }
        exits: dict[str, Any] = {"kind": "freqtrade", "hours": self.hours, "minimal_roi": roi}
        if self.trailing_stop:
            positive = self.trailing_stop_positive
            exits |= {
                "trailing_stop": True,
                "trailing_stop_positive": None if positive is None else positive / leverage,
                "trailing_stop_positive_offset": self.trailing_stop_positive_offset / leverage,
                "trailing_only_offset_is_reached": self.trailing_only_offset_is_reached,
            }
        return exits

    def stop(self, rate: float, side: str, leverage: float) -> float:
        """Where freqtrade puts the first stop."""
        return _away(rate, -abs(self.stoploss) / leverage, side)

    def target(self, rate: float, side: str, leverage: float) -> float:
        """The profit at which a new trade is closed."""
        table = self.minimal_roi or {"0": NO_TARGET}
        first = min(table, key=int)
        return _away(rate, table[first] / leverage, side)


def not_followed(strategy: Any, signals: bool) -> list[str]:
    """What else a strategy ends its trades by, which follows from more than prices: `signals` says
    whether its newest candles hold signals to exit."""
    kind = type(strategy)
    base = next((each for each in kind.__mro__ if each.__name__ == "IStrategy"), kind)
    asks = bool(getattr(strategy, "use_exit_signal", True))
    own = [name for name in HOOKS if getattr(kind, name, None) is not getattr(base, name, None)]
    if not asks and "custom_exit" in own:
        own.remove("custom_exit")
    switched = [what for name, what in SWITCHES.items() if getattr(strategy, name, False)]
    return [*(["exit signals"] if asks and signals else []), *own, *switched]


def _away(rate: float, profit: float, side: str) -> float:
    """The price at which an entry has that profit, as a fraction of it."""
    towards = -profit if side == "short" else profit
    return rate * max(1 + towards, NEAREST_TO_ZERO)


def symbol_of(pair: str) -> str:
    """`BTC/USDT:USDT` and `BTC/USDT` are BTCUSDT."""
    return pair.partition(":")[0].replace("/", "")


def session_of(at: datetime) -> str:
    """The trading session of a time in UTC."""
    hour = at.hour
    if 3 <= hour < 11:
        return "Europe"
    return "US" if 11 <= hour < 19 else "Asia"


def advise_request(
    entry: Entry,
    exits: Exits,
    candles: Sequence[Candle],
    candle_s: int,
    row: Mapping[str, Any],
    account: Mapping[str, Any],
) -> dict[str, Any]:
    """The request for advice on an entry.

    Parameters
    ----------
    candles : closed ones, oldest first; at least one.
    row : the strategy's newest row, with its own columns.
    """
    own = {field: row[name] for name, field in COLUMNS.items() if name in row}
    last, length = candles[-1], timedelta(seconds=candle_s)
    return {
        "candidate": {
            "symbol": symbol_of(entry.pair),
            "direction": entry.side,
            "ts": entry.at,
            "session": session_of(entry.at),
            "setup_type": "none",
            **own,
            "enter_tag": entry.tag,
        },
        "plan": {
            "entry": entry.rate,
            "stop": exits.stop(entry.rate, entry.side, entry.leverage),
            "targets": [exits.target(entry.rate, entry.side, entry.leverage)],
            "quantity": entry.amount,
            "exits": exits.declared(entry.leverage),
        },
        "account": dict(account),
        "market": {
            "last_close": last.close,
            "bar_closed_at": last.date + length,
            "bar_seconds": candle_s,
        },
        # What else they tell, the service computes.
        "bars": [(candle.date + length, *candle[1:]) for candle in candles],
    }


def entered(exits: Exits, trade: Any) -> dict[str, Any]:
    """The action of an entry that was filled."""
    side = "short" if trade.is_short else "long"
    return {
        "decision": True,
        "decided_at": trade.open_date_utc,
        "entry": trade.open_rate,
        "stop": exits.stop(trade.open_rate, side, trade.leverage or 1.0),
        "targets": [exits.target(trade.open_rate, side, trade.leverage or 1.0)],
        "quantity": trade.amount,
        "size_usd": trade.stake_amount,
        "take_profit_strategy": "minimal_roi",
    }


def not_entered(reason: str, at: datetime) -> dict[str, Any]:
    """The action of an entry that was not made."""
    return {"decision": False, "decided_at": at, "final_skip_reason": reason}


def closed(exits: Exits, trade: Any, rate: float, profit: float, at: datetime) -> dict[str, Any]:
    """The outcome of a trade that was closed at `rate` with a net `profit`."""
    side = "short" if trade.is_short else "long"
    stop = exits.stop(trade.open_rate, side, trade.leverage or 1.0)
    distance = abs(trade.open_rate - stop)
    towards = -1 if trade.is_short else 1
    moves = [
        (price - trade.open_rate) * towards / distance
        for price in (trade.min_rate, trade.max_rate, rate)
        if price
    ]
    notional = trade.open_rate * trade.amount
    reason = str(trade.exit_reason or "")
    return {
        "arm": "agent",
        "outcome": OUTCOMES.get(reason, "early_exit"),
        "exit_time": at,
        "exit_price": rate,
        "exit_reason": reason or None,
        "fees": (trade.fee_open or 0.0) * notional + (trade.fee_close or 0.0) * rate * trade.amount,
        "net_pnl": profit,
        "pnl_pct": 100 * profit / notional if notional else None,
        "mae_r": min(0.0, *moves),
        "mfe_r": max(0.0, *moves),
        "max_price": trade.max_rate or None,
        "holding_seconds": (at - trade.open_date_utc).total_seconds(),
        "extra": {
            "trade_id": trade.id,
            "entries": trade.nr_of_successful_entries,
            "leverage": trade.leverage or 1.0,
            "funding_fees": trade.funding_fees,
        },
    }
