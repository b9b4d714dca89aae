"""Strategies that end their trades by prices alone, one of each kind, and two that do not."""

from datetime import datetime

import talib.abstract as ta
from freqtrade.strategy import IStrategy
from pandas import DataFrame
from shadow_advisor_client.adapters.freqtrade import ShadowAdvisor


class RoiTable(ShadowAdvisor, IStrategy):  # type: ignore[misc]  # Here is no freqtrade.
    """A table of profits, and a stop."""

    timeframe = "30m"
    minimal_roi = {"0": 0.03, "120": 0.015, "600": 0.0}  # noqa: RUF012
    stoploss = -0.02
    startup_candle_count = 50

    def populate_indicators(self, dataframe: DataFrame, metadata: dict[str, str]) -> DataFrame:
        dataframe["rsi"] = ta.RSI(dataframe)
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict[str, str]) -> DataFrame:
        dataframe.loc[dataframe["rsi"] < 38, "enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict[str, str]) -> DataFrame:
        return dataframe


class Trailing(RoiTable):
    """A stop that follows the highest high at its own distance."""

    minimal_roi = {"0": 0.10}  # noqa: RUF012
    trailing_stop = True


class TrailingPositive(RoiTable):
    """A stop that follows closer once a profit is reached, and not before."""

    minimal_roi = {"0": 0.10}  # noqa: RUF012
    trailing_stop = True
    trailing_stop_positive = 0.005
    trailing_stop_positive_offset = 0.012
    trailing_only_offset_is_reached = True


class Signals(RoiTable):
    """Sells by signals as well."""

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict[str, str]) -> DataFrame:
        dataframe.loc[dataframe["rsi"] > 60, "exit_long"] = 1
        return dataframe


class OwnExit(RoiTable):
    """Sells by a function of its own."""

    def custom_exit(self, pair: str, current_time: datetime, **others: object) -> str | None:
        return "noon" if current_time.hour == 12 else None
