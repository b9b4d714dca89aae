"""The decision rule: the action of the highest expected utility; to reject is worth 0, and ties
reject.

A policy's label scores, (log p - bias) / temperature, are expected utilities over beta, but for a
constant of the scenario: what the policy was trained to say is softmax(E[U] / beta). Less the
score of rejecting they are utilities over beta of each action beside doing nothing. So actions are
compared one by one, never all approvals together with one rejection: nine approvals that share
their votes lose to a rejection that nobody would prefer to any of them.

Whoever turns scores into an action calls `chosen`: the service, replay, evaluation, paper trading.
What it chooses is also the most probable action, as decisions were made before the rule was
written down here: the record replays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.model.actions import ACTIONS, REJECT

_REJECT = ACTIONS.index(REJECT)


def chosen(scores: Sequence[float]) -> int:
    """Index of the action to take. `scores` are in the order of `ACTIONS`, on any scale and with
    any constant added; of equal approvals the first."""
    best = _REJECT
    for index, score in enumerate(scores):
        # More than rejecting, and more than every action so far; no difference is taken, which
        # would round.
        if score > scores[best]:
            best = index
    return best
