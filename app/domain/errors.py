"""The exception tree. Each leaf has one fate, named beside it.

AdvisorError
├─ InvalidRecord         422 at the API; put aside by the writer; one-line error elsewhere
├─ RequestConflict       409: the id was used with other content
├─ UnknownDecision       404
├─ TooManyReports        429: a decision has as many reports of a kind as it may have
├─ UndecidedYet          503: accepted and not decided yet; ask or report again
├─ DamagedRecord         500: what is stored cannot be read; `advisor verify` names it
├─ AnswerGone            410: the request was answered before, and the answer is not kept any more
├─ RequestLost           410: the request was accepted, and lost before it was decided
├─ JournalUnavailable    503: nothing was recorded, nothing was answered
├─ NoAnswer              503: the model abstained, and there is no other way to say so
├─ Overloaded            503 with Retry-After: it could not be answered in time, nothing was done
├─ ShadowLogUnavailable  503 for reads; the journal keeps what is written
│  └─ ShadowLogRefused   the same; background work that meets it is not working
├─ LimitsError           start refused; on reload the old limits stay; 422 of a proposal
├─ LimitsRefused         409: limits cannot be adopted now, nothing was changed
├─ TrialRefused          409: a proposal of limits cannot be tried now, or its trial failed
├─ ManifestMismatch      start refused; a switch of version: 409, and the old one stays
├─ ModelFileError        start refused; a switch of version: 409, and the old one stays
├─ UnknownVersion        404; at a start: refused
├─ DeciderError          start refused
├─ AliasRefused          409: the alias cannot be moved there, or not here
└─ PolicyAbstained       not an error of the request: becomes an `abstained` advice
"""

from __future__ import annotations

from enum import StrEnum


class AdvisorError(Exception):
    """Base of every expected failure: the message says what, where and how to mend it."""


class InvalidRecord(AdvisorError):
    """A record does not fit its schema; the message names the field."""


class RequestConflict(AdvisorError):
    """The same request id came with other content."""


class UnknownDecision(AdvisorError):
    """No decision has this id."""


class UndecidedYet(AdvisorError):
    """A report on a request that was accepted to be decided later, and is not decided yet."""


class DamagedRecord(AdvisorError):
    """A stored decision cannot be read: no fault of whoever asks for it."""


class TooManyReports(AdvisorError):
    """A decision has as many reports of a kind as it may have."""


class AnswerGone(AdvisorError):
    """A request that was answered before, and whose answer is not in the record any more."""


class RequestLost(AdvisorError):
    """A request that was accepted to be decided later, and was lost before it was."""


class JournalUnavailable(AdvisorError):
    """Neither the stream nor the spool could make the record durable."""


class NoAnswer(AdvisorError):
    """The model abstained where only an answer can be given."""


class Overloaded(AdvisorError):
    """There is too much to do to answer this in time; nothing was done about it."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShadowLogUnavailable(AdvisorError):
    """Postgres could not be reached, or is not migrated."""


class ShadowLogRefused(ShadowLogUnavailable):
    """Postgres answers, and lacks what was asked of it: a table, or a right."""


class LimitsError(AdvisorError):
    """A limits file is unreadable or breaks its schema."""


class LimitsRefused(AdvisorError):
    """Limits cannot be adopted: others came in between, or nothing would change."""


class TrialRefused(AdvisorError):
    """A proposal of limits cannot be tried on the record now, or its trial came to nothing."""


class ManifestMismatch(AdvisorError):
    """A model was made for another prompt, action space or feature schema, or its bytes changed."""


class ModelFileError(AdvisorError):
    """A model directory is incomplete, uses pickle, or its labels are not single tokens.

    One line, whatever stands in the names that it tells: they come from the directory.
    """

    def __init__(self, told: str) -> None:
        signs = (sign if sign.isprintable() else repr(sign)[1:-1] for sign in told)
        super().__init__("".join(signs))


class DeciderError(AdvisorError):
    """The file of decision models elsewhere is unreadable, or a table of it is wrong."""


class UnknownVersion(AdvisorError):
    """No model directory holds this version."""


class AliasRefused(AdvisorError):
    """An alias cannot be moved there, or not through this service."""


class AbstainReason(StrEnum):
    """Why a policy gave no proposal."""

    DEADLINE = "deadline"
    OVERLOADED = "overloaded"
    LABEL_MASS = "label_mass"
    PROMPT_TOO_LONG = "prompt_too_long"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BACKEND_PROTOCOL = "backend_protocol"
    SHUTTING_DOWN = "shutting_down"
    DECLINED = "declined"
    """The model answered that it would not."""


class PolicyAbstained(AdvisorError):
    """The policy gave no usable reading within its deadline."""

    def __init__(self, reason: AbstainReason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail
