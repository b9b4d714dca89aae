"""Rough readings of one version: allowed by a certificate, watched while it serves.

Whoever asks for an exact reading of a prompt that was read roughly a moment ago (since its advice
was not settled, or to watch) has the two compared. One that is further off than the certificate
says ends rough readings of the version in this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import structlog

from app.domain.model.questions import QuestionName
from app.domain.record.decision import Reading
from app.policy.in_process.certificate import Certificate, apart
from app.telemetry import Rough, Telemetry

WATCH_EVERY = 50
"""One rough reading in so many is read again exactly, while nobody waits."""
REMEMBERED = 64
log = structlog.get_logger()


class Cascade:
    """Whether a version may be read roughly here, and what came of it."""

    def __init__(self, certificate: Certificate, telemetry: Telemetry) -> None:
        self.certificate = certificate
        self._telemetry = telemetry
        self._readings: OrderedDict[Hashable, Reading] = OrderedDict()
        self._taken = 0
        self.broken: str | None = None
        """Why nothing is read roughly any more."""

    @property
    def health(self) -> str:
        """In words."""
        if self.broken is not None:
            return f"exactly: {self.broken}"
        certificate = self.certificate
        return (
            f"roughly, within {certificate.within:.2g} nats ({certificate.prompts} prompts,"
            f" {certificate.kind}), and again where that could matter"
        )

    def took(self, prompt: Hashable, reading: Reading) -> bool:
        """Remember a rough reading for a while; whether it is one to be watched."""
        self._readings[prompt] = reading
        while len(self._readings) > REMEMBERED:
            self._readings.popitem(last=False)
        self._taken += 1
        return self._taken % WATCH_EVERY == 0

    def compare(self, prompt: Hashable, exact: Reading) -> None:
        """Hold an exact reading against the rough one of the same prompt, if there was one."""
        rough = self._readings.pop(prompt, None)
        if rough is None:
            return
        off = difference(rough, exact)
        fine = off <= self.certificate.within
        self._telemetry.rough_compared(Rough.NEAR if fine else Rough.BEYOND, off)
        if not fine and self.broken is None:
            self.broken = f"a rough reading was {off:.2g} nats off"
            log.error(
                "rough readings end here: one was further off than its certificate says",
                version=self.certificate.model_version,
                off=off,
                within=self.certificate.within,
            )


def difference(rough: Reading, exact: Reading) -> float:
    """The largest difference of any label's log-probability, with and without text (nats)."""
    return apart(_labels(rough), _labels(exact))


def _labels(reading: Reading) -> list[float]:
    answers = [
        asked[name]
        for asked in (reading.questions, reading.questions_without_text)
        for name in QuestionName
        if name in asked
    ]
    return [
        value
        for labels in (reading.log_probabilities, reading.without_text or (), *answers)
        for value in labels
    ]
