"""A trial of limits in one process, as those beside it show it."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from app.advising.trials import Trial, Trials, Tried, _say
from app.domain.errors import TrialRefused
from app.policy.options import DEFAULTS
from app.processes.messages import Gone
from tests.service.processes import START_S

NOBODY: Any = None


def test_what_another_process_tries_is_shown_here_and_nothing_else_is_tried_meanwhile() -> None:
    trials = Trials(lambda: "", NOBODY, DEFAULTS)
    trials.follow(Tried("api-2", 7, Trial(3, 10)))
    assert trials.of(7) == Trial(3, 10)
    with pytest.raises(TrialRefused, match="another proposal"):
        trials.begin(NOBODY)
    trials.follow(Gone("api-1"))
    assert trials.of(7) == Trial(3, 10)
    trials.follow(Tried("api-2", 7, None))
    assert trials.of(7) is None, "its report is in the history"


def test_a_trial_whose_process_ended_has_failed() -> None:
    trials = Trials(lambda: "", NOBODY, DEFAULTS)
    trials.follow(Tried("api-2", 7, Trial(3, 10)))
    trials.follow(Tried("api-2", 8, Trial(failed="no such version")))
    trials.follow(Gone("api-2"))
    ended = trials.of(7)
    assert ended is not None
    assert ended.failed == "the process that tried it has ended: try it again"
    assert trials.of(8) == Trial(failed="no such version")


def test_a_replay_whose_asker_has_gone_ends_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    ours.close()
    process = context.Process(target=_say, args=(theirs, "progress", (1, 2)))
    process.start()
    process.join(START_S)
    theirs.close()
    assert process.exitcode == 1
    assert capfd.readouterr().err == ""
