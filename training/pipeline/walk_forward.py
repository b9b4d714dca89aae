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
from training.config.section import ConfigError
from training.judging.contest.arms import BASE_MODEL
from training.judging.evaluation import walk_forward as contest
from training.judging.report.findings import Making
from training.learning.model.answers import of_base, of_policy
from training.learning.model.base_pass import encoded
from training.learning.teacher.expectations import taught
from training.pipeline.evaluate import limits_of, terms_of
from training.pipeline.rebuild import base_of, labelled, market_of, rebuild
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact
from training.stages.workshop import Workshop


def walk_forward(config: RebuildConfig, shop: Workshop, now: datetime) -> Artifact:
    """Rebuild for every period, hold the contest, write the report. `now` is the time that is
    written down."""
    walk, limits, terms = config.walk_forward, limits_of(config), terms_of(config)
    period = ScenariosConfig(
        since=walk.first, until=walk.until, limit=walk.limit, symbols=config.scenarios.symbols
    )
    judged = config.model_copy(update={"scenarios": period, "outcomes": terms.outcomes})
    market, base = market_of(judged), base_of(config, shop)
    held_out = labelled(judged, market, shop, None)
    scenarios = held_out["scenarios"]
    base_pass = shop.make(encoded, scenarios=scenarios, base=base, settings=config.encode)
    untuned = shop.make(of_base, BASE_MODEL, encoded=base_pass, base=base)

    walked, spans, cpu_seconds = {}, {}, 0.0
    as_of = ScenarioSet.open(scenarios).as_of
    for begin, end in periods(walk):
        name, span = f"{begin} to {end}", (instant(begin), instant(end))
        asked = int(((as_of >= span[0]) & (as_of < span[1])).sum())
        shop.tell(f"period {name}: {asked:,} scenarios" + ("" if asked else ", left out"))
        if not asked:
            continue
        before = config.scenarios.model_copy(update={"until": begin})
        made = rebuild(config.model_copy(update={"scenarios": before}), shop, None, base)
        teacher = made.artifacts["teacher"]
        answers = shop.make(of_policy, name, policy=made.policy, encoded=base_pass, base=base)
        read = shop.make(taught, name, scenarios=scenarios, teacher=teacher, encoded=base_pass)
        walked[name] = {"trained": made.trained, "answers": answers, "taught": read}
        spans[name] = span
        cpu_seconds += made.cpu_seconds

    if not walked:
        raise ConfigError(f"no scenario is decided from {walk.first} to {walk.until}")
    return shop.make(
        contest,
        held_out={**held_out, "answers": {BASE_MODEL: untuned}},
        walked=walked,
        market=market,
        limits=limits,
        spans=spans,
        terms=terms,
        now=now,
        making=Making(cpu_seconds),
    )


def periods(walk: WalkForwardConfig) -> Iterator[tuple[date, date]]:
    """First days of the judged periods, and the days on which they are over."""
    begin = walk.first
    while begin < walk.until:
        end = min(begin + timedelta(days=walk.period_days), walk.until)
        yield begin, end
        begin = end
