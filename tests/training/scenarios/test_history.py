"""What a configuration reads: lengths, finer bars, the end of what may be read, and clear
refusals."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.training.support.candles import HOUR, START, random_walk
from training.arrays import instant
from training.config.data import MarketConfig, ScenariosConfig
from training.config.file import read_config
from training.config.section import ConfigError
from training.market.bars import Bars, MarketDataError
from training.scenarios.history import bars_until, find_scenarios, load_history

UNTIL = instant(date(2023, 1, 1))


def save(folder: Path, bars: Bars, length: str) -> None:
    columns = {name: getattr(bars, name) for name in ("open", "high", "low", "close", "volume")}
    opened = pl.from_epoch(pl.Series(bars.closed_at - bars.seconds)).dt.replace_time_zone("UTC")
    pl.DataFrame({"ts": opened, **columns}).write_parquet(
        folder / f"{bars.symbol}_{length}.parquet"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    half_hours = random_walk(2000, 1, seconds=1800)
    (tmp_path / "ohlcv_30m").mkdir()
    save(tmp_path, half_hours.resampled(HOUR), "1h")
    save(tmp_path, random_walk(1000, 2, "ETHUSDT"), "1h")
    save(tmp_path / "ohlcv_30m", half_hours, "30m")
    return tmp_path


def config(folder: Path, **more: Any) -> MarketConfig:
    return MarketConfig(source="directory", directory=folder, **more)


def test_finer_bars_go_with_those_symbols_that_have_them(folder: Path) -> None:
    history = load_history(config(folder, finer=("30m",)), UNTIL)
    assert {name: [b.seconds for b in many] for name, many in history.series().items()} == {
        "BTCUSDT": [1800, 3600],
        "ETHUSDT": [3600],
    }
    assert history.seconds == HOUR


def test_no_bar_after_the_end_is_kept(folder: Path) -> None:
    history = load_history(config(folder, finer=("30m",)), START + 600 * HOUR)
    for many in history.series().values():
        for bars in many:
            assert bars.closed_at[-1] == START + 600 * HOUR


def found_of(market: MarketConfig, settings: ScenariosConfig) -> set[str]:
    """Symbols with candidates in the first thousand hours."""
    scenarios, _ = find_scenarios(load_history(market, START + 1000 * HOUR), settings)
    return {each.scenario.candidate.symbol for each in scenarios}


def test_a_symbol_that_is_too_young_holds_up_no_other(folder: Path) -> None:
    """ETHUSDT begins after what may be read ends, or a hundred hours before: too few for the
    indicators. Named, it is missed."""
    late = random_walk(1000, 2, "ETHUSDT")
    for shift, symbols in ((1000, {"BTCUSDT"}), (900, {"BTCUSDT", "ETHUSDT"})):
        moved = replace(late, closed_at=late.closed_at + shift * HOUR)
        save(folder, moved, "1h")
        history = load_history(config(folder), START + 1000 * HOUR)
        assert {bars.symbol for bars in history.bars} == symbols
        assert found_of(config(folder), ScenariosConfig()) == {"BTCUSDT"}
        named = config(folder, symbols=("BTCUSDT", "ETHUSDT"))
        with pytest.raises(MarketDataError, match=r"ETHUSDT: (no bar before|100 bars are too few)"):
            found_of(named, ScenariosConfig(symbols=("ETHUSDT",)))


def test_news_and_fear_and_greed_beside_the_bars_are_found(folder: Path) -> None:
    assert load_history(config(folder), UNTIL).context.fear_greed is None
    pl.DataFrame({"date": [date(2021, 1, 1)], "value": [40]}).write_parquet(
        folder / "fear_greed.parquet"
    )
    (folder / "news").mkdir()
    pl.DataFrame(
        {"available_at": [0], "title": ["x"], "symbols": [["BTC"]]},
        schema={
            "available_at": pl.Datetime("us", "UTC"),
            "title": pl.String,
            "symbols": pl.List(pl.String),
        },
    ).write_parquet(folder / "news" / "news.parquet")
    context = load_history(config(folder), UNTIL).context
    assert context.fear_greed is not None
    assert context.market is not None


def test_a_fingerprint_follows_every_value(folder: Path) -> None:
    before = load_history(config(folder), UNTIL).hash()
    assert load_history(config(folder), UNTIL).hash() == before
    bars = random_walk(1000, 2, "ETHUSDT")
    bars.volume[500] += 1e-6
    save(folder, bars, "1h")
    assert load_history(config(folder), UNTIL).hash() != before


def test_bars_join_into_longer_ones_and_only_whole_ones_count() -> None:
    halves = random_walk(9, 1, seconds=1800)
    holed = Bars("BTCUSDT", 1800, *(np.delete(getattr(halves, n), 3) for n in
                 ("closed_at", "open", "high", "low", "close", "volume")))  # fmt: skip
    hours = holed.resampled(HOUR)
    assert hours.closed_at.tolist() == [START + hour * HOUR for hour in (1, 3, 4)]
    assert hours.open[1] == halves.open[4]
    assert hours.close[1] == halves.close[5]
    assert hours.high[1] == max(halves.high[4:6])
    assert hours.low[1] == min(halves.low[4:6])
    assert hours.volume[1] == halves.volume[4] + halves.volume[5]


def test_the_bundled_bars_come_by_the_hour_with_their_half_hours() -> None:
    history = load_history(MarketConfig(symbols=("BTCUSDT",), finer=("30m",)), UNTIL)
    assert [bars.seconds for bars in history.series()["BTCUSDT"]] == [1800, 3600]
    assert len(history.bars[0]) > 15_000


def test_a_synthetic_market_is_one_of_the_sources() -> None:
    section = MarketConfig.model_validate(
        {"source": "synthetic", "synthetic": {"symbols": 2, "bars": 1000}}
    )
    history = load_history(section, UNTIL)
    assert [bars.symbol for bars in history.bars] == ["BTCUSDT", "ETHUSDT"]
    with pytest.raises(MarketDataError, match="names its own"):
        load_history(section.model_copy(update={"symbols": ("BTCUSDT",)}), UNTIL)


@pytest.mark.parametrize(
    ("more", "until", "message"),
    [
        ({"finer": ("1h",)}, UNTIL, "must be shorter than the bars, 1h"),
        ({"finer": ("15m",)}, UNTIL, "no 15m bars"),
        ({"symbols": ("XRPUSDT",)}, UNTIL, "no 1h bars of XRPUSDT"),
        ({}, START, "BTCUSDT, ETHUSDT: no bar before 20.*, where what may be read ends"),
        ({"news": Path("absent.parquet")}, UNTIL, "absent.parquet: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    folder: Path, more: dict[str, Any], until: int, message: str
) -> None:
    with pytest.raises(MarketDataError, match=message):
        load_history(config(folder, **more), until)


def test_history_ends_where_the_held_out_period_begins_and_the_log_goes_on_after_it(
    tmp_path: Path,
) -> None:
    assert bars_until(ScenariosConfig()) == date(2023, 1, 1)
    assert bars_until(ScenariosConfig(until=date(2021, 5, 1))) == date(2021, 5, 1)
    assert bars_until(ScenariosConfig(source="shadow_log")) is None
    (tmp_path / "bad.toml").write_text('[scenarios]\nsource = "history"\nuntil = 2026-01-01\n')
    with pytest.raises(ConfigError, match="held out for evaluation"):
        read_config(tmp_path / "bad.toml")
