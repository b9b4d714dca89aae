"""An actor for nautilus_trader: entries of every strategy are decisions, their fills actions,
closed positions outcomes; in back-test, sandbox and live alike.

```python
config = ShadowAdvisorConfig(bar_types=("BTCUSDT.BINANCE-1-HOUR-LAST-EXTERNAL",))
engine.add_actor(ShadowAdvisor(config))
```

An entry is the first order of a bracket, or any other order that may open a position. Its plan is
its price, the stop and the targets of its bracket; an order without a stop has no risk to measure
by, and is not asked about (`without_stop` counts them). ATR and RSI come from the bars that the
configuration names. `candidate_of` may add what a strategy knows. Nothing here sends, changes or
holds back an order, and nothing raises into the node: faults are logged and counted (`faults`).

A back-test asks about the past, at its own pace: let a service of its own answer it, with
`ADVISOR_CLOCK=request`. There every entry waits until what was sent is answered, while somebody
answers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from time import monotonic, sleep
from typing import Any

from nautilus_trader.common.actor import Actor
from nautilus_trader.common.component import TestClock
from nautilus_trader.common.config import ActorConfig
from nautilus_trader.indicators import AverageTrueRange, RelativeStrengthIndex
from nautilus_trader.model.data import Bar, BarType
from nautilus_trader.model.events import (
    OrderCanceled,
    OrderDenied,
    OrderExpired,
    OrderFilled,
    OrderRejected,
    OrderSubmitted,
    PositionClosed,
)
from nautilus_trader.model.identifiers import InstrumentId
from nautilus_trader.model.orders import Order

from shadow_advisor_client import AdvisorClient, Breaker

NANOSECONDS = 1e9
UNFILLED = (OrderDenied, OrderRejected, OrderCanceled, OrderExpired)


class ShadowAdvisorConfig(ActorConfig, kw_only=True, frozen=True):  # type: ignore[misc, call-arg]
    """Where the service answers, and which bars an instrument's indicators are made of."""

    bar_types: tuple[str, ...]
    url: str = "http://127.0.0.1:8321"
    token: str | None = None
    queue_dir: str | None = None
    backtest_wait_s: float = 60.0


class Market:
    """What is known of an instrument: its last bar and indicators."""

    def __init__(self, bar_type: BarType) -> None:
        self.bar_seconds = bar_type.spec.timedelta.total_seconds()
        self.atr = AverageTrueRange(14)
        self.rsi = RelativeStrengthIndex(14)
        self.last: Bar | None = None

    def saw(self, bar: Bar) -> None:
        """A bar closed."""
        self.atr.handle_bar(bar)
        self.rsi.handle_bar(bar)
        self.last = bar


class ShadowAdvisor(Actor):  # type: ignore[misc]
    """See the module."""

    def __init__(self, config: ShadowAdvisorConfig) -> None:
        super().__init__(config)
        self.client = AdvisorClient(config.url, token=config.token, queue_dir=config.queue_dir)
        self.faults = 0
        self.without_stop = 0
        self._markets: dict[InstrumentId, Market] = {}
        self._decisions: dict[str, str] = {}
        """Decision ids by the entry's client order id."""

    def candidate_of(self, order: Order) -> dict[str, Any]:
        """What a strategy knows besides; to be overridden."""
        return {}

    def on_start(self) -> None:
        """Listen to bars, orders and positions."""
        for name in self.config.bar_types:
            bar_type = BarType.from_str(name)
            self._markets[bar_type.instrument_id] = Market(bar_type)
            self.subscribe_bars(bar_type)
        self.msgbus.subscribe("events.order.*", self._guarded(self._on_order))
        self.msgbus.subscribe("events.position.*", self._guarded(self._on_position))

    def on_stop(self) -> None:
        """A back-test is over when everything was told."""
        self._keep_pace()

    def on_dispose(self) -> None:
        """Send what waits."""
        self.client.close()

    def on_bar(self, bar: Bar) -> None:
        """Follow the market."""
        market = self._markets.get(bar.bar_type.instrument_id)
        if market is not None:
            market.saw(bar)

    def _guarded(self, handle: Callable[[Any], None]) -> Callable[[Any], None]:
        """Nothing raises into the node."""

        def handled(event: Any) -> None:
            try:
                handle(event)
            except Exception as error:
                self.faults += 1
                self.log.warning(f"shadow advisor: {type(error).__name__}: {error}")

        return handled

    def _on_order(self, event: Any) -> None:
        order = self.cache.order(event.client_order_id)
        if order is None:
            return
        if isinstance(event, OrderSubmitted):
            self._ask(order)
        known = self._decisions.get(order.client_order_id.value)
        if known is None:
            return
        if isinstance(event, OrderFilled):
            filled, entry = float(order.filled_qty), float(order.avg_px)
            self.client.report_action(known, {"decision": True, "entry": entry, "quantity": filled})
        elif isinstance(event, UNFILLED) and not order.filled_qty:
            reason = f"{type(event).__name__} {getattr(event, 'reason', '')}".strip()
            self.client.report_action(known, {"decision": False, "final_skip_reason": reason[:200]})
            self.client.report_outcome(known, {"arm": "agent", "outcome": "not_traded"})

    def _ask(self, order: Order) -> None:
        """Ask about an entry, once."""
        market = self._markets.get(order.instrument_id)
        held = self.cache.positions_open(
            instrument_id=order.instrument_id, strategy_id=order.strategy_id
        )
        closes = order.is_reduce_only or order.parent_order_id is not None or bool(held)
        if market is None or market.last is None or closes:
            return
        entry = _price(order) or float(market.last.close)
        below, above = self._bracket(order, entry)
        stops, targets = (below, above) if order.is_buy else (above, below)
        if not stops:
            self.without_stop += 1
            return
        plan = {
            "entry": entry,
            "stop": max(stops) if order.is_buy else min(stops),
            "targets": sorted(targets, reverse=not order.is_buy) or None,
            "quantity": float(order.quantity),
        }
        request = self._request(order, market, plan)
        known = self.client.submit(request)
        self._keep_pace()
        if known is not None:
            self._decisions[order.client_order_id.value] = known

    def _keep_pace(self) -> None:
        """A back-test is faster than any service: it waits for what was sent, while somebody
        answers."""
        if not isinstance(self.clock, TestClock):
            return
        end = monotonic() + self.config.backtest_wait_s
        while monotonic() < end:
            stats = self.client.stats()
            if not stats.queued or stats.breaker is not Breaker.CLOSED:
                return
            sleep(0.001)

    def _request(self, order: Order, market: Market, plan: dict[str, Any]) -> dict[str, Any]:
        assert market.last is not None
        close = float(market.last.close)
        candidate = {
            "symbol": order.instrument_id.symbol.value,
            "direction": "long" if order.is_buy else "short",
            "ts": _time(order.ts_init),
            # The index runs from 0 to 1 here.
            "rsi": 100 * market.rsi.value if market.rsi.initialized else None,
            "atr": market.atr.value if market.atr.initialized else None,
            **self.candidate_of(order),
        }
        return {
            "request_id": f"{self.trader_id}/{order.client_order_id}/{order.ts_init}"[:128],
            "candidate": candidate,
            "plan": plan,
            "account": {"equity": self._equity(order.instrument_id)},
            "market": {
                "last_close": close,
                "bar_closed_at": _time(market.last.ts_event),
                "bar_seconds": market.bar_seconds,
            },
        }

    def _equity(self, instrument_id: InstrumentId) -> float | None:
        """In quote currency; None where the account has none."""
        instrument = self.cache.instrument(instrument_id)
        account = self.portfolio.account(instrument_id.venue)
        total = account and instrument and account.balance_total(instrument.quote_currency)
        return float(total) if total else None

    def _bracket(self, order: Order, entry: float) -> tuple[list[float], list[float]]:
        """Prices of the orders that belong to an entry, below and above it."""
        orders = self.cache.order_list(order.order_list_id) if order.order_list_id else None
        members = orders.orders if orders else ()
        told = [
            _price(other) for other in members if other.parent_order_id == order.client_order_id
        ]
        prices = [price for price in told if price is not None]
        return [price for price in prices if price < entry], [p for p in prices if p > entry]

    def _on_position(self, event: Any) -> None:
        if not isinstance(event, PositionClosed):
            return
        known = self._decisions.get(event.opening_order_id.value)
        if known is None:
            return
        outcome = {
            "arm": "agent",
            "outcome": self._how(event),
            "exit_time": _time(event.ts_closed),
            "exit_price": event.avg_px_close,
            "net_pnl": event.realized_pnl.as_double(),
            "holding_seconds": event.duration_ns / NANOSECONDS,
        }
        self.client.report_outcome(known, outcome)

    def _how(self, event: PositionClosed) -> str:
        """What closed a position: its stop, its target, or the strategy."""
        closing = self.cache.order(event.closing_order_id) if event.closing_order_id else None
        if closing is None or closing.parent_order_id != event.opening_order_id:
            return "early_exit"
        price = _price(closing) or 0.0
        lost = price < event.avg_px_open if closing.is_sell else price > event.avg_px_open
        return "sl" if lost else "tp1"


def _price(order: Order) -> float | None:
    """Where an order would trade, as far as it says."""
    for has, name in ((order.has_trigger_price, "trigger_price"), (order.has_price, "price")):
        value = getattr(order, name, None) if has else None
        if value is not None:
            return float(value)
    return None


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / NANOSECONDS, timezone.utc)
