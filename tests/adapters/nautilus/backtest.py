"""Run by nautilus' own Python: a back-test of brackets with the adapter, or without it. Prints what
the strategy traded and what the client counted, as JSON."""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal

from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig, StrategyConfig
from nautilus_trader.model.currencies import USDT
from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.enums import AccountType, OmsType, OrderSide
from nautilus_trader.model.identifiers import Venue
from nautilus_trader.model.objects import Money
from nautilus_trader.test_kit.providers import TestInstrumentProvider
from nautilus_trader.trading.strategy import Strategy
from shadow_advisor_client.adapters.nautilus import ShadowAdvisor, ShadowAdvisorConfig

INSTRUMENT = TestInstrumentProvider.btcusdt_perp_binance()
BARS = f"{INSTRUMENT.id}-1-HOUR-LAST-EXTERNAL"
HOUR_NS = 3_600_000_000_000
START_NS = 1_700_000_400 * 1_000_000_000 // HOUR_NS * HOUR_NS


class BracketsConfig(StrategyConfig, frozen=True):  # type: ignore[misc, call-arg]
    every: int = 20


class Brackets(Strategy):  # type: ignore[misc]
    """A bracket every so many bars, long and short in turn; one order without a stop; what is open
    after twelve bars is closed by hand."""

    def on_start(self) -> None:
        self.bars = 0
        self.trades: list[str] = []
        self.subscribe_bars(BarType.from_str(BARS))

    def on_bar(self, bar: Bar) -> None:
        self.bars += 1
        step = self.bars % self.config.every
        if self.bars > 20 and step == 0 and not self.cache.positions_open():
            self.enter(float(bar.close))
        elif step == 12:
            self.cancel_all_orders(INSTRUMENT.id)
            self.close_all_positions(INSTRUMENT.id)

    def enter(self, close: float) -> None:
        number = self.bars // self.config.every
        side = OrderSide.BUY if number % 2 else OrderSide.SELL
        quantity = INSTRUMENT.make_qty(Decimal("0.010"))
        if number % 5 == 0:
            order = self.order_factory.market(INSTRUMENT.id, side, quantity)
            self.submit_order(order)
            return
        away = 0.01 * close * (1 if side == OrderSide.BUY else -1)
        bracket = self.order_factory.bracket(
            instrument_id=INSTRUMENT.id,
            order_side=side,
            quantity=quantity,
            sl_trigger_price=INSTRUMENT.make_price(close - away),
            tp_price=INSTRUMENT.make_price(close + 1.5 * away),
        )
        self.submit_order_list(bracket)

    def on_position_closed(self, event: object) -> None:
        self.trades.append(str(event.realized_pnl))  # type: ignore[attr-defined]


def bars(count: int) -> list[Bar]:
    """A made market: three waves."""
    bar_type, made, last = BarType.from_str(BARS), [], 40_000.0
    for number in range(count):
        waves = sum(math.sin(number / period) for period in (3.0, 11.0, 47.0))
        close = 40_000 * (1 + 0.01 * waves)
        high, low = max(last, close) + 40, min(last, close) - 40
        prices = [INSTRUMENT.make_price(price) for price in (last, high, low, close)]
        at = START_NS + (number + 1) * HOUR_NS
        made.append(Bar(bar_type, *prices, INSTRUMENT.make_qty(100), at, at))
        last = close
    return made


def engine_with(count: int) -> BacktestEngine:
    """An account of 10,000 USDT and so many bars."""
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(log_level="ERROR")))
    engine.add_venue(
        venue=Venue("BINANCE"),
        oms_type=OmsType.NETTING,
        account_type=AccountType.MARGIN,
        base_currency=None,
        starting_balances=[Money(10_000, USDT)],
    )
    engine.add_instrument(INSTRUMENT)
    engine.add_data(bars(count))
    return engine


def main(url: str) -> None:
    engine = engine_with(400)
    strategy = Brackets(BracketsConfig())
    engine.add_strategy(strategy)
    told: dict[str, object] = {}
    if url:
        advisor = ShadowAdvisor(ShadowAdvisorConfig(bar_types=(BARS,), url=url))
        engine.add_actor(advisor)
    engine.run()
    engine.dispose()
    if url:
        stats = advisor.client.stats()
        told = {
            "faults": advisor.faults,
            "without_stop": advisor.without_stop,
            "dropped": stats.dropped,
            "left_out": stats.left_out,
            "refusals": stats.refusals,
            "sent": stats.sent,
        }
    print(json.dumps({"trades": strategy.trades, **told}))


if __name__ == "__main__":
    main(sys.argv[1])
