"""Every Prometheus metric of the service. Labels come from closed sets and are created beforehand:
zero is visible."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Times
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, product
from time import time
from uuid import UUID

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.domain.candidate import Candidate
from app.domain.errors import AbstainReason
from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import ModelManifest
from app.domain.record.comparison import cohens_kappa, regime
from app.domain.record.decision import Advice, AdviceStatus, Decision, Engine, Role, TextEffect
from app.domain.record.event import RepetitionKind
from app.domain.rules.case import TradingState
from app.domain.rules.vetoes import VetoCode
from app.domain.scenario import Fault
from app.processes.totals import Across, Counted, Snapshot, metrics_of, snapshot, together
from app.telemetry import (
    Asking,
    Attempt,
    AuthFailure,
    Dependency,
    LossCause,
    Pair,
    Part,
    Refusal,
    Rough,
    Stage,
    Task,
    Worth,
)

COMPARISON_WINDOW = 1000
CELLS = "advisor_agreement_cells"
"""What agreement of several processes is computed from: comparisons of their windows, by answers.
Told between processes alone."""
MAX_SYMBOLS = 64
ACROSS = dict.fromkeys(
    ("advisor_policy_queue_depth", "advisor_spool_depth", "advisor_items_under_way", CELLS),
    Across.SUM,
) | dict.fromkeys(
    ("advisor_queue_durable", "advisor_dependency_up", "advisor_task_up"), Across.LEAST
)
"""How gauges of several processes make one, where the largest would not do."""
ANSWERS = ("reject", "approve")
FLIPPED = ("no", "yes")
SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5, 10),
)
"""Bounds of what takes time."""


class Frequent:
    """The names that came most often, `most` of them; who came once or twice does not stay in the
    way of those who come often."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._named: dict[str, int] = {}
        self._others: OrderedDict[str, int] = OrderedDict()

    def seen(self, name: str) -> tuple[str, str | None]:
        """The name to count under, `other` when it is not among the most frequent; and the name
        whose place it takes, if it takes one."""
        if name in self._named or len(self._named) < self._most:
            self._named[name] = self._named.get(name, 0) + 1
            return name, None
        times = self._others.pop(name, 0) + 1
        rarest = min(self._named, key=self._named.__getitem__)
        if times <= self._named[rarest]:
            self._remember(name, times)
            return "other", None
        self._remember(rarest, self._named.pop(rarest))
        self._named[name] = times
        return name, rarest

    def _remember(self, name: str, times: int) -> None:
        self._others[name] = times
        if len(self._others) > 16 * self._most:
            self._others.popitem(last=False)


class Stages(Collector):
    """How long stages took, a histogram of each. It is observed six times a request, on one event
    loop: no lock is taken."""

    NAME, LABELS = "advisor_stage_seconds", ("stage",)

    def __init__(self) -> None:
        self._counts = {stage: [0] * (len(SECONDS) + 1) for stage in Stage}
        self._seconds = dict.fromkeys(Stage, 0.0)

    def observe(self, stage: Stage, seconds: float) -> None:
        """One stage of a request."""
        self._counts[stage][bisect_left(SECONDS, seconds)] += 1
        self._seconds[stage] += seconds

    def describe(self) -> Iterator[Metric]:
        """Its name, which no other metric may take."""
        yield self._family()

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(
            self.NAME, "Latency by stage of a decision", labels=self.LABELS
        )

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        told = self._family()
        bounds = [*(str(float(bound)) for bound in SECONDS), "+Inf"]
        for stage, counts in self._counts.items():
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            told.add_metric([stage.value], buckets, self._seconds[stage])
        yield told


class OfSeveral(Collector):
    """What several processes have counted, as one would have."""

    def __init__(self, several: Sequence[Snapshot]) -> None:
        self._counted = {each.name: each for each in together(several)}

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        pairs: dict[str, list[Pair]] = {}
        for (_, labels), number in self._counted.pop(CELLS).samples.items():
            of = dict(labels)
            pair = Pair(of["agent"] == YES, of["advice"] == YES)
            pairs.setdefault(of["model_version"], []).extend([pair] * int(number))
        for metric in metrics_of(self._counted.values()):
            if (of_pairs := OF_PAIRS.get(metric.name)) is not None:
                metric.samples = [
                    each._replace(value=of_pairs(pairs[each.labels["model_version"]]))
                    if each.labels["model_version"] in pairs
                    else each
                    for each in metric.samples
                ]
            yield metric


def agreement(pairs: Collection[Pair]) -> float:
    """The share that agrees."""
    return sum(a == b for a, b in pairs) / len(pairs)


OF_PAIRS: Mapping[str, Callable[[Collection[Pair]], float]] = {
    "advisor_agreement_ratio": agreement,
    "advisor_agreement_kappa": cohens_kappa,
}
YES, NO = "1", "0"


class _Maker:
    """Metrics of one registry, all with our prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"advisor_{name}", what, labels, registry=self.registry)

    def gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"advisor_{name}", what, labels, registry=self.registry)

    def histogram(
        self, name: str, what: str, *labels: str, buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return Histogram(f"advisor_{name}", what, labels, registry=self.registry, buckets=buckets)


class Metrics:
    """The process' metrics, on a registry of their own: `Telemetry`, counted."""

    def __init__(self, model_versions: Iterable[str] = ()) -> None:
        make = _Maker()
        self.registry = make.registry
        self._count_advice(make)
        self._count_panel(make)
        self._count_record(make)
        self._show_worth(make)
        self._count_requests(make)
        self._show_service(make)
        self._versions: set[str] = set()
        self._symbols = Frequent(MAX_SYMBOLS)
        self._compared: set[tuple[str, ...]] = set()
        self._recent: dict[str, OrderedDict[UUID, Pair]] = {}
        self._create_series()
        self.create_model_series(model_versions)

    def _count_advice(self, make: _Maker) -> None:
        """What was advised, and how it compares with the agent."""
        self.decisions = make.counter("decisions_total", "Advices given", "status", "model_version")
        self.actions = make.counter(
            "advice_actions_total", "Final actions", "action", "model_version"
        )
        self.abstentions = make.counter(
            "abstentions_total", "Why a policy gave no proposal", "reason"
        )
        self.texts = make.counter(
            "text_effects_total",
            "Prompts with news, by what the news did to the proposal",
            "effect",
            "model_version",
        )
        self.vetoes = make.counter(
            "vetoes_total", "Refusals by rule; arm control is the agent's own order", "code", "arm"
        )
        self.comparisons = make.counter(
            "comparisons_total",
            "Decisions whose control and advice are both known, by what came to this process",
            "symbol",
            "session",
            "regime",
            "model_version",
            "agent",
            "advice",
        )
        self.agreement = make.gauge(
            "agreement_ratio",
            f"Over the last {COMPARISON_WINDOW} comparisons of this process",
            "model_version",
        )
        self.kappa = make.gauge(
            "agreement_kappa",
            f"Cohen's, over the last {COMPARISON_WINDOW} comparisons of this process",
            "model_version",
        )
        self.label_mass = make.histogram(
            "label_mass",
            "Probability on labels",
            buckets=(0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
        )
        self.stages = Stages()
        make.registry.register(self.stages)
        self.batch_size = make.histogram(
            "policy_batch_size", "Prompts per forward pass", buckets=(1, 2, 4, 8, 16, 32)
        )
        self.queue_depth = make.gauge("policy_queue_depth", "Prompts waiting for the model")

    def _count_panel(self, make: _Maker) -> None:
        """What deciders elsewhere were asked."""
        self.panel_questions = make.counter(
            "panel_questions_total", "Decisions laid before deciders", "model_version", "outcome"
        )
        self.panel_seconds = make.histogram(
            "panel_answer_seconds", "From asking a decider to its answer", "model_version"
        )
        self.panel_cost = make.counter(
            "panel_cost_dollars_total", "What asking deciders has cost", "model_version"
        )
        self.panel_repetitions = make.counter(
            "panel_repetitions_total",
            "Deciders asked the same again",
            "model_version",
            "kind",
            "flipped",
        )

    def _count_record(self, make: _Maker) -> None:
        """What becomes durable, and what could not."""
        self.backlog = make.gauge(
            "journal_backlog", "Events in the stream that are not in Postgres yet"
        )
        self.oldest = make.gauge(
            "journal_oldest_seconds", "Age of the oldest event not in Postgres yet"
        )
        self.spool_depth = make.gauge("spool_depth", "Events on local disk, waiting for the stream")
        self.queue_durable = make.gauge(
            "queue_durable", "1 when Valkey keeps what it confirms, 0 when not, NaN when untold"
        )
        self.queue_memory = make.gauge("queue_memory_ratio", "Used share of Valkey's maxmemory")
        self.queue_since = make.gauge(
            "queue_memory_since_timestamp_seconds", "When what Valkey remembers began"
        )
        self.appends = make.counter("journal_appends_total", "Events made durable", "target")
        self.losses = make.counter(
            "losses_total", "What could not be kept, or was refused at the end", "cause"
        )
        self.missing = make.gauge(
            "events_missing",
            "Numbered events that should be in Postgres and are not, and accepted requests that are"
            " lost (writer)",
        )
        self.writer_rows = make.counter("writer_rows_total", "Rows written to Postgres", "table")
        self.writer_batch = make.histogram(
            "writer_batch_seconds", "One batch, read to acknowledged"
        )
        self.writer_commit = make.gauge(
            "writer_last_commit_timestamp_seconds", "When the writer last committed"
        )
        self.unchecked = make.counter(
            "reports_unchecked_total",
            "Reports that this process took while their decision could not be looked up",
        )

    def _show_worth(self, make: _Maker) -> None:
        """What the newest decisions on the record were worth (writer)."""
        of_version = ("model_version", "symbol")
        self.record_r = make.gauge("record_r", "Net R of an arm, summed", "arm", *of_version)
        self.record_pnl = make.gauge(
            "record_pnl", "Net profit of an arm, summed, quote currency", "arm", *of_version
        )
        self.record_judged = make.gauge(
            "record_judged", "Decisions of which R of both arms is known", *of_version
        )
        self.record_difference = make.gauge(
            "record_difference_r",
            "R a decision, advice less agent: value, and ends of its 95 % interval over days",
            "model_version",
            "edge",
        )
        self.record_refused = make.gauge(
            "record_refused", "Orders of the agent that a rule refuses", "code", "symbol"
        )
        self.record_saved = make.gauge(
            "record_saved_r", "R that refusals of a rule saved", "code", "symbol"
        )
        of_band = ("model_version", "what", "band")
        self.record_told = make.gauge("record_told_ratio", "Mean chance that was told", *of_band)
        self.record_won = make.gauge("record_won_ratio", "Share that won", *of_band)
        self.record_foretold = make.gauge(
            "record_foretold", "Orders whose chance was told in this band", *of_band
        )

    def _count_requests(self, make: _Maker) -> None:
        """Who asks, and what is refused."""
        self.items = make.gauge("items_under_way", "Candidates let in and not answered yet")
        self.wait = make.gauge("estimated_wait_seconds", "How long one more candidate would take")
        self.requests = make.counter("requests_total", "HTTP requests", "route", "code")
        self.refusals = make.counter("refusals_total", "Requests over a budget", "budget")
        self.fields_left_out = make.counter(
            "fields_left_out_total", "Fields that could not be used", "part", "fault"
        )
        self.auth_failures = make.counter(
            "auth_failures_total", "Callers who could not say who they are", "reason"
        )

    def _show_service(self, make: _Maker) -> None:
        """What is in force, and whether it works."""
        self.model_info = make.gauge(
            "model_info",
            "1 for each version being served",
            "model_version",
            "role",
            "prompt_version",
        )
        self.version_refusals = make.counter(
            "version_refusals_total", "Versions that an alias names and that did not load"
        )
        self.limits_info = make.gauge("limits_info", "1 for the limits in force", "hash", "version")
        self.limits_failures = make.counter(
            "limits_reload_failures_total", "Limits files refused on reload"
        )
        self.state = make.gauge("state", "1 for the trading state in force", "state")
        self.dependency = make.gauge("dependency_up", "1 when it answers", "dependency")
        self.task_up = make.gauge(
            "task_up", "1 while background work of this process works", "task"
        )
        self.task_failures = make.counter(
            "task_failures_total", "Background work that raised", "task"
        )
        self.readings = make.counter("readings_total", "Readings in this process", "engine")
        self.engine_failures = make.counter(
            "engine_failures_total", "Engines that were not used because they failed"
        )
        self.replica_requests = make.counter(
            "replica_requests_total", "Requests to model servers", "replica", "result"
        )
        self.roughs = make.counter("rough_readings_total", "Rough readings, by their fate", "fate")
        self.rough_nats = make.gauge(
            "rough_nats", "The most that a rough reading was off, of those compared"
        )
        self._most_off = 0.0
        # Of several processes on one port, told by their parent.
        make.gauge("process_up", "1 for each process that works", "process")
        make.counter(
            "process_deaths_total", "Processes that ended and were started again", "process"
        )

    def snapshot(self) -> list[Counted]:
        """What this process has counted, for another one to add up."""
        return snapshot([*self.registry.collect(), self._cells()], ACROSS)

    def exposition(self, several: Sequence[Snapshot] = ()) -> bytes:
        """As Prometheus is told: what this process has counted, or `several`, this one among
        them."""
        return generate_latest(OfSeveral(several) if several else self.registry)

    def _cells(self) -> Metric:
        cells = Metric(CELLS, "", "gauge")
        for version, recent in self._recent.items():
            for pair, number in Times(recent.values()).items():
                answers = {name: YES if said else NO for name, said in pair._asdict().items()}
                cells.add_sample(CELLS, {"model_version": version, **answers}, number)
        return cells

    def worth_seen(self, worth: Worth) -> None:
        """What is no longer among the newest decisions has no series any more."""
        for gauge in (
            *(self.record_r, self.record_pnl, self.record_judged, self.record_difference),
            *(self.record_refused, self.record_saved),
            *(self.record_told, self.record_won, self.record_foretold),
        ):
            gauge.clear()
        for earned in worth.earned:
            of = earned.model_version, earned.symbol
            self.record_judged.labels(*of).set(earned.judged)
            self.record_r.labels("agent", *of).set(earned.agent_r)
            self.record_r.labels("advice", *of).set(earned.advice_r)
            self.record_pnl.labels("agent", *of).set(earned.agent_pnl)
            self.record_pnl.labels("advice", *of).set(earned.advice_pnl)
        for version, mean in worth.apart:
            for edge, value in mean._asdict().items():
                if value is not None:
                    self.record_difference.labels(version, edge).set(value)
        for saved in worth.saved:
            self.record_refused.labels(saved.code, saved.symbol).set(saved.refused)
            self.record_saved.labels(saved.code, saved.symbol).set(saved.r)
        for foretold in worth.foretold:
            band = foretold[:3]
            self.record_told.labels(*band).set(foretold.told)
            self.record_won.labels(*band).set(foretold.won)
            self.record_foretold.labels(*band).set(foretold.decisions)

    def serving(self, versions: Iterable[tuple[ModelManifest, Role]]) -> None:
        """Versions that are new to this process get their series, at zero."""
        self.model_info.clear()
        for manifest, role in versions:
            self.model_info.labels(manifest.model_version, role, manifest.prompt_version).set(1)
            self.create_model_series([manifest.model_version])

    def version_refused(self) -> None:
        self.version_refusals.inc()

    def limits_adopted(self, limits: Collection[tuple[str, str]]) -> None:
        self.limits_info.clear()
        for version, limits_hash in limits:
            self.limits_info.labels(limits_hash, version).set(1)

    def limits_refused(self) -> None:
        self.limits_failures.inc()

    def state_entered(self, state: TradingState) -> None:
        """1 for the state in force, 0 for the others."""
        for each in TradingState:
            self.state.labels(each).set(float(each is state))

    def dependency_seen(self, dependency: Dependency, up: bool) -> None:
        self.dependency.labels(dependency).set(float(up))

    def report_unchecked(self) -> None:
        self.unchecked.inc()

    def task_works(self, task: Task, works: bool) -> None:
        self.task_up.labels(task).set(float(works))

    def task_failed(self, task: Task) -> None:
        self.task_failures.labels(task).inc()

    def create_model_series(self, versions: Iterable[str]) -> None:
        """Series of versions, at zero."""
        for version in versions:
            if version in self._versions:
                continue
            self._versions.add(version)
            for status in AdviceStatus:
                self.decisions.labels(status, version)
            for effect in TextEffect:
                self.texts.labels(effect, version)
            for name in (*(action.name for action in ACTIONS), "none"):
                self.actions.labels(name, version)
            self.agreement.labels(version).set(float("nan"))
            self.kappa.labels(version).set(float("nan"))

    def _create_series(self) -> None:
        for reason in AbstainReason:
            self.abstentions.labels(reason)
        for code in VetoCode:
            self.vetoes.labels(code, "advice")
            self.vetoes.labels(code, "control")
        for engine in Engine:
            self.readings.labels(engine)
        for fate in Rough:
            self.roughs.labels(fate)
        for target in ("stream", "spool"):
            self.appends.labels(target)
        for cause in LossCause:
            self.losses.labels(cause)
        for why in Refusal:
            self.refusals.labels(why)
        for part, fault in product(Part, Fault):
            self.fields_left_out.labels(part, fault)
        for failure in AuthFailure:
            self.auth_failures.labels(failure)
        for dependency in Dependency:
            self.dependency.labels(dependency)
        for task in Task:
            self.task_failures.labels(task)
        self.state_entered(TradingState.ACTIVE)
        self.queue_durable.set(float("nan"))

    def answered(self, route: str, status: int) -> None:
        self.requests.labels(route, str(status)).inc()

    def left_out(self, part: Part, fault: Fault) -> None:
        self.fields_left_out.labels(part, fault).inc()

    def unauthenticated(self, why: AuthFailure) -> None:
        self.auth_failures.labels(why).inc()

    def refused(self, why: Refusal) -> None:
        self.refusals.labels(why).inc()

    def stage_took(self, stage: Stage, seconds: float) -> None:
        self.stages.observe(stage, seconds)

    def decided(self, decision: Decision) -> None:
        """Count every advice, its vetoes, and those of the control."""
        for advice in decision.advices:
            self.advised_late(decision.scenario.candidate, advice)
        for veto in decision.control_review.vetoes:
            self.vetoes.labels(veto.code, "control").inc()

    def advised_late(self, candidate: Candidate, advice: Advice) -> None:
        """Count one advice and its vetoes."""
        self._combination(candidate, advice.model_version)
        self.decisions.labels(advice.status, advice.model_version).inc()
        self.actions.labels(advice.action or "none", advice.model_version).inc()
        if advice.text_effect:
            self.texts.labels(advice.text_effect, advice.model_version).inc()
        if advice.abstain_reason:
            self.abstentions.labels(advice.abstain_reason).inc()
        for veto in advice.review.vetoes if advice.review else ():
            self.vetoes.labels(veto.code, "advice").inc()

    def on_panel(self, versions: Iterable[str]) -> None:
        """Their series, at zero."""
        for version in versions:
            self.create_model_series([version])
            self.panel_seconds.labels(version)
            self.panel_cost.labels(version)
            for how in Asking:
                self.panel_questions.labels(version, how)
            for kind, flipped in product(RepetitionKind, FLIPPED):
                self.panel_repetitions.labels(version, kind, flipped)

    def panel_asked(self, version: str, how: Asking) -> None:
        self.panel_questions.labels(version, how).inc()

    def panel_answered(self, version: str, seconds: float, cost: float) -> None:
        self.panel_seconds.labels(version).observe(seconds)
        self.panel_cost.labels(version).inc(cost)

    def panel_repeated(self, version: str, kind: RepetitionKind, flipped: bool) -> None:
        self.panel_repetitions.labels(version, kind, FLIPPED[flipped]).inc()

    def compared(self, decision: UUID, candidate: Candidate, version: str, pair: Pair) -> None:
        """Count one pair of control and advice. Symbols but for the 64 that come most often
        are counted as `other`."""
        self.comparisons.labels(
            *self._combination(candidate, version), ANSWERS[pair.agent], ANSWERS[pair.advice]
        ).inc()
        recent = self._recent.setdefault(version, OrderedDict())
        recent[decision] = pair
        if len(recent) > COMPARISON_WINDOW:
            recent.popitem(last=False)
        self._show_agreement(version, recent.values())

    def compared_anew(self, decision: UUID, version: str, pair: Pair) -> None:
        """Agreement and kappa follow; a counter cannot take back what it counted."""
        recent = self._recent.get(version, OrderedDict())
        if decision in recent:
            recent[decision] = pair
            self._show_agreement(version, recent.values())

    def _show_agreement(self, version: str, pairs: Collection[Pair]) -> None:
        self.agreement.labels(version).set(agreement(pairs))
        self.kappa.labels(version).set(cohens_kappa(pairs))

    def _combination(self, candidate: Candidate, version: str) -> tuple[str, ...]:
        """The labels of a comparison but for both answers. With its first decision all four cells
        begin, at 0."""
        symbol, displaced = self._symbols.seen(candidate.symbol)
        if displaced is not None:
            self._fold_into_other(displaced)
        labels = (symbol, candidate.session, regime(candidate), version)
        if labels not in self._compared:
            self._compared.add(labels)
            for agent, advice in product(ANSWERS, ANSWERS):
                self.comparisons.labels(*labels, agent, advice)
        return labels

    def _fold_into_other(self, symbol: str) -> None:
        """The series of a symbol end, and what they counted goes on as that of `other`."""
        self._compared = {
            ("other", *rest) if first == symbol else (first, *rest)
            for first, *rest in self._compared
        }
        [metric] = self.comparisons.collect()
        for sample in metric.samples:
            if sample.name.endswith("_total") and sample.labels["symbol"] == symbol:
                self.comparisons.labels(**{**sample.labels, "symbol": "other"}).inc(sample.value)
                self.comparisons.remove_by_labels(sample.labels)

    def lost(self, cause: LossCause, count: int = 1) -> None:
        self.losses.labels(cause).inc(count)

    def appended(self, target: str) -> None:
        self.appends.labels(target).inc()

    def stream_holds(self, events: int, oldest_s: float) -> None:
        self.backlog.set(events)
        self.oldest.set(oldest_s)

    def spool_holds(self, events: int) -> None:
        self.spool_depth.set(events)

    def stream_seen(self, durable: bool | None, memory: float, since: datetime) -> None:
        self.queue_durable.set(float("nan") if durable is None else float(durable))
        self.queue_memory.set(memory)
        self.queue_since.set(since.timestamp())

    def written(self, rows: Mapping[str, int], seconds: float) -> None:
        self.writer_batch.observe(seconds)
        self.writer_commit.set(time())
        for table, number in rows.items():
            self.writer_rows.labels(table).inc(number)

    def events_missing(self, events: int) -> None:
        self.missing.set(events)

    def under_way(self, items: int, wait_s: float) -> None:
        self.items.set(items)
        self.wait.set(wait_s)

    def prompts_wait(self, prompts: int) -> None:
        self.queue_depth.set(prompts)

    def batch_read(self, prompts: int) -> None:
        self.batch_size.observe(prompts)

    def labels_read(self, mass: float) -> None:
        self.label_mass.observe(mass)

    def read_by(self, engine: Engine) -> None:
        self.readings.labels(engine).inc()

    def engine_failed(self) -> None:
        self.engine_failures.inc()

    def replicas(self, urls: Sequence[str]) -> None:
        for url in urls:
            for how in Attempt:
                self.replica_requests.labels(url, how)

    def replica_asked(self, url: str, how: Attempt) -> None:
        self.replica_requests.labels(url, how).inc()

    def rough(self, fate: Rough) -> None:
        self.roughs.labels(fate).inc()

    def rough_compared(self, fate: Rough, off: float) -> None:
        self.roughs.labels(fate).inc()
        self._most_off = max(self._most_off, off)
        self.rough_nats.set(self._most_off)
