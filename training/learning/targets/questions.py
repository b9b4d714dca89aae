"""The questions beside the action: what a policy learns to answer, and how its answers are
calibrated.

Each question has a proper score: cross-entropy of the policy's chances of its labels to a target
distribution, least where they are equal. The target is the teacher's expectation, out of fold, as
it is for actions: its chance of winning and of being stopped, and of a range the chances of every
level, by a log-normal distribution around the teacher's median that is as wide as its own errors
out of fold. A realised label is the same chance with a coin tossed over it, and a few hundred
prompts are too few to average coins; it is the target where realised outcomes are asked for, as an
ablation.

Calibration is vector scaling (Guo et al. 2017, section 4.2, with one temperature): softmax((log p -
bias) / temperature) over a question's labels, fitted on rows that trained neither policy nor
teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, ndtr, rel_entr, softmax
from scipy.stats import spearmanr

from app.domain.model.outlook import OutlookCalibration, Payoffs, QuestionCalibration
from app.domain.model.questions import BY_NAME, QuestionName
from training.agent.reference import ASSUMED_SPREAD_BPS
from training.arrays import Floats, Rows
from training.config.data import OutcomesConfig
from training.config.learning import TargetsConfig
from training.learning.teacher.lessons import risk_of, spread_beyond
from training.learning.teacher.predictions import Predictions
from training.outcomes.labels import Labels
from training.outcomes.orders import Orders, plan_order
from training.scenarios.table import ScenarioSet

_LOG_TEMPERATURES = (-3.0, 3.0)
_DIGITS = 5
_LEAST_UNIT = 1e-3
Measures = dict[str, float]


@dataclass(frozen=True, eq=False)
class Questions:
    """What a policy learns beside its action.

    targets : (N, labels) distribution over each question's labels; NaN where nothing is known.
    payoffs : what turns chances into an expected R.
    units : nats that each question's log score is told in, 1 where nothing else is said.
    """

    targets: Mapping[QuestionName, Floats]
    payoffs: Payoffs
    units: Mapping[QuestionName, float] = field(default_factory=dict)

    def in_units(self, train: Rows) -> Questions:
        """In units of what one answer for all training rows scores beyond the target itself: little
        where scenarios are nearly alike, and then all that there is to learn."""
        units = {}
        for name, target in self.targets.items():
            known = target[train][np.isfinite(target[train]).all(1)]
            alone = known.mean(0) if len(known) else np.full(target.shape[1], np.nan)
            lost = (rel_entr(known, alone)).sum(1)
            units[name] = max(float(lost.mean()) if len(known) else 1.0, _LEAST_UNIT)
        return replace(self, units=units)

    def dealt(self, train: Rows, source: Rows) -> Questions:
        """With the training rows' targets dealt out: row `train[i]` gets that of `source[i]`."""
        targets = {}
        for name, target in self.targets.items():
            targets[name] = target.copy()
            targets[name][train] = target[source]
        return replace(self, targets=targets)


def questions_of(
    scenarios: ScenarioSet,
    labels: Labels,
    taught: Predictions,
    train: Rows,
    config: TargetsConfig,
    outcomes: OutcomesConfig,
) -> Questions:
    """Of labelled scenarios, rows aligned with the table."""
    beyond = spread_beyond(scenarios.scenarios())
    won, stopped, distance = came(labels, beyond)
    if config.source == "outcomes":
        win, stop = won, stopped
        ranges = _levels_of(distance)
    else:
        win, stop = taught.win, taught.stopped
        error = np.log(distance) - np.log(taught.range_atr)
        known = train[np.isfinite(error[train])]
        ranges = _levels_around(taught.range_atr, float(np.sqrt(np.mean(error[known] ** 2))))
    return Questions(
        {
            QuestionName.WIN: _chance(win),
            QuestionName.STOPPED: _chance(stop),
            QuestionName.RANGE: ranges,
        },
        payoffs_of(scenarios, labels, train, outcomes),
    )


def came(labels: Labels, beyond: Floats) -> tuple[Floats, Floats, Floats]:
    """(N,) whether the plan won, whether it was stopped, and the range in ATR; NaN where bars
    cannot judge. beyond : (N,) costs of a wide spread in R, which labels leave out."""
    known = np.isfinite(labels.agent_reward)
    won = np.where(known, labels.agent_reward > beyond, np.nan)
    return won, np.where(known, labels.stopped, np.nan), labels.range_atr


def payoffs_of(
    scenarios: ScenarioSet, labels: Labels, train: Rows, outcomes: OutcomesConfig
) -> Payoffs:
    """Means of what the training rows' plans earned before costs, by what became of them: in ATR
    where price decided, in R where the stop did."""
    parsed = scenarios.scenarios()
    cost = 2 * (outcomes.fee + outcomes.slippage)
    gross = labels.agent_reward + cost / risk_of(parsed)
    orders = Orders.of([plan_order(scenario) for scenario in parsed])
    in_atr = gross * np.abs(orders.entry - orders.stop) / orders.atr
    won, stopped, _ = came(labels, spread_beyond(parsed))

    def mean(values: Floats, here: NDArray[np.bool_]) -> float:
        rows = train[here[train] & np.isfinite(values[train])]
        if not len(rows):
            return 0.0
        return round(float(np.average(values[rows], weights=scenarios.weight[rows])), _DIGITS)

    return Payoffs(
        won_atr=mean(in_atr, won == 1),
        stopped_r=mean(gross, stopped == 1),
        other_atr=mean(in_atr, (won == 0) & (stopped == 0)),
        cost=cost,
        spread_bps=ASSUMED_SPREAD_BPS,
    )


def calibrated(
    readings: Mapping[QuestionName, NDArray[np.floating]],
    questions: Questions,
    weights: Floats,
    rows: Rows,
) -> tuple[OutlookCalibration, dict[str, Measures]]:
    """How raw readings (all rows, labels) become an outlook, fitted on `rows`; and how near they
    come to their targets there: log score in nats, the score of one answer for all, and rank
    correlation of the middle."""
    found, measures = {}, {}
    for name, reading in readings.items():
        target = questions.targets[name]
        known = rows[np.isfinite(target[rows]).all(1)]
        question = fitted(
            name, np.asarray(reading[known], np.float64), target[known], weights[known]
        )
        found[name] = question
        measures[name.value] = _measures(question, reading[known], target[known], weights[known])
    return OutlookCalibration(questions=found, payoffs=questions.payoffs), measures


def fitted(
    name: QuestionName, reading: Floats, target: Floats, weight: Floats
) -> QuestionCalibration:
    """Least cross-entropy to the target, (M, labels) each. Without rows nothing is changed."""
    question, labels = BY_NAME[name], reading.shape[1]
    shift, temperature = np.zeros(labels), 1.0
    if len(reading):

        def loss(parameters: Floats) -> float:
            scores = reading / np.exp(parameters[0]) - np.append(0.0, parameters[1:])
            return -float(np.average((target * log_softmax(scores, axis=1)).sum(1), weights=weight))

        start = np.zeros(labels)
        bounds = [_LOG_TEMPERATURES] + [(None, None)] * (labels - 1)
        best = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
        temperature = float(np.exp(best[0]))
        shift = np.append(0.0, best[1:]) * temperature
    return QuestionCalibration(
        question=question.hash,
        values=question.values,
        bias=tuple(round(float(value), _DIGITS) for value in shift),
        temperature=round(temperature, _DIGITS),
    )


def _measures(
    question: QuestionCalibration, reading: NDArray[np.floating], target: Floats, weight: Floats
) -> Measures:
    if not len(reading):
        return {"rows": 0.0}
    scores = (np.asarray(reading, np.float64) - question.bias) / question.temperature
    values, constant = np.array(question.values), np.average(target, axis=0, weights=weight)
    score = -np.average((target * log_softmax(scores, axis=1)).sum(1), weights=weight)
    entropy = -float((constant * np.log(np.maximum(constant, 1e-12))).sum())
    said, wanted = softmax(scores, axis=1) @ values, target @ values
    varied = len(reading) > 2 and np.ptp(said) > 0 and np.ptp(wanted) > 0
    rank = float(spearmanr(said, wanted).statistic) if varied else 0.0
    return {
        "rows": float(len(reading)),
        "log_score": float(score),
        "log_score_of_one_answer": entropy,
        "rank_correlation": rank,
    }


def _chance(yes: Floats) -> Floats:
    return np.column_stack([1 - yes, yes])


def _levels_of(distance: Floats) -> Floats:
    """(N, levels) 1 at the level that a range is in."""
    edges = BY_NAME[QuestionName.RANGE].edges
    levels = np.eye(len(edges) + 1)[np.searchsorted(edges, distance, side="right")]
    levels[~np.isfinite(distance)] = np.nan
    return levels


def _levels_around(median: Floats, spread: float) -> Floats:
    """(N, levels) chances of every level, log-normal around a median."""
    edges = np.log(BY_NAME[QuestionName.RANGE].edges)
    below = ndtr((edges - np.log(median)[:, None]) / max(spread, 1e-6))
    ends = np.column_stack([np.zeros(len(median)), below, np.ones(len(median))])
    return np.diff(ends, axis=1)
