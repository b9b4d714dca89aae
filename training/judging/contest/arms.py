"""The arms of an evaluation: what each would do with the same scenarios, decided without looking at
their outcomes.

An arm is an order per scenario, or none. What learns (threshold, logistic regression, boosting) is
fitted on training scenarios only; its cut is chosen there too, out of fold.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from threadpoolctl import threadpool_limits

from app.domain.case import TradingState, order_for
from app.domain.control import AgentAction
from app.domain.decision import Reading, Role, Version, conclude, propose, review_control
from app.domain.features import FEATURE_NAMES
from app.domain.limits import Limits
from app.domain.manifest import Calibration
from app.domain.scenario import Scenario
from training.arrays import Flags, Floats
from training.scenarios.splits import purged_kfold

MIN_APPROVAL_RATE = 0.05
"""A cut that lets fewer training scenarios through is not considered: it would trade by chance."""
CUTS = 20
FOLDS = 5
BINS = 63


@dataclass(frozen=True, eq=False)
class Arm:
    """What one arm does with N scenarios; arrays of shape (N,), orders relative to the scenario's
    plan.

    name : as the report calls it.
    approve : whether it trades.
    stop_atr : distance of the stop from entry, in ATR; NaN where it does not trade.
    share : quantity over the plan's quantity, 0-1; 0 where it does not trade.
    probability : its approval probability, 0-1, for calibration; None for arms without one.
    vetoes : codes that refused its order, per scenario; None for arms without rules.
    fitted_in_s : CPU seconds that fitting took; 0 for arms that learn nothing here.
    """

    name: str
    approve: Flags
    stop_atr: Floats
    share: Floats
    probability: Floats | None = None
    vetoes: tuple[tuple[str, ...], ...] | None = None
    fitted_in_s: float = 0.0

    @property
    def approval_rate(self) -> float:
        """Share of scenarios that it trades."""
        return float(self.approve.mean()) if len(self.approve) else 0.0

    def named(self, name: str) -> Arm:
        """The same answers under another name."""
        return replace(self, name=name)

    def at(self, chosen: NDArray[np.int64]) -> Arm:
        """Its answers to some of the scenarios."""
        return replace(
            self,
            approve=self.approve[chosen],
            stop_atr=self.stop_atr[chosen],
            share=self.share[chosen],
            probability=None if self.probability is None else self.probability[chosen],
            vetoes=None if self.vetoes is None else tuple(self.vetoes[i] for i in chosen),
        )

    @staticmethod
    def joined(parts: Sequence[Arm]) -> Arm:
        """One arm's answers to consecutive scenarios."""
        likely = [part.probability for part in parts if part.probability is not None]
        codes = [part.vetoes for part in parts if part.vetoes is not None]
        return Arm(
            parts[0].name,
            np.concatenate([part.approve for part in parts]),
            np.concatenate([part.stop_atr for part in parts]),
            np.concatenate([part.share for part in parts]),
            np.concatenate(likely) if len(likely) == len(parts) else None,
            tuple(code for each in codes for code in each) if len(codes) == len(parts) else None,
            sum(part.fitted_in_s for part in parts),
        )

    def kept(self, name: str, keep: Flags) -> Arm:
        """The same arm trading only where `keep` is set."""
        approve = self.approve & keep
        return replace(
            self,
            name=name,
            approve=approve,
            stop_atr=np.where(approve, self.stop_atr, np.nan),
            share=np.where(approve, self.share, 0.0),
        )


def always(scenarios: Sequence[Scenario]) -> Arm:
    """The agent's plan on every candidate."""
    distances = [abs(s.plan.entry - s.plan.stop) / s.candidate.atr for s in scenarios]
    everywhere = np.ones(len(scenarios), dtype=bool)
    return Arm("always approve", everywhere, np.array(distances), everywhere.astype(float))


def agent(scenarios: Sequence[Scenario], controls: Sequence[AgentAction | None]) -> Arm:
    """The control: the agent's plan where the agent said yes; what it never answered counts as
    no."""
    yes = np.array([control is not None and control.decision for control in controls], dtype=bool)
    return always(scenarios).kept("agent", yes)


def random_veto(arm: Arm, draws: int, seed: int) -> Iterator[Arm]:
    """`arm`'s own answers dealt to scenarios at random: the same rate, the same sizes and stops, no
    judgement."""
    source = np.random.default_rng(seed)
    for _ in range(draws):
        dealt = source.permutation(len(arm.approve))
        yield Arm("random veto", arm.approve[dealt], arm.stop_atr[dealt], arm.share[dealt])


@dataclass(frozen=True, eq=False)
class Known:
    """Scenarios whose outcomes are known: what the simpler rivals are fitted on. Arrays of shape
    (M,).

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

    def at(self, rows: NDArray[np.int64]) -> Known:
        """Some of them."""
        return Known(
            **{name: values[rows] for name, values in self._arrays().items()},
            embargo_s=self.embargo_s,
        )

    def __add__(self, other: Known) -> Known:
        theirs = other._arrays()
        joined = {
            name: np.concatenate([values, theirs[name]]) for name, values in self._arrays().items()
        }
        return Known(**joined, embargo_s=self.embargo_s)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {name: value for name, value in vars(self).items() if name != "embargo_s"}


def fitted(known: Known, plan: Arm, new_features: Floats, folds: int = FOLDS) -> list[Arm]:
    """The simpler rivals: a threshold on the agent's own score, logistic regression, gradient
    boosting.

    Parameters
    ----------
    plan : `always` on the N new scenarios.
    new_features : (N, F).
    folds : in which cuts are chosen.

    Each predicts from features whether the plan will make money, and trades above a cut: the one of
    20 quantiles of its out-of-fold predictions (purged, embargoed) that earned most on the training
    scenarios.
    """
    features, rewards, weights = known.features, known.rewards, known.weights
    margin = FEATURE_NAMES.index("score_over_threshold")
    models: list[tuple[str, Any]] = [
        ("logistic regression", make_pipeline(_known(), StandardScaler(), _logistic())),
        ("gradient boosting", make_pipeline(_known(), _binned(), _boosting())),
    ]
    cut = best_cut(features[:, margin], rewards, weights)
    arms = [plan.kept("score threshold", new_features[:, margin] >= cut)]
    parts = purged_kfold(known.as_of, known.ends_at, folds, known.embargo_s)
    won = rewards > 0
    # OpenMP threads that wait for each other beside other work are up to a hundred times slower
    # than one.
    with threadpool_limits(1):
        for name, model in models:
            began = time.process_time()
            out_of_fold = np.full(len(rewards), np.nan)
            for fold in parts:
                chance = _fit(model, features[fold.train], won[fold.train], weights[fold.train])
                out_of_fold[fold.test] = chance(features[fold.test])
            cut = best_cut(out_of_fold, rewards, weights)
            final = _fit(model, features, won, weights)
            cost = time.process_time() - began
            probability = final(new_features)
            arms.append(
                replace(
                    plan.kept(name, probability >= cut), probability=probability, fitted_in_s=cost
                )
            )
    return arms


def _fit(model: Any, features: Floats, won: Flags, weights: Floats) -> Callable[[Floats], Floats]:
    """A fresh copy of a pipeline, its classifier fitted with sample weights: features to chances of
    making money.

    Where every plan had one fate there is nothing to tell apart: the chance is 0 or 1 for all.
    """
    if won.all() or not won.any():
        return lambda new: np.full(len(new), float(won[0]))
    fresh = clone(model)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Bins whose width|Feature .* is constant", UserWarning
        )  # flags are few-valued
        fresh.fit(features, won, **{f"{fresh.steps[-1][0]}__sample_weight": weights})
    return lambda new: np.asarray(fresh.predict_proba(new)[:, 1])


def _known() -> SimpleImputer:
    """Medians in place of what is not known, and flags that say so. A field that no source has is 0
    everywhere."""
    return SimpleImputer(strategy="median", keep_empty_features=True, add_indicator=True)


def best_cut(scores: Floats, rewards: Floats, weights: Floats) -> float:
    """The cut above which the weighted mean reward per scenario is highest; rejected ones earn 0.

    Only quantiles that let `MIN_APPROVAL_RATE` through are tried. So the rival always trades: one
    that learned not to would be compared with nothing.
    """
    known = np.isfinite(scores) & np.isfinite(rewards)
    scores, gains = scores[known], (rewards * weights)[known]
    cuts = np.unique(np.quantile(scores, np.linspace(0, 1 - MIN_APPROVAL_RATE, CUTS)))
    return float(max(cuts, key=lambda cut: gains[scores >= cut].sum()))


def policy(
    scenarios: Sequence[Scenario],
    log_probabilities: NDArray[np.floating[Any]],
    calibration: Calibration,
    limits: Limits,
) -> tuple[Arm, Arm]:
    """A model version before and after the rules, judged as the service judges: `conclude()` on the
    same scenario.

    `log_probabilities` is (N, 10), raw, over the whole vocabulary. Time is each scenario's own.
    """
    version = Version("evaluated", "sha256:" + "0" * 64, calibration, Role.PRIMARY)
    raw: list[Relative] = []
    guarded: list[Relative] = []
    probability, codes = [], []
    for scenario, row in zip(scenarios, log_probabilities, strict=True):
        reading = Reading(log_probabilities=tuple(float(value) for value in row))
        proposal = propose(reading, calibration)
        advice = conclude(
            scenario, reading, version, limits, state=TradingState.ACTIVE, now=scenario.as_of
        )
        order = order_for(proposal.action, scenario) if proposal.action.approve else None
        raw.append(_relative(scenario, order.stop, order.quantity) if order else None)
        guarded.append(
            _relative(scenario, advice.stop, advice.quantity) if advice.approve else None
        )
        probability.append(proposal.approve_probability)
        codes.append(
            tuple(veto.code.value for veto in advice.review.vetoes) if advice.review else ()
        )
    likely = np.array(probability)
    before, after = _arm("policy before vetoes", raw, likely), _arm("policy", guarded, likely)
    return before, replace(after, vetoes=tuple(codes))


def allowed(scenarios: Sequence[Scenario], limits: Limits) -> Flags:
    """(N,) whether the rules let the agent's plan pass: what a simpler rival may trade, as the
    policy may."""
    reviews = [review_control(each, limits, TradingState.ACTIVE, each.as_of) for each in scenarios]
    return np.array([not each.vetoes for each in reviews], dtype=bool)


Relative = tuple[float, float] | None


def _relative(scenario: Scenario, stop: float | None, quantity: float | None) -> Relative:
    """Stop distance in ATR and share of the plan's quantity."""
    if stop is None or quantity is None:
        raise ValueError("an approving advice has a stop and a quantity")
    return (scenario.plan.entry - stop) / scenario.candidate.atr, quantity / scenario.plan.quantity


def _arm(name: str, orders: Sequence[Relative], probability: Floats) -> Arm:
    approve = np.array([order is not None for order in orders], dtype=bool)
    both = np.array([(np.nan, 0.0) if order is None else order for order in orders]).reshape(-1, 2)
    return Arm(name, approve, both[:, 0], both[:, 1], probability)


def _binned() -> KBinsDiscretizer:
    """Once, by quantiles: boosting's own search for bins takes longer than its trees when samples
    have weights."""
    return KBinsDiscretizer(
        BINS, encode="ordinal", strategy="quantile", subsample=None, quantile_method="linear"
    )


def _logistic() -> LogisticRegression:
    return LogisticRegression(C=0.01, max_iter=1000)


def _boosting() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=80, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=100, max_bins=BINS
    )
