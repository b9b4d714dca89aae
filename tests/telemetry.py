"""Telemetry that tests can read."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from app.domain.record.decision import Engine
from app.telemetry import Attempt, LossCause, Refusal, Rough, Task, Unobserved


class Told(Unobserved):
    """What was told, in order, by the name of the observation; and what was lost, by cause."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, list[Any]] = defaultdict(list)
        self.losses: Counter[str] = Counter()
        self.failures: Counter[Task] = Counter()

    def lost(self, cause: LossCause, count: int = 1) -> None:
        self.losses[cause.value] += count

    def refused(self, why: Refusal) -> None:
        self.seen["refused"].append(why)

    def task_failed(self, task: Task) -> None:
        self.failures[task] += 1

    def stream_holds(self, events: int, oldest_s: float) -> None:
        self.seen["stream_holds"].append((events, oldest_s))

    def prompts_wait(self, prompts: int) -> None:
        self.seen["prompts_wait"].append(prompts)

    def batch_read(self, prompts: int) -> None:
        self.seen["batch_read"].append(prompts)

    def labels_read(self, mass: float) -> None:
        self.seen["labels_read"].append(mass)

    def read_by(self, engine: Engine) -> None:
        self.seen["read_by"].append(engine)

    def replica_asked(self, url: str, how: Attempt) -> None:
        self.seen["replica_asked"].append((url, how))

    def rough(self, fate: Rough) -> None:
        self.seen["rough"].append(fate)

    def rough_compared(self, fate: Rough, off: float) -> None:
        self.seen["rough_compared"].append(fate)

    def engine_failed(self) -> None:
        self.seen["engine_failed"].append(None)
