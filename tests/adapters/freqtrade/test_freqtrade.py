"""The real freqtrade with the mixin, on bundled candles and an exchange on this machine: every
entry is a decision, every trade has its outcome. Opt-in: `make test-freqtrade`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psycopg
import pytest
from psycopg.rows import dict_row
from shadow_advisor_client.adapters.freqtrade.request import symbol_of

from app.domain.scenario import Scenario
from app.shadow_log.importing.coverage import Coverage
from app.shadow_log.importing.imports import read_trades, source_named
from app.shadow_log.importing.trade import ImportedTrade
from tests.adapters.freqtrade.candles import bundled, write_candles
from tests.service.running import ROOT, running, settings_for, until, writing
from training.outcomes.orders import Orders, plan_order
from training.outcomes.simulate import Costs, Exit, simulate

PYTHON = os.environ.get("FREQTRADE_PYTHON")
HERE = Path(__file__).parent
EXAMPLE = ROOT / "client" / "examples" / "freqtrade"
CANDLES = 1500
pytestmark = [
    pytest.mark.freqtrade,
    pytest.mark.skipif(not PYTHON, reason="FREQTRADE_PYTHON is not set: make test-freqtrade"),
    pytest.mark.timeout(600),
]


class Bot:
    """A folder of freqtrade's."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.candles = folder / "candles"
        self.url = url
        write_candles(self.candles, CANDLES)

    def configured(self, **changes: Any) -> Path:
        """The example's configuration with other values."""
        config = json.loads((EXAMPLE / "config.json").read_text())
        config["shadow_advisor"]["url"] = self.url
        for key, value in changes.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        return path

    def run(self, script: str, *arguments: str) -> str:
        """A script in freqtrade's environment; what it said."""
        assert PYTHON is not None
        done = subprocess.run(
            [PYTHON, str(HERE / script), str(self.candles), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        return done.stdout + done.stderr

    def backtest(
        self, strategy: str, config: Path, strategies: Path = EXAMPLE / "strategies"
    ) -> list[dict[str, Any]]:
        """The trades of a back-test."""
        folders = ("--user-data-dir", str(self.folder / "user"), "--datadir", str(self.candles))
        (self.folder / "user").mkdir(exist_ok=True)
        self.said = self.run(
            "local_exchange.py",
            *("backtesting", "--config", str(config), *folders, "--cache", "none"),
            *("--strategy-path", str(strategies), "--strategy", strategy),
        )
        (archive,) = (self.folder / "user" / "backtest_results").glob("*.zip")
        with ZipFile(archive) as files:
            name = archive.name.replace(".zip", ".json")
            document = json.load(io.BytesIO(files.read(name)))
        trades: list[dict[str, Any]] = document["strategy"][strategy]["trades"]
        return trades


def rows(database_url: str, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(database_url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        return connection.execute(query).fetchall()


DECISIONS = """
SELECT d.symbol, d.as_of, d.scenario, a.record AS action, o.record AS outcome
FROM whole_decisions d
LEFT JOIN latest_actions a USING (decision_id)
LEFT JOIN latest_outcomes o USING (decision_id)
ORDER BY d.as_of, d.symbol"""


async def recorded(database_url: str, outcomes: int) -> list[Mapping[str, Any]]:
    """All decisions, once so many outcomes have arrived."""

    async def there() -> bool:
        (row,) = rows(database_url, "SELECT count(*) AS n FROM outcomes")
        return bool(row["n"] >= outcomes)

    await until(there)
    return list(rows(database_url, DECISIONS))


FUTURES = {
    "trading_mode": "futures",
    "margin_mode": "isolated",
    "exchange": {"pair_whitelist": ["BTC/USDT:USDT", "ETH/USDT:USDT"]},
}
MODES = pytest.mark.parametrize(
    ("strategy", "changes"),
    [("Shadowed", {}), ("ShadowedFutures", FUTURES)],
    ids=["spot", "futures"],
)


@MODES
async def test_a_back_test_is_on_the_record_trade_by_trade(
    strategy: str, changes: dict[str, Any], database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, valkey_url, tmp_path / "home", clock="request")
    async with running(settings) as service, writing(settings):
        bot = Bot(tmp_path, service.url.rstrip("/"))
        trades = await asyncio.to_thread(bot.backtest, strategy, bot.configured(**changes))
        (tmp_path / "said").write_text(bot.said)
        decisions = await recorded(database_url, len(trades))
    assert len(trades) > 10
    made = [row for row in decisions if row["action"]["decision"]]
    refused = [row for row in decisions if not row["action"]["decision"]]
    assert {row["action"]["final_skip_reason"] for row in refused} == {"confirm_trade_entry"}
    assert all(row["scenario"]["candidate"]["adx"] >= 40 for row in refused)
    assert all(row["scenario"]["candidate"]["adx"] < 40 for row in made)

    trades.sort(key=lambda trade: (trade["open_timestamp"], trade["pair"]))
    assert len(made) == len(trades)
    for row, trade in zip(made, trades, strict=True):
        assert row["as_of"].timestamp() * 1000 == trade["open_timestamp"]
        assert row["symbol"] == symbol_of(trade["pair"])
        assert row["scenario"]["candidate"]["direction"] == (
            "short" if trade["is_short"] else "long"
        )
        assert row["action"]["quantity"] == pytest.approx(trade["amount"])
        assert row["action"]["entry"] == pytest.approx(trade["open_rate"])
        assert row["outcome"]["exit_reason"] == trade["exit_reason"]
        assert row["outcome"]["exit_price"] == pytest.approx(trade["close_rate"])
        assert row["outcome"]["net_pnl"] == pytest.approx(trade["profit_abs"], abs=1e-6)
        assert row["scenario"]["market"]["bar_closed_at"] == row["scenario"]["candidate"]["ts"]
    assert "the shadow advisor failed" not in bot.said
    (archive,) = (tmp_path / "user" / "backtest_results").glob("*.zip")
    told = [(trade.symbol, trade.as_of, trade.action.stop) for trade in imported(archive)]
    recorded_stops = [(row["symbol"], row["as_of"], row["action"]["stop"]) for row in made]
    assert sorted(told) == [
        (symbol, at, pytest.approx(stop, rel=1e-3)) for symbol, at, stop in sorted(recorded_stops)
    ]


ENDS = {Exit.STOP: "stop_loss", Exit.ROI: "roi", Exit.TRAIL: "trailing_stop_loss"}


async def backtested(
    strategy: str, database_url: str, valkey_url: str, folder: Path
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """A back-test's trades, and the decisions on them, in the same order."""
    settings = settings_for(database_url, valkey_url, folder / "home", clock="request")
    async with running(settings) as service, writing(settings):
        bot = Bot(folder, service.url.rstrip("/"))
        trades = await asyncio.to_thread(
            bot.backtest, strategy, bot.configured(), HERE / "strategies"
        )
        decisions = await recorded(database_url, len(trades))
    trades.sort(key=lambda trade: (trade["open_timestamp"], trade["pair"]))
    assert len(trades) == len(decisions) > 15
    return trades, decisions


@pytest.mark.parametrize("strategy", ["RoiTable", "Trailing", "TrailingPositive"])
async def test_what_is_simulated_of_a_strategy_s_exits_is_what_its_own_back_test_did(
    strategy: str, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    trades, decisions = await backtested(strategy, database_url, valkey_url, tmp_path)
    bars = {each.symbol: each for each in bundled(CANDLES)}
    costs = Costs(fee=0.001, slippage=0.0)
    for trade, row in zip(trades, decisions, strict=True):
        if trade["exit_reason"] == "force_exit":  # The candles end.
            continue
        order = plan_order(Scenario.from_json(row["scenario"]))
        series = bars[order.symbol]
        fate = simulate(series, Orders.of([order]), costs).row(0)
        assert fate is not None
        assert fate.bought == pytest.approx(trade["open_rate"])
        # freqtrade names a bar by its opening.
        assert (fate.exited_at - series.seconds) * 1000 == trade["close_timestamp"]
        assert fate.sold == pytest.approx(trade["close_rate"])
        assert ENDS[fate.exit] == trade["exit_reason"]
        # freqtrade's ratio is over what the entry cost, its fee included.
        earned = fate.net / (trade["open_rate"] * order.quantity * (1 + costs.fee))
        assert earned == pytest.approx(trade["profit_ratio"], abs=1e-5)


@pytest.mark.parametrize("strategy", ["Signals", "OwnExit"])
async def test_exits_that_nobody_can_follow_are_declared_as_reported(
    strategy: str, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    _, decisions = await backtested(strategy, database_url, valkey_url, tmp_path)
    kinds = {row["scenario"]["plan"]["exits"]["kind"] for row in decisions}
    assert kinds == {"reported"}


async def test_advice_that_is_followed_refuses_entries(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    # Nobody knows the time to the next news: these limits refuse every entry.
    settings = settings_for(database_url, valkey_url, tmp_path / "home", clock="request")
    async with running(settings) as service, writing(settings):
        bot = Bot(tmp_path, service.url.rstrip("/"))
        config = bot.configured(shadow_advisor={"follow": True, "url": bot.url})
        trades = await asyncio.to_thread(bot.backtest, "Shadowed", config)

        async def there() -> bool:
            (counts,) = rows(
                database_url,
                "SELECT (SELECT count(*) FROM decisions) AS decided,"
                " (SELECT count(*) FROM agent_actions) AS acted",
            )
            return bool(counts["decided"] == counts["acted"] > 10)

        await until(there)
        decisions = rows(database_url, DECISIONS)
    assert trades == []
    assert not any(row["action"]["decision"] for row in decisions)
    reasons = {row["action"]["final_skip_reason"] for row in decisions}
    assert reasons == {"shadow_advisor", "confirm_trade_entry"}


def connected(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The page on freqtrade, as somebody copies it: a folder with the strategy, and the section of
    the configuration."""
    road = (ROOT / "docs" / "connect-freqtrade.md").read_text()
    (strategy,) = re.findall(r"```python\n(.*?)```", road, re.DOTALL)
    (section,) = re.findall(r"```json\n(.*?)```", road, re.DOTALL)
    strategies = folder / "strategies"
    strategies.mkdir()
    (strategies / "mine.py").write_text(strategy)
    return strategies, json.loads("{" + section + "}")


async def test_the_road_of_the_page_on_connecting_leads_to_rows(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    strategies, section = connected(tmp_path)
    document, decisions = await dry_run(
        "MyStrategy", section, strategies, database_url, valkey_url, tmp_path
    )
    assert document["faults"] == {}
    assert [row["outcome"] is not None for row in decisions] == [True, True]


@MODES
async def test_a_dry_run_reports_what_its_trades_earned_across_a_restart(
    strategy: str, changes: dict[str, Any], database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    document, decisions = await dry_run(
        strategy, changes, EXAMPLE / "strategies", database_url, valkey_url, tmp_path
    )
    assert document["faults"] == {}
    trades = {symbol_of(trade["pair"]): trade for trade in document["trades"]}
    assert {row["symbol"] for row in decisions} == set(trades) == {"BTCUSDT", "ETHUSDT"}
    for row in decisions:
        trade = trades[row["symbol"]]
        assert row["action"]["decision"]
        assert row["action"]["entry"] == pytest.approx(trade["open_rate"])
        assert row["action"]["quantity"] == pytest.approx(trade["amount"])
        assert row["outcome"]["net_pnl"] == pytest.approx(trade["close_profit_abs"])
        assert row["outcome"]["exit_reason"] == trade["exit_reason"]
    codes = {row["symbol"]: row["outcome"]["outcome"] for row in decisions}
    assert codes == {"BTCUSDT": "tp1", "ETHUSDT": "sl"}
    kept = {told.symbol: told for told in imported(tmp_path / "tradesv3.dryrun.sqlite")}
    for row in decisions:
        told, reported = kept[row["symbol"]], row["outcome"]
        assert told.outcome is not None
        assert told.outcome.net_pnl == pytest.approx(reported["net_pnl"])
        assert told.outcome.outcome == reported["outcome"]
        assert told.action.stop == pytest.approx(row["action"]["stop"], rel=1e-3)  # Its precision.


def imported(path: Path) -> list[ImportedTrade]:
    """Trades of a file of freqtrade's own."""
    return list(read_trades(source_named("freqtrade"), path, None, Coverage()))


async def dry_run(
    strategy: str,
    changes: dict[str, Any],
    strategies: Path,
    database_url: str,
    valkey_url: str,
    folder: Path,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """What a dry run said at its end, and the log's decisions."""
    settings = settings_for(database_url, valkey_url, folder / "home")
    async with running(settings) as service, writing(settings):
        url = service.url.rstrip("/")
        bot = Bot(folder, url)
        market = dict.fromkeys(("entry", "exit", "emergency_exit", "stoploss"), "market")
        orders = {"order_types": {**market, "stoploss_on_exchange": False}}
        told = {"shadow_advisor": {"url": url}}  # The page's is the default port.
        config = bot.configured(**{**orders, **changes, **told})
        (folder / "user").mkdir()
        said = await asyncio.to_thread(
            bot.run, "dry_run.py", str(config), str(strategies), strategy
        )
        (folder / "said").write_text(said)
        decisions = await recorded(database_url, 2)
    return json.loads(said.partition("TRADES ")[2].splitlines()[0]), decisions
