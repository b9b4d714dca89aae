"""Whether an advice is what it would have been, had its reading been exact.

A rough reading is made in fewer bits, and says how far from exact each of its labels may be
(`Reading.within`). An advice is settled when every reading that near gives the same advice: its
action is ahead of every other by more than both could be off, and the rules say the same of the
most and of the least hopeful of such readings. What is not settled has to be read again, exactly.

Rules see of a reading its proposal, the chance of approving, and the outlook, each of which grows
or shrinks with the log-probability of each label: so the extremes lie at the corners. One thing
bends in between, what a plan is expected to earn where the chances of winning and of the stop pass
1 together: that counts as not settled. Nor is any advice where limits read the foretold range,
which sets a size: every reading gives another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import Calibration
from app.domain.model.questions import BY_NAME, QuestionName
from app.domain.record.decision import Advice, Decision, Reading, scores_of

Answered = dict[QuestionName, tuple[float, ...]]


def settled(decision: Decision, advice: Advice) -> bool:
    """Whether every reading within reach of the advice's own gives the same advice; always so of an
    exact one, and of none."""
    reading = advice.reading
    if reading is None or reading.within is None:
        return True
    if decision.limits.foretold_range is not None:
        return False
    sides = (reading, reading.bare)
    if not all(_ahead(side, advice.calibration, reading.within) for side in sides):
        return False
    others = [
        decision.replayed_advice(
            advice.model_copy(update={"reading": _moved(reading, reading.within, hope, stopped)})
        )
        for hope, stopped in product((1, -1), repeat=2)
    ]
    return not _bends(others) and len({_gist(told) for told in (advice, *others)}) == 1


def _ahead(reading: Reading, calibration: Calibration, within: float) -> bool:
    """Whether the best action stays the best, and the mass on labels on its side of the least."""
    second, best = sorted(scores_of(reading, calibration))[-2:]
    low, high = (reading.label_mass * math.exp(sign * within) for sign in (-1, 1))
    surely_there = low >= calibration.min_label_mass or high < calibration.min_label_mass
    return surely_there and best - second > 2 * within / calibration.temperature


def _moved(reading: Reading, within: float, hope: int, stopped: int) -> Reading:
    """The reading with approvals and a win made likelier by what it may be off (`hope` = 1) or less
    so (-1), and the stop likewise."""
    signs = {QuestionName.WIN: hope, QuestionName.STOPPED: stopped}

    def labels(values: Sequence[float] | None) -> tuple[float, ...] | None:
        if values is None:
            return None
        toward = (hope if action.approve else -hope for action in ACTIONS)
        return tuple(value + within * sign for value, sign in zip(values, toward, strict=True))

    def answers(asked: Mapping[QuestionName, tuple[float, ...]]) -> Answered:
        return {
            name: tuple(
                value + within * signs.get(name, 0) * (1 if meaning else -1)
                for value, meaning in zip(values, BY_NAME[name].values, strict=True)
            )
            for name, values in asked.items()
        }

    return reading.model_copy(
        update={
            "log_probabilities": labels(reading.log_probabilities),
            "without_text": labels(reading.without_text),
            "questions": answers(reading.questions),
            "questions_without_text": answers(reading.questions_without_text),
        }
    )


def _bends(advices: Sequence[Advice]) -> bool:
    """Whether the chances of winning and of the stop are more than 1 together at some corners, and
    less at others."""
    sums = [
        outlook.win_probability + outlook.stopped_probability
        for outlook in (advice.outlook for advice in advices)
        if outlook is not None
        and outlook.win_probability is not None
        and outlook.stopped_probability is not None
    ]
    return bool(sums) and min(sums) < 1 < max(sums)


def _gist(advice: Advice) -> tuple[object, ...]:
    """All of an advice that anybody acts on."""
    codes = () if advice.review is None else tuple(veto.code for veto in advice.review.vetoes)
    return (
        *(advice.status, advice.abstain_reason, advice.action, codes),
        *(advice.quantity, advice.stop, advice.text_effect),
    )
