"""The long evaluation, as a page (`make results MARKET=DIRECTORY`): var/results.md.

Runs these evaluations, or finds them finished, and writes their tables down: all algorithms and
arms on the held-out period of real bars, the same with labels dealt out at random, the window of a
published trading model, and synthetic markets with a planted edge and with none. On two cores the
first time takes an hour or two. The words are in bench/judging/results.md.j2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
import typer

from bench.asked import SINCE, UNTIL, Since, Until, entry, period_of
from bench.judging import claim
from training.cli.options import meter
from training.config.data import HeldOutConfig
from training.config.file import read_config
from training.config.learning import ALGORITHMS
from training.config.section import at_home
from training.judging.report.document import number
from training.market.bars import Bars, MarketDataError
from training.market.sources import lengths_in, load_directory
from training.pipeline.evaluate import evaluate
from training.stages.workshop import Workshop

CONFIGS = Path("training/config")
TEMPLATE = Path(__file__).with_name("results.md.j2")
RIVALS = tuple(name for name in ALGORITHMS if name != "expected")
WORSE = "The same answers under worse conditions"
PUBLISHED = (
    ("FLAG-Trader, as published", 0.455, 1.73, 0.244),
    ("buy and hold, as published", 0.218, 0.68, 0.208),
)
"""Cumulative return, Sharpe ratio and deepest drawdown on BTC, 2023-04-05 to 2023-11-05, at 10
bps."""
WINDOW = (
    'evaluate.held_out={since=2023-04-05, until=2023-11-06, symbols=["BTCUSDT"]}',
    "evaluate.outcomes={fee=0.001, slippage=0}",
    'evaluate.size="equity"',
)


MAKER = "evaluate.outcomes={fee=0.0004, slippage=0}"
"""What orders would cost that wait in the book, were they always filled."""
FINER = ("15m", "30m")
"""Lengths of bars that decide what came first within an hour, where the market has them."""
SEEDS = 3
"""Of the published claim's trees."""


class Finished(NamedTuple):
    """An evaluation: its report's JSON twin, the gate's verdict, and where the version came
    from."""

    twin: dict[str, Any]
    verdict: dict[str, Any]
    provenance: dict[str, Any]

    def table(self, caption: str) -> list[dict[str, Any]]:
        """Rows of the table of that caption."""
        for section in self.twin["sections"]:
            for table in section["tables"]:
                if table["caption"] == caption:
                    return list(table["rows"])
        raise KeyError(f"the report has no table {caption!r}")

    def said(self, begins: str) -> str:
        """The paragraph that begins so."""
        texts = (text for section in self.twin["sections"] for text in section["text"])
        return next(str(text) for text in texts if text.startswith(begins))


def evaluated(config: str, overrides: Sequence[str], rivals: Sequence[str] = RIVALS) -> Finished:
    """Run an evaluation, or find it."""
    settings = read_config(CONFIGS / f"{config}.toml", overrides)
    others = [ALGORITHMS[name]() for name in rivals]
    shop = Workshop(settings.artifacts, print, meter)
    done = evaluate(settings, shop, datetime.now(UTC), others)
    twin = json.loads((done.artifact / "report.json").read_text(encoding="utf-8"))
    manifest = json.loads((done.version / "manifest.json").read_text(encoding="utf-8"))
    return Finished(twin, done.report["verdict"], manifest["provenance"])


def table(
    finished: Finished,
    caption: str,
    columns: Sequence[str],
    digits: int = 3,
    more: Sequence[dict[str, Any]] = (),
) -> str:
    """A table of the report with some of its columns, and rows from elsewhere below."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in [*finished.table(caption), *more]:
        lines.append(f"| {' | '.join(shown(row[name], digits) for name in columns)} |")
    return "\n".join(lines)


def shown(cell: dict[str, Any], digits: int) -> str:
    """As the report shows it, without the sample size."""
    value = cell["value"]
    if value is None:
        return f"none: {cell['reason']}"
    if isinstance(value, str):
        return value
    if "low" not in cell:
        return number(value, digits)
    return (
        f"{number(value, digits)} [{number(cell['low'], digits)}, {number(cell['high'], digits)}]"
    )


def teacher(finished: Finished) -> str:
    """Who teaches each question, and every learner's error."""
    lines = ["| question | teaches | squared error out of fold |", "|---|---|---|"]
    for name, answer in finished.provenance["teacher"].items():
        errors = ", ".join(f"{who} {error:.4f}" for who, error in answer["errors"].items())
        lines.append(f"| {name} | {answer['teaches']} | {errors} |")
    return "\n".join(lines)


def language(finished: Finished) -> str:
    """Fluency before and after."""
    before, after = (finished.provenance["language"][name] for name in ("before", "after"))
    return (
        f"perplexity of the agent's words {before['perplexity']:.1f} before and"
        f" {after['perplexity']:.1f} after, KL to the base {after['kl_to_base']:.3f} nats a token,"
        f" a rationale would fit the action in {before['consistency']:.0%} and"
        f" {after['consistency']:.0%} of {after['dialogues']} held-out dialogues"
    )


def gate(finished: Finished) -> str:
    """Its answer, with every reason."""
    codes = sorted({refusal["code"] for refusal in finished.verdict["refusals"]})
    return (
        "**The gate promotes it.**"
        if not codes
        else f"**The gate refuses it**: `{'`, `'.join(codes)}`."
    )


def page(market: Path, period: HeldOutConfig) -> str:
    """The whole page, the synthetic markets first since they are the quickest. Raises
    `MarketDataError`: there are no bars of the published window."""
    (bitcoin,) = load_directory(market, "1h", ("BTCUSDT",))
    window_of_claim(bitcoin)
    there = lengths_in(market)
    finer = [length for length in FINER if length in there]
    bars = [
        'market.source="directory"',
        f'market.directory="{market}"',
        f"market.finer={json.dumps(finer)}",
        f"evaluate.held_out.since={period.since}",
        f"evaluate.held_out.until={period.until}",
    ]
    edge, without = evaluated("planted", ()), evaluated("planted", ["market.synthetic.edge=0"])
    real = evaluated("cpu", bars)
    shuffled = evaluated("cpu", [*bars, "targets.shuffled=true", 'publish.name="shuffled"'], ())
    window = evaluated("cpu", [*bars, *WINDOW])
    maker = evaluated("cpu", [*bars, MAKER], ())
    worse = [
        other.table(WORSE)[0] | {"condition": {"value": name}}
        for name, other in (("trained on shuffled labels", shuffled), ("maker costs", maker))
    ]
    names = ("arm", "total return", "sharpe", "max drawdown")
    published = [
        {name: {"value": value} for name, value in zip(names, row, strict=True)}
        for row in PUBLISHED
    ]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        real=real,
        window=window,
        edge=edge,
        without=without,
        worse=worse,
        claim="\n".join(claim.table(claim.run(bitcoin, SEEDS))),
        published=published,
        table=table,
        gate=gate,
        teacher=teacher,
        language=language,
    )


def window_of_claim(bitcoin: Bars) -> None:
    """The published model's days are there: said before the hours that the rest takes."""
    begin, end = (int(datetime(2023, month, 5, tzinfo=UTC).timestamp()) for month in (4, 11))
    if bitcoin.closed_at[0] > begin or bitcoin.closed_at[-1] < end:
        raise MarketDataError(
            "BTCUSDT: the page needs its bars from 2023-04-05 to 2023-11-05, the days of the"
            " published model that stands beside ours"
        )


def main(
    market: Annotated[Path, typer.Option(help="Folder of bars, news, fear and greed.")],
    output: Annotated[Path, typer.Option(callback=at_home, help="The page.")] = Path(
        "var/results.md"
    ),
    since: Since = SINCE,
    until: Until = UNTIL,
) -> None:
    """Run, and write the page."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(market, period_of(since, until)), encoding="utf-8")
    print(f"written: {output}")


if __name__ == "__main__":
    entry(main)
