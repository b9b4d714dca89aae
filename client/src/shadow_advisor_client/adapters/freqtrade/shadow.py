"""Beside one strategy: asks when an entry is about to be made, reports what became of it.

One entry, from hook to hook:

    custom_stake_amount   with `follow`: asks, waits, makes the stake smaller
    confirm_trade_entry   asks, where that was not done before; reports an entry that is not made
    order_filled, entry   reports the fill, and keeps the decision's id with the trade
    order_filled, exit    reports the outcome

What is confirmed and never filled shows at the start of a later loop.
"""

from __future__ import annotations

import copy
import logging
import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from shadow_advisor_client import AdvisorClient, Breaker

from . import request
from .book import Book
from .request import Candle, Entry, Exits
from .section import Section

log = logging.getLogger("advisor.freqtrade")
DECISION = "shadow_advisor_decision"
"""Where the id of a decision is kept with its trade: it survives the bot."""
TOLD_AGAIN = timedelta(days=7)
"""Outcomes of so long before a start are told again: the process may have ended before it had told
them. A repeat changes nothing."""
BACKTEST = "backtest"
SIGNALS = ("exit_long", "exit_short")
"""Columns of a strategy's frame."""
EXIT_S, PATIENT_EXIT_S = 2.0, 30.0
"""How long the end of a bot, and that of a back-test, may be delayed for what waits."""


@dataclass(frozen=True)
class Asked:
    """An entry that was asked about."""

    entry: Entry
    decision_id: str | None
    refused: bool = False
    kept: bool = False


class Shadow:
    """The shadow of one strategy. Methods named after a hook get its result and its arguments."""

    def __init__(self, strategy: Any, section: Section, mode: str) -> None:
        from freqtrade.persistence import Trade  # What is pure in this package does without.

        self._trades = Trade.get_trades_proxy
        self._strategy = strategy
        self._section = section
        self._mode = mode
        waits = mode == BACKTEST
        self.client = AdvisorClient(
            section.url,
            token=section.token,
            deadline_s=section.backtest_wait_s if waits else section.deadline_s,
            exit_budget_s=PATIENT_EXIT_S if waits else EXIT_S,
        )
        self._run = secrets.token_hex(4)
        self._asks = 0
        self._book = Book()
        self._leverage: dict[str, float] = {}
        self._signals = False
        """Whether a signal to exit was ever seen."""
        self._not_followed: list[str] = []
        self._sized: dict[str, Asked] = {}
        self._confirmed: dict[str, Asked] = {}

    def starts(self, result: Any) -> Any:
        """`bot_start`: the book of before, and what may not have been told."""
        if self._mode == BACKTEST:
            return result
        trades = [trade for trade in self._trades(is_open=False) if trade.close_date]
        for trade in sorted(trades, key=lambda trade: trade.close_date_utc):
            self._book.close(trade.close_profit_abs or 0.0, trade.close_date_utc)
            if trade.close_date_utc > datetime.now(timezone.utc) - TOLD_AGAIN:
                self._report_closed(trade, trade.close_rate, trade.close_date_utc)
        return result

    def looks(self, result: Any, current_time: datetime) -> Any:
        """`bot_loop_start`: entries that came to nothing."""
        for pair, asked in list(self._sized.items()):
            del self._sized[pair]
            self._report_not_entered(asked, "not_placed", current_time)
        for pair, asked in list(self._confirmed.items()):
            trades = self._trades(pair=pair, is_open=True)
            if not trades:
                del self._confirmed[pair]
                self._report_not_entered(asked, "not_filled", current_time)
            elif trades[0].nr_of_successful_entries and not trades[0].has_open_orders:
                self._report_entered(trades[0])
            elif not asked.kept:
                self._confirmed[pair] = replace(asked, kept=True)
                trades[0].set_custom_data(DECISION, asked.decision_id)
        return result

    def sizes(
        self,
        result: float,
        pair: str,
        current_time: datetime,
        current_rate: float,
        leverage: float,
        entry_tag: str | None,
        side: str,
        **others: Any,
    ) -> float:
        """`custom_stake_amount`: the stake, smaller where the advice that is followed says so."""
        self._leverage[pair] = leverage
        if not self._section.follow or not result:
            return result
        amount = result * leverage / current_rate
        entry = Entry(pair, side, current_rate, amount, leverage, current_time, entry_tag)
        asked, advice = self._ask(entry)
        approve = None if advice is None else advice.get("approve")
        self._sized[pair] = replace(asked, refused=approve is False)
        if advice is None or approve is not True:
            return result
        return result * min(1.0, (advice.get("quantity") or amount) / amount)

    def confirms(
        self,
        result: bool,
        pair: str,
        amount: float,
        rate: float,
        current_time: datetime,
        entry_tag: str | None,
        side: str,
        **others: Any,
    ) -> bool:
        """`confirm_trade_entry`: the strategy's own answer, unless advice is followed that
        refuses."""
        asked = self._sized.pop(pair, None)
        if asked is None:
            leverage = self._leverage.get(pair, 1.0)
            asked, _ = self._ask(Entry(pair, side, rate, amount, leverage, current_time, entry_tag))
        if not result:
            self._report_not_entered(asked, "confirm_trade_entry", current_time)
        elif asked.refused:
            self._report_not_entered(asked, "shadow_advisor", current_time)
        else:
            self._confirmed[pair] = asked
        return result and not asked.refused

    def fills(self, result: Any, pair: str, trade: Any, order: Any, current_time: datetime) -> Any:
        """`order_filled`: of the first entry the action, of the last exit the outcome."""
        if order.ft_order_side == trade.entry_side:
            if pair in self._confirmed:
                self._report_entered(trade)
        elif not trade.is_open:
            self._close(trade, trade.close_profit_abs, order.safe_price, current_time)
        elif self._mode == BACKTEST and order.safe_amount_after_fee == trade.amount:
            # A back-test closes the trade right after this hook, which sums its orders up.
            closing = copy.deepcopy(trade)
            closing.close_date = current_time
            closing.close(order.safe_price, show_msg=False)
            self._close(trade, closing.close_profit_abs, order.safe_price, current_time)
        return result

    def stops(self, result: Any) -> Any:
        """`ft_bot_cleanup`."""
        self.client.close()
        return result

    @property
    def _exits(self) -> Exits:
        """As the strategy has them now: parameters are loaded after `bot_start`."""
        section = self._section
        others = request.not_followed(self._strategy, self._signals)
        if others != self._not_followed and section.exits == "strategy":
            log.info("nobody can follow %s: only reported outcomes count", ", ".join(others))
        self._not_followed = others
        known = section.exits == "strategy" and not others
        return Exits.of(self._strategy, section.exits_hours, known)

    def _ask(self, entry: Entry) -> tuple[Asked, dict[str, Any] | None]:
        """The question on its way; its advice where somebody waits for it."""
        self._asks += 1
        request_id = f"freqtrade-{self._mode}-{self._run}-{self._asks}"
        document = {**self._document(entry), "request_id": request_id}
        if self._section.follow or self._is_worth_waiting:
            asked = Asked(entry, self.client.decision_id(request_id))
            return asked, self.client.advise(document)
        return Asked(entry, self.client.submit(document)), None

    @property
    def _is_worth_waiting(self) -> bool:
        """A back-test goes at the service's pace, while there is one."""
        return self._mode == BACKTEST and self.client.stats().breaker is not Breaker.OPEN

    def _document(self, entry: Entry) -> dict[str, Any]:
        frame, _ = self._strategy.dp.get_analyzed_dataframe(entry.pair, self._strategy.timeframe)
        candle_s = _seconds(self._strategy.timeframe)
        signals = (frame[name] for name in SIGNALS if name in frame)
        self._signals = self._signals or any((column == 1).any() for column in signals)
        newest = frame.tail(self._section.bars)
        columns = [newest[name] for name in ("date", "open", "high", "low", "close", "volume")]
        candles = [
            Candle(values[0].to_pydatetime(), *map(float, values[1:])) for values in zip(*columns)
        ]
        row = newest.iloc[-1].to_dict()
        document = request.advise_request(
            entry, self._exits, candles, candle_s, row, self._account(entry.at)
        )
        document["candidate"]["run_mode"] = self._mode
        return dict(self._strategy.shadow_advisor_request(document, entry.pair, row))

    def _account(self, at: datetime) -> dict[str, Any]:
        open_trades = [t for t in self._trades(is_open=True) if t.amount]
        equity = float(self._strategy.wallets.get_total_stake_amount())
        return {
            **self._book.account(equity, at),
            "positions": [
                {
                    "symbol": request.symbol_of(trade.pair),
                    "quantity": trade.amount,
                    "entry": trade.open_rate,
                    "stop": trade.stop_loss or None,
                    "opened_at": trade.open_date_utc,
                }
                for trade in open_trades
            ],
        }

    def _report_entered(self, trade: Any) -> None:
        asked = self._confirmed.pop(trade.pair)
        trade.set_custom_data(DECISION, asked.decision_id)
        self.client.report_action(asked.decision_id, lambda: request.entered(self._exits, trade))

    def _report_not_entered(self, asked: Asked, reason: str, at: datetime) -> None:
        self.client.report_action(asked.decision_id, request.not_entered(reason, at))

    def _close(self, trade: Any, profit: float, rate: float, at: datetime) -> None:
        self._book.close(profit, at)
        self._report_closed(trade, rate, at, profit)

    def _report_closed(
        self, trade: Any, rate: float, at: datetime, profit: float | None = None
    ) -> None:
        """The outcome, of trades that were asked about."""
        if decision_id := trade.get_custom_data(DECISION):
            earned = trade.close_profit_abs if profit is None else profit
            self.client.report_outcome(
                decision_id, lambda: request.closed(self._exits, trade, rate, earned, at)
            )


def _seconds(timeframe: str) -> int:
    """Of a candle: `5m`, `1h`, `1d`."""
    units = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800, "M": 2_592_000}
    return int(timeframe[:-1]) * units[timeframe[-1]]
