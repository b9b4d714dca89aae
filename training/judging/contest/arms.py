"""The arms of an evaluation: what each would do with the same scenarios, decided without looking at
their outcomes.

An arm is a final order per scenario, or none. Every arm has its name and its maker in one table,
`ARMS`; model versions are arms under the names that they are given. What learns (threshold,
logistic regression, boosting) is fitted on training scenarios only; its cut is chosen there too,
out of fold.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from threadpoolctl import threadpool_limits

from app.domain.features import FEATURE_NAMES
from app.domain.record.control import AgentAction
from app.domain.record.decision import Role, Version, cautious, conclude, review_control
from app.domain.rules.case import TradingState, order_for
from app.domain.rules.limits import Limits
from app.domain.scenario import Scenario
from training.arrays import Flags, Floats, Rows
from training.learning.model.answers import Answers
from training.outcomes.orders import Orders
from training.scenarios.splits import purged_kfold

AGENT, ALWAYS, HOLD, RANDOM = "agent", "always approve", "buy and hold", "random veto"
NOT_TRADING, SIZED = "not trading", "agent sized by 1/ATR"
RAW, POLICY, AS_VETO = "policy before vetoes", "policy", "policy as veto"
BASE_MODEL, WARM_UP, PROBE, CHAMPION = "base model", "warm-up", "linear probe", "champion"
TEACHER, SHUFFLED = "teacher alone", "teacher of shuffled labels"
BASELINES = (BASE_MODEL, WARM_UP, PROBE, TEACHER, SHUFFLED, CHAMPION)
"""Versions that stand beside the policies and are no trials."""
MIN_APPROVAL_RATE = 0.05
"""A cut that lets fewer training scenarios through is not considered: it would trade by chance."""
CUTS = 20
FOLDS = 5
BINS = 63


@dataclass(frozen=True, eq=False)
class Arm:
    """What one arm does with N scenarios.

    orders : (N,) final; nothing is bought where it refuses.
    probability : (N,) its approval probability, 0-1, for calibration; None for arms without one.
    vetoes : codes that refused its order, per scenario; None for arms without rules.
    fitted_in_s : CPU seconds that fitting took; 0 for arms that learn nothing here.
    """

    orders: Orders
    probability: Floats | None = None
    vetoes: tuple[tuple[str, ...], ...] | None = None
    fitted_in_s: float = 0.0

    @property
    def approve(self) -> Flags:
        """(N,) whether it trades."""
        return self.orders.placed

    def at(self, rows: Rows) -> Arm:
        """Its answers to some of the scenarios."""
        return replace(
            self,
            orders=self.orders.at(rows),
            probability=None if self.probability is None else self.probability[rows],
            vetoes=None if self.vetoes is None else tuple(self.vetoes[row] for row in rows),
        )

    @staticmethod
    def joined(parts: Sequence[Arm]) -> Arm:
        """One arm's answers to consecutive scenarios."""
        likely = [part.probability for part in parts if part.probability is not None]
        codes = [part.vetoes for part in parts if part.vetoes is not None]
        return Arm(
            Orders.joined([part.orders for part in parts]),
            np.concatenate(likely) if len(likely) == len(parts) else None,
            tuple(code for part in codes for code in part) if len(codes) == len(parts) else None,
            sum(part.fitted_in_s for part in parts),
        )


@dataclass(frozen=True, eq=False)
class Past:
    """Scenarios that were over, outcomes known: what the simpler rivals are fitted on. Arrays of
    shape (M,).

    features : (M, F). rewards : of the agent's plan, R. as_of, ends_at : seconds. weights :
        uniqueness.
    embargo_s : between what is fitted and what is foretold, within these.
    """

    features: Floats
    rewards: Floats
    as_of: NDArray[np.int64]
    ends_at: NDArray[np.int64]
    weights: Floats
    embargo_s: float

    def at(self, rows: NDArray[np.int64]) -> Past:
        """Some of them."""
        return Past(
            **{name: values[rows] for name, values in self._arrays().items()},
            embargo_s=self.embargo_s,
        )

    def __add__(self, other: Past) -> Past:
        theirs = other._arrays()
        joined = {
            name: np.concatenate([values, theirs[name]]) for name, values in self._arrays().items()
        }
        return Past(**joined, embargo_s=self.embargo_s)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if name != "embargo_s"}


@dataclass(frozen=True, eq=False)
class Given:
    """What arms may look at when they decide on N scenarios: nothing of their outcomes.

    controls : what the agent did; None where it never said. features : (N, F).
    past : what the simpler rivals are fitted on. versions : answers to these scenarios, by name.
    """

    scenarios: Sequence[Scenario]
    controls: Sequence[AgentAction | None]
    plans: Orders
    features: Floats
    past: Past
    versions: Mapping[str, Answers]
    limits: Limits

    @cached_property
    def allowed(self) -> Flags:
        """(N,) whether the rules let the agent's plan pass: what a simpler rival may trade, as the
        policy may."""
        reviews = [
            review_control(scenario, self.limits, TradingState.ACTIVE, scenario.as_of)
            for scenario in self.scenarios
        ]
        return np.array([not review.vetoes for review in reviews], dtype=bool)


class Choice(NamedTuple):
    """Which of N plans a rival trades, before any rule; its chance of each, and what fitting
    took."""

    trades: Flags
    probability: Floats | None = None
    fitted_in_s: float = 0.0


Rival = Callable[[Past, Floats, int], Choice]
"""Fits on the past and chooses among plans by their features (N, F); its cut is chosen in so
many folds."""


def threshold(feature: str, past: Past, features: Floats, folds: int = FOLDS) -> Choice:
    """One number of the scenario, above the cut that earned most; what lacks it is not traded."""
    return Choice(features[:, FEATURE_NAMES.index(feature)] >= threshold_cut(feature, past))


def threshold_cut(feature: str, past: Past) -> float:
    """The cut of one number that earned most."""
    column = past.features[:, FEATURE_NAMES.index(feature)]
    return best_cut(column, past.rewards, past.weights)


class Fitted(NamedTuple):
    """A rival that has learned. `pipeline` is None where every plan had one fate."""

    pipeline: Any
    chance: Callable[[Floats], Floats]
    cut: float
    fitted_in_s: float


def learned(
    pipeline: Callable[[], Any], past: Past, features: Floats, folds: int = FOLDS
) -> Choice:
    """Predicts whether the plan will make money, and trades above a cut."""
    rival = fitted(pipeline, past, folds)
    with threadpool_limits(1):
        probability = rival.chance(features)
    return Choice(probability >= rival.cut, probability, rival.fitted_in_s)


def fitted(pipeline: Callable[[], Any], past: Past, folds: int = FOLDS) -> Fitted:
    """Fits on all of the past. The cut is the one of 20 quantiles of its out-of-fold predictions
    (purged, embargoed) that earned most on the training scenarios."""
    model, won = pipeline(), past.rewards > 0
    began = time.process_time()
    out_of_fold = np.full(len(won), np.nan)
    # OpenMP threads that wait for each other beside other work are up to a hundred times slower
    # than one.
    with threadpool_limits(1):
        for fold in purged_kfold(past.as_of, past.ends_at, folds, past.embargo_s):
            train = past.at(fold.train)
            _, chance = _fit(model, train.features, won[fold.train], train.weights)
            out_of_fold[fold.test] = chance(past.features[fold.test])
        cut = best_cut(out_of_fold, past.rewards, past.weights)
        final, chance = _fit(model, past.features, won, past.weights)
        return Fitted(final, chance, cut, time.process_time() - began)


def _fit(
    model: Any, features: Floats, won: Flags, weights: Floats
) -> tuple[Any, Callable[[Floats], Floats]]:
    """A fresh copy of a pipeline, its classifier fitted with sample weights; and features to
    chances of making money.

    Where every plan had one fate there is nothing to tell apart: the chance is 0 or 1 for all.
    """
    if won.all() or not won.any():
        return None, lambda new: np.full(len(new), float(won[0]))
    fresh = clone(model)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Bins whose width|Feature .* is constant", UserWarning
        )  # flags are few-valued
        fresh.fit(features, won, **{f"{fresh.steps[-1][0]}__sample_weight": weights})
    return fresh, lambda new: np.asarray(fresh.predict_proba(new)[:, 1])


def _imputed() -> SimpleImputer:
    """Medians in place of what is not known, and flags that say so. A field that no source has is 0
    everywhere."""
    return SimpleImputer(strategy="median", keep_empty_features=True, add_indicator=True)


def best_cut(scores: Floats, rewards: Floats, weights: Floats) -> float:
    """The cut above which the weighted mean reward per scenario is highest; rejected ones earn 0.

    Only quantiles that let `MIN_APPROVAL_RATE` through are tried. So the rival always trades: one
    that learned not to would be compared with nothing. Where nobody has a score, none passes: inf.
    """
    finite = np.isfinite(scores) & np.isfinite(rewards)
    if not finite.any():
        return np.inf
    scores, gains = scores[finite], (rewards * weights)[finite]
    cuts = np.unique(np.quantile(scores, np.linspace(0, 1 - MIN_APPROVAL_RATE, CUTS)))
    return float(max(cuts, key=lambda cut: gains[scores >= cut].sum()))


def _logistic() -> Any:
    return make_pipeline(_imputed(), StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))


def _boosting() -> Any:
    """Bins are made once, by quantiles: boosting's own search for them takes longer than its trees
    when samples have weights. Stopping early, by a split at random from 10,000 samples on, would
    make another rival of each run."""
    bins = KBinsDiscretizer(
        BINS, encode="ordinal", strategy="quantile", subsample=None, quantile_method="linear"
    )
    trees = HistGradientBoostingClassifier(
        max_iter=80,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=100,
        max_bins=BINS,
        early_stopping=False,
        random_state=0,
    )
    return make_pipeline(_imputed(), bins, trees)


def agent(given: Given) -> Arm:
    """The control: the agent's plan where the agent said yes; what it never answered counts as
    no."""
    yes = [control is not None and control.decision for control in given.controls]
    return Arm(given.plans.only(np.array(yes, dtype=bool)))


def always(given: Given) -> Arm:
    """The agent's plan on every candidate."""
    return Arm(given.plans)


def not_trading(given: Given) -> Arm:
    """Nothing, ever: it earns 0."""
    return Arm(given.plans.only(np.zeros(len(given.scenarios), dtype=bool)))


def sized(given: Given) -> Arm:
    """The agent's orders with sizes inverse to the ATR, at the mean size that it has in the past:
    what a policy's sizes have to be better than. It is no advice, since it may trade more than the
    agent."""
    column = FEATURE_NAMES.index("atr_fraction")
    past, now = (
        np.where(table[:, column] > 0, table[:, column], np.nan)
        for table in (given.past.features, given.features)
    )
    share = 1 / (now * float(np.nanmean(1 / past)))
    orders = replace(given.plans, quantity=given.plans.quantity * share)
    return Arm(orders.only(agent(given).approve))


def behind_rules(rival: Rival, given: Given) -> Arm:
    """Whoever advises does so behind the rules: what they refuse is no merit or fault of one
    adviser."""
    choice = rival(given.past, given.features, FOLDS)
    trades = choice.trades & given.allowed
    return Arm(given.plans.only(trades), choice.probability, fitted_in_s=choice.fitted_in_s)


def proposed(name: str, given: Given) -> Arm:
    """What a model version proposes, whatever the rules say to it."""
    answers, stops, quantities, likely = given.versions[name], [], [], []
    for scenario, reading in zip(given.scenarios, answers.readings(), strict=True):
        proposal = cautious(reading, answers.calibration)
        order = order_for(proposal.action, scenario) if proposal.action.approve else None
        stops.append(order.stop if order else None)
        quantities.append(order.quantity if order else None)
        likely.append(proposal.approve_probability)
    return Arm(_answered(given.plans, stops, quantities), np.array(likely))


def advised(name: str, given: Given) -> Arm:
    """A model version's advice, concluded as the service concludes it, at each scenario's own
    time."""
    answers = given.versions[name]
    version = Version("evaluated", "sha256:" + "0" * 64, answers.calibration, Role.PRIMARY)
    stops, quantities, likely, codes = [], [], [], []
    for scenario, reading in zip(given.scenarios, answers.readings(), strict=True):
        advice = conclude(
            scenario, reading, version, given.limits, state=TradingState.ACTIVE, now=scenario.as_of
        )
        stops.append(advice.stop if advice.approve else None)
        quantities.append(advice.quantity if advice.approve else None)
        likely.append(cautious(reading, answers.calibration).approve_probability)
        vetoes = advice.review.vetoes if advice.review else ()
        codes.append(tuple(veto.code.value for veto in vetoes))
    return Arm(_answered(given.plans, stops, quantities), np.array(likely), tuple(codes))


def _answered(
    plans: Orders, stops: Sequence[float | None], quantities: Sequence[float | None]
) -> Orders:
    """The plans with other stops and quantities; None refuses."""
    stop, quantity = (np.array(column, dtype=np.float64) for column in (stops, quantities))
    return replace(plans, stop=stop, quantity=quantity)


HEURISTICS: dict[str, partial[Choice]] = {
    "score threshold": partial(threshold, "score_over_threshold"),
    "cost filter": partial(threshold, "atr_fraction"),
    "logistic regression": partial(learned, _logistic),
    "gradient boosting": partial(learned, _boosting),
}
"""Simpler rivals: each must be beaten. The cost filter trades where markets move much, since costs
are then a small part of the risk: it knows nothing else."""
ARMS: dict[str, Callable[[Given], Arm]] = {
    AGENT: agent,
    ALWAYS: always,
    NOT_TRADING: not_trading,
    SIZED: sized,
    **{name: partial(behind_rules, rival) for name, rival in HEURISTICS.items()},
}
"""Every arm by name, but for what model versions say (their names are the evaluation's), the random
veto (the policy's answers, dealt in the arena) and buy and hold (no order answers a scenario)."""


def act(given: Given) -> dict[str, Arm]:
    """Every arm's answers, by its name."""
    arms = {name: make(given) for name, make in ARMS.items()}
    arms |= {name: advised(name, given) for name in given.versions}
    if POLICY not in given.versions:
        return arms
    raw = proposed(POLICY, given)
    return arms | {RAW: raw, AS_VETO: vetoed(arms[AGENT], arms[POLICY])}


def vetoed(agents: Arm, policys: Arm) -> Arm:
    """The agent's own orders, where the policy approves as well: it never trades more."""
    return Arm(agents.orders.only(policys.approve))
