"""What several processes counted, as one: counters and histograms are added up, and go on when a
process has ended; of gauges, each says how those of several processes make one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from prometheus_client.core import Metric


class Across(StrEnum):
    """How one number is made of those of several processes."""

    SUM = "sum"
    LARGEST = "largest"
    LEAST = "least"


Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels of a sample."""


class Counted(NamedTuple):
    """A metric as one process has it. `goes_on`: what was counted stays counted when the process
    has ended."""

    name: str
    kind: str
    what: str
    across: Across
    goes_on: bool
    samples: Mapping[Key, float]


Snapshot = Sequence[Counted]
"""Every metric of one process, at one moment."""
ACCUMULATING = ("counter", "histogram")
CREATED = "_created"


def snapshot(metrics: Iterable[Metric], across: Mapping[str, Across]) -> list[Counted]:
    """Metrics of this process, to be told to another one. `across` names the gauges that are not
    the largest of all."""
    return [
        Counted(
            metric.name,
            metric.type,
            metric.documentation,
            Across.SUM if metric.type in ACCUMULATING else across.get(metric.name, Across.LARGEST),
            metric.type in ACCUMULATING,
            {(s.name, tuple(sorted(s.labels.items()))): s.value for s in metric.samples},
        )
        for metric in metrics
    ]


def together(snapshots: Iterable[Snapshot]) -> list[Counted]:
    """As if one process had counted it all."""
    sums: dict[str, tuple[Counted, dict[Key, float]]] = {}
    for counted in (each for one in snapshots for each in one):
        if counted.name not in sums:
            sums[counted.name] = (counted, dict(counted.samples))
            continue
        samples = sums[counted.name][1]
        for key, value in counted.samples.items():
            before = samples.get(key)
            samples[key] = value if before is None else _joined(key[0], counted, before, value)
    return [counted._replace(samples=samples) for counted, samples in sums.values()]


def outlasting(counted: Snapshot) -> list[Counted]:
    """What stays of a process that has ended."""
    return [each for each in counted if each.goes_on]


def metrics_of(counted: Iterable[Counted]) -> Iterator[Metric]:
    """As Prometheus is told them."""
    for each in counted:
        metric = Metric(each.name, each.what, each.kind)
        for (name, labels), value in each.samples.items():
            metric.add_sample(name, dict(labels), value)
        yield metric


def _joined(name: str, counted: Counted, one: float, other: float) -> float:
    if name.endswith(CREATED):
        return min(one, other)
    if math.isnan(one) or math.isnan(other):  # That nobody told is told by who did.
        return other if math.isnan(one) else one
    if counted.across is Across.SUM:
        return one + other
    return max(one, other) if counted.across is Across.LARGEST else min(one, other)
