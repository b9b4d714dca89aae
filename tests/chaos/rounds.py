"""Rounds of faults under load, judged one by one; lives of some rounds each, verified at their
end."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import combinations, count
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import monotonic

from app.shadow_log.proof.findings import Fault as Finding
from app.shadow_log.proof.findings import VerifyReport
from app.shadow_log.proof.verify import verify_log
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.judge import Judgement, judge
from tests.chaos.load import Load
from tests.chaos.stack import Stack, living
from tests.service.running import until

ROUNDS_PER_LIFE = 9
QUIET_REQUESTS, MORE_REQUESTS = 30, 30
SEEN_S = 15.0
OBEYED_S = 2.0
"""A second is promised; the machine that this runs on is busy."""
OF_A_LOSS = {Finding.GAP, Finding.ORPHAN_REPORT, Finding.FORGOTTEN, Finding.REPEAT_OF_NOTHING}
"""What `advisor verify` names where events are lost: their numbers, and what was said of them since
to somebody who reported on one, or asked again."""


@dataclass
class Round:
    """What one round did, and what came of it."""

    number: int
    faults: Sequence[Fault]
    start_s: float = 0.0
    """Until what was ended runs again."""
    recovery_s: float = 0.0
    """From then on, until all is ready and nothing waits."""
    answered: int = 0
    refused: int = 0
    doubtful: int = 0
    lost: int = 0
    missing: int = 0
    second: int = 0
    forgotten: int = 0
    obeyed_s: float = 0.0
    """The longest that somebody was approved after HALTED was acknowledged."""
    violations: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " + ".join(fault.name for fault in self.faults)

    def line(self) -> str:
        """For people."""
        parts = [
            f"{self.number:4} {self.name:52} {self.answered:5} answered {self.refused:4} refused",
            f"{self.doubtful:3} unknown {self.lost:3} lost {self.missing:3} counted",
            f"{self.second:2} second {self.forgotten:2} forgotten"
            f" {self.start_s:5.1f} + {self.recovery_s:4.1f} s",
        ]
        return "  ".join([*parts, *(f"\n     VIOLATED: {what}" for what in self.violations)])


async def rounds(
    total: int, seed: int, names: Sequence[str] = (), keep: Path | None = None
) -> AsyncIterator[Round]:
    """So many rounds; the same seed does the same faults in the same order. Logs and data stay in
    `keep` when it is given."""
    random = Random(seed)
    plan = _plan(random, [fault for fault in FAULTS if not names or fault.name in names])
    planned = deque(Round(number + 1, next(plan)) for number in range(total))
    for life in count():
        if not planned:
            return
        with tempfile.TemporaryDirectory(prefix="advisor-chaos-") as temporary:
            home = keep / f"life-{life}" if keep else Path(temporary)
            home.mkdir(parents=True, exist_ok=keep is None)
            try:
                async for done in _life(home, planned, random, seed + life):
                    yield done
            except Exception as error:  # Its servers or processes did not start: others may.
                if not planned:
                    raise
                done = planned.popleft()
                done.violations.append(f"its life did not begin: {error!r} in {_where(error)}")
                yield done


async def _life(
    home: Path, planned: deque[Round], random: Random, seed: int
) -> AsyncIterator[Round]:
    """Some of the rounds that are planned, on one stack; a round that does not come to its end is
    the last one."""
    async with living(home) as stack:
        load = Load([replica.url for replica in stack.replicas], seed)
        before, left = Judgement(), ROUNDS_PER_LIFE
        try:
            while planned and left:
                done, left = planned.popleft(), left - 1
                try:
                    before = await _round(stack, load, random, done, before)
                    if not planned or not left:
                        done.violations += await _verified(stack, before)
                except Exception as error:
                    done.violations.append(f"it did not end: {error!r} in {_where(error)}")
                    left = 0
                yield done
        finally:
            await load.aclose()


def _where(error: Exception) -> str:
    """What of this harness was under way."""
    frames = traceback.extract_tb(error.__traceback__)
    return " > ".join(frame.name for frame in frames if f"{os.sep}chaos{os.sep}" in frame.filename)


def _plan(random: Random, faults: Sequence[Fault]) -> Iterator[Sequence[Fault]]:
    """Every fault in turn, in an order drawn anew; then as many pairs of two parts."""
    while True:
        for fault in random.sample(faults, len(faults)):
            yield [fault]
        pairs = [
            pair
            for pair in combinations([fault for fault in faults if fault.part != "all"], 2)
            if pair[0].part != pair[1].part
        ]
        yield from random.sample(pairs, min(len(pairs), len(faults)))


async def _round(
    stack: Stack, load: Load, random: Random, done: Round, before: Judgement
) -> Judgement:
    refused = load.refused
    load.violations.clear()
    load.begin()
    await load.go_on(QUIET_REQUESTS)
    async with AsyncExitStack() as mending:
        for fault in done.faults:
            await mending.enter_async_context(fault.do(stack, load, random))
        await load.go_on(random.randrange(40, 120))
        if any(fault.seen for fault in done.faults):
            await _seen(stack, load)
        over = monotonic()
    started = monotonic()
    await stack.recovered()
    done.start_s, done.recovery_s = started - over, monotonic() - started
    await load.go_on(MORE_REQUESTS)
    await load.finish()
    await stack.quiet()
    after = await judge(stack, load)
    done.refused = load.refused - refused
    done.obeyed_s, load.obeyed_s = max(load.obeyed_s, default=0.0), []
    if done.obeyed_s > OBEYED_S:
        done.violations.append(f"approved {done.obeyed_s:.2f} s after HALTED")
    for name in ("answered", "doubtful", "lost", "missing", "second", "forgotten"):
        setattr(done, name, getattr(after, name) - getattr(before, name))
    done.violations += after.violations
    if after.uncounted > before.uncounted:
        done.violations.append(
            f"{done.lost} answered events and {done.forgotten} accepted requests are lost,"
            f" {done.missing} are counted"
        )
    if after.overcounted > before.overcounted:
        done.violations.append(f"{done.missing} are counted as missing, too many")
    lost = done.lost + done.forgotten
    if lost and not any(fault.forgets for fault in done.faults):
        done.violations.append(f"{lost} are lost, though Valkey kept its data")
    return after


async def _seen(stack: Stack, load: Load) -> None:
    """A replica that answers must not call itself ready now."""

    async def told() -> bool:
        words = [(await stack.readiness(replica))["status"] for replica in stack.replicas]
        return "ready" not in words

    try:
        await until(told, SEEN_S)
    except TimeoutError:
        load.violations.append("a replica says that it is ready")


async def _verified(stack: Stack, judged: Judgement) -> list[str]:
    """What `advisor verify` says of a whole life that the judgement does not. Where events are
    lost, reports on them and repeats of them stay behind."""
    report: VerifyReport = await verify_log(stack.database_url)
    lost = {Finding.GAP, Finding.ORPHAN_REPORT, Finding.REPEAT_OF_NOTHING, Finding.FORGOTTEN}
    allowed = lost if judged.missing else set()
    violations = [
        f"verify: {finding}"
        for finding in report.findings
        if not any(fault.value in finding for fault in allowed)
    ]
    if report.missing != judged.missing:
        violations.append(f"verify: {report.missing} are missing, not {judged.missing}")
    return violations


def summary(done: Sequence[Round]) -> str:
    """A table by fault, and the totals."""
    by_fault: dict[str, list[Round]] = defaultdict(list)
    for each in done:
        for fault in each.faults:
            by_fault[fault.name].append(each)
    lines = [
        f"{'fault':28} {'rounds':>6} {'answered':>9} {'refused':>8} {'lost':>5} {'counted':>8}"
        f" {'violated':>9} {'start, worst':>13} {'recovery, median':>17} {'worst':>7}"
    ]
    for name, of in sorted(by_fault.items()):
        lines.append(
            f"{name:28} {len(of):6} {sum(r.answered for r in of):9} {sum(r.refused for r in of):8}"
            f" {sum(r.lost for r in of):5} {sum(r.missing for r in of):8}"
            f" {sum(bool(r.violations) for r in of):9} {max(r.start_s for r in of):11.1f} s"
            f" {median(r.recovery_s for r in of):15.1f} s {max(r.recovery_s for r in of):5.1f} s"
        )
    lines.append(
        f"{len(done)} rounds: {sum(r.answered for r in done)} events answered as recorded,"
        f" {sum(r.lost for r in done)} of them lost with Valkey's data,"
        f" {sum(r.missing for r in done)} counted as missing,"
        f" {sum(r.doubtful for r in done)} requests of unknown end,"
        f" {sum(r.second for r in done)} second answers kept,"
        f" {sum(bool(r.violations) for r in done)} rounds violated;"
        f" start p95 {_p95([r.start_s for r in done]):.1f} s,"
        f" recovery p95 {_p95([r.recovery_s for r in done]):.1f} s;"
        f" HALTED obeyed within {max(r.obeyed_s for r in done):.2f} s"
    )
    return "\n".join(lines)


def _p95(times: Sequence[float]) -> float:
    return quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
