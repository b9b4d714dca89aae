"""Walk-forward: the whole rebuild before each of several periods, judged on what came next. No
held-out day is read.

An evaluation judges a version; this judges how versions are made, on years that development may
look at. Each period's policy and simple rivals were made from decisions before it, purged and an
embargo apart; all periods together are one contest, with one report.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta

from training.arrays import instant
from training.config.data import ScenariosConfig
from training.config.file import RebuildConfig
from training.config.judging import WalkForwardConfig
from training.judging.evaluation import walk_forward as judged
from training.learning.model.answers import of_policy
from training.learning.model.base_pass import encoded
from training.learning.teacher.expectations import taught
from training.outcomes.labels import labels
from training.pipeline.evaluate import limits_of, terms_of
from training.pipeline.rebuild import base_of, market_of, rebuild, scenarios_of
from training.scenarios.splits import embargo_s
from training.stages.store import Artifact
from training.stages.workshop import Workshop


def walk_forward(config: RebuildConfig, shop: Workshop, now: datetime) -> Artifact:
    """Rebuild for every period, hold the contest, write the report. `now` is the time that is
    written down."""
    walk, limits, terms = config.walk_forward, limits_of(config), terms_of(config)
    period = ScenariosConfig(
        since=walk.first, until=walk.until, limit=walk.limit, symbols=config.scenarios.symbols
    )
    all_periods = config.model_copy(update={"scenarios": period})
    market, base = market_of(all_periods), base_of(config, shop)
    scenarios = scenarios_of(all_periods, market, shop, None)
    base_pass = shop.make(encoded, scenarios=scenarios, base=base, settings=config.encode)

    rebuilt, answers, read, spans = {}, {}, {}, {}
    for begin, end in periods(walk):
        name = f"{begin} to {end}"
        shop.tell(f"period {name}")
        before = config.scenarios.model_copy(update={"until": begin})
        made = rebuild(config.model_copy(update={"scenarios": before}), shop, None, base)
        rebuilt[name], spans[name] = made, (instant(begin), instant(end))
        answers[name] = shop.make(of_policy, name, policy=made.policy, encoded=base_pass, base=base)
        read[name] = shop.make(
            taught,
            name,
            scenarios=scenarios,
            teacher=made.artifacts["teacher"],
            encoded=base_pass,
        )

    return shop.make(
        judged,
        scenarios=scenarios,
        labels=shop.make(labels, scenarios=scenarios, market=market, settings=terms.outcomes),
        encoded=base_pass,
        answers=answers,
        taught=read,
        trained_scenarios={name: made.artifacts["scenarios"] for name, made in rebuilt.items()},
        trained_labels={name: made.artifacts["labels"] for name, made in rebuilt.items()},
        base=base,
        market=market,
        limits=limits,
        spans=spans,
        terms=terms,
        embargo_s=embargo_s(config.scenarios),
        now=now,
        cpu_seconds=made.cpu_seconds,
    )


def periods(walk: WalkForwardConfig) -> Iterator[tuple[date, date]]:
    """First days of the judged periods, and the days on which they are over."""
    begin = walk.first
    while begin < walk.until:
        end = min(begin + timedelta(days=walk.period_days), walk.until)
        yield begin, end
        begin = end
