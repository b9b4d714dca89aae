"""The real freqtrade on an exchange that is on this machine: only what ccxt would ask over the
internet is answered here, from a folder of candles. Runs in freqtrade's own environment.

usage: local_exchange.py CANDLES freqtrade's arguments ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ccxt
import ccxt.async_support
import ccxt.pro

BASES = ("BTC", "ETH")


def market(base: str, swap: bool) -> dict[str, Any]:
    """A market as ccxt describes it."""
    symbol = f"{base}/USDT:USDT" if swap else f"{base}/USDT"
    return {
        "id": f"{base}USDT",
        "lowercaseId": f"{base}usdt".lower(),
        "symbol": symbol,
        "base": base,
        "quote": "USDT",
        "settle": "USDT" if swap else None,
        "baseId": base,
        "quoteId": "USDT",
        "settleId": "USDT" if swap else None,
        "type": "swap" if swap else "spot",
        "spot": not swap,
        "margin": not swap,
        "swap": swap,
        "future": False,
        "option": False,
        "active": True,
        "contract": swap,
        "linear": True if swap else None,
        "inverse": False if swap else None,
        "contractSize": 1.0 if swap else None,
        "taker": 0.001,
        "maker": 0.001,
        "percentage": True,
        "tierBased": False,
        "feeSide": "get",
        "precision": {"amount": 0.00001, "price": 0.01},
        "limits": {
            "amount": {"min": 0.00001, "max": 9000},
            "price": {"min": 0.01, "max": 1_000_000},
            "cost": {"min": 5, "max": 9_000_000},
            "leverage": {"min": 1, "max": 20},
        },
        "info": {},
    }


def markets() -> list[dict[str, Any]]:
    return [market(base, swap) for base in BASES for swap in (False, True)]


class Prices:
    """Where the exchange's candles end, and what they cost now: a dry run moves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ticker: dict[str, float] = {}
        self.candles: dict[str, list[list[float]]] = {}

    def of(self, symbol: str) -> dict[str, Any]:
        price = self.ticker[symbol]
        return {"symbol": symbol, "bid": price, "ask": price, "last": price, "quoteVolume": 1e9}


def install(prices: Prices) -> None:
    """Replace what asks the internet, in ccxt's three kinds of the exchange."""

    async def fetch_markets(self: Any, params: Any = None) -> list[dict[str, Any]]:
        return markets()

    async def fetch_currencies(self: Any, params: Any = None) -> dict[str, Any]:
        return {}

    async def fetch_ohlcv(
        self: Any, symbol: str, timeframe: str, since: int | None = None, **others: Any
    ) -> list[list[float]]:
        return [row for row in prices.candles[symbol] if since is None or row[0] >= since]

    for kind in (ccxt.async_support.binance, ccxt.pro.binance):
        kind.fetch_markets = fetch_markets
        kind.fetch_currencies = fetch_currencies
        kind.fetch_ohlcv = fetch_ohlcv
    ccxt.binance.fetch_ticker = lambda self, symbol, params=None: prices.of(symbol)
    ccxt.binance.fetch_tickers = lambda self, symbols=None, params=None: {
        symbol: prices.of(symbol) for symbol in symbols or prices.ticker
    }
    ccxt.binance.fetch_l2_order_book = lambda self, symbol, limit=None, params=None: {
        "bids": [[prices.ticker[symbol], 1e6]],
        "asks": [[prices.ticker[symbol], 1e6]],
    }
    ccxt.binance.fetch_time = lambda self, params=None: ccxt.Exchange.milliseconds()
    ccxt.binance.fetch_funding_rate = lambda self, symbol, params=None: {"fundingRate": 0.0}


def main() -> None:
    install(Prices(Path(sys.argv[1])))
    from freqtrade.main import main as freqtrade  # ccxt must be replaced before it is read.

    freqtrade(sys.argv[2:])


if __name__ == "__main__":
    main()
