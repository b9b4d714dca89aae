"""A freqtrade strategy that asks a shadow advisor about every entry: the two lines with
ShadowAdvisor are all that it takes."""

from datetime import datetime

import talib.abstract as ta
from freqtrade.strategy import IStrategy
from pandas import DataFrame

from shadow_advisor_client.adapters.freqtrade import ShadowAdvisor


class Shadowed(ShadowAdvisor, IStrategy):
    """Buys a falling RSI in calm markets, sells a risen one. An example, not advice."""

    timeframe = "30m"
    can_short = False
    minimal_roi = {"0": 0.04}  # noqa: RUF012
    stoploss = -0.03
    startup_candle_count = 50

    def populate_indicators(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe["rsi"] = ta.RSI(dataframe)
        dataframe["adx"] = ta.ADX(dataframe)
        dataframe["atr"] = ta.ATR(dataframe)
        return dataframe

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe.loc[dataframe["rsi"] < 30, ["enter_long", "enter_tag"]] = (1, "rsi_below_30")
        return dataframe

    def populate_exit_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe.loc[dataframe["rsi"] > 60, "exit_long"] = 1
        return dataframe

    def confirm_trade_entry(
        self, pair: str, amount: float, rate: float, current_time: datetime, **others: object
    ) -> bool:
        """A hook of one's own stays as it is: no falling knives."""
        dataframe, _ = self.dp.get_analyzed_dataframe(pair, self.timeframe)
        return dataframe["adx"].iloc[-1] < 40


class ShadowedFutures(Shadowed):
    """Longs and shorts, on leverage, with a trailing stop."""

    can_short = True
    trailing_stop = True
    trailing_stop_positive = 0.01
    trailing_stop_positive_offset = 0.02

    def populate_entry_trend(self, dataframe: DataFrame, metadata: dict) -> DataFrame:
        dataframe = super().populate_entry_trend(dataframe, metadata)
        dataframe.loc[dataframe["rsi"] > 75, ["enter_short", "enter_tag"]] = (1, "rsi_above_75")
        return dataframe

    def leverage(self, pair: str, current_time: datetime, **others: object) -> float:
        return 3.0
