"""Rollouts: what each arm does in the same scenarios, with the log-probability with which it does
it.

Traces are rows of one table, so that off-policy estimates, calibration and replays need nothing
else. `log_prob` is the natural logarithm of the probability with which the arm, as it was run, took
this action in this scenario: 0 for arms that always would (rules and a model's argmax are certain),
log(rate) or log(1 - rate) for the random veto, the policy's own for a model that sampled.
`log_probs` is the distribution over the ten actions that the arm held when it chose: null for
rules, which hold none. For a model's argmax the two differ on purpose: the choice was certain, the
belief was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.domain.actions import ACTIONS, REJECT
from app.domain.case import order_for
from app.domain.control import AgentAction
from app.domain.errors import AdvisorError
from app.domain.manifest import Calibration
from app.domain.scenario import Scenario
from training.agent.words import agents_label, words
from training.arrays import Flags, Floats
from training.scenarios.table import ScenarioSet
from training.stages.store import Artifact

TABLE = "rollouts.parquet"
SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "scenario": pl.String(),
    "arm": pl.String(),
    "action": pl.String(),
    "approve": pl.Boolean(),
    "quantity": pl.Float64(),
    "stop": pl.Float64(),
    "rationale": pl.String(),
    "seed": pl.Int64(),
    "log_prob": pl.Float64(),
    "log_probs": pl.List(pl.Float64()),
}
REFERENCE_AGENT, ALWAYS_APPROVE, RANDOM_VETO = "reference_agent", "always_approve", "random_veto"
CHECKED_SUM = 1e-3


class RolloutError(AdvisorError):
    """An arm cannot act on these scenarios."""


def agent(scenarios: ScenarioSet) -> pl.DataFrame:
    """What the agent did: its recorded control, or the reference agent's answer. Rows without one
    are left out."""
    known = [
        (row, control) for row, control in enumerate(scenarios.controls()) if control is not None
    ]
    if not known:
        raise RolloutError("no scenario has the agent's own action: the agent never reported it")
    parsed = scenarios.scenarios()
    rows = [
        _of_plan(
            scenarios,
            row,
            REFERENCE_AGENT,
            control.decision,
            control,
            words(parsed[row], control),
            None,
            0.0,
        )
        for row, control in known
    ]
    return _table(rows)


def always_approve(scenarios: ScenarioSet) -> pl.DataFrame:
    """The agent's plan in every scenario."""
    return _rule(scenarios, ALWAYS_APPROVE, np.ones(len(scenarios), dtype=bool))


def threshold(scenarios: ScenarioSet, margin: float) -> pl.DataFrame:
    """The agent's plan where its score is `margin` or more above its threshold. Reads no outcome
    and learns nothing."""
    over = [
        s.candidate.score - s.candidate.score_threshold >= margin for s in scenarios.scenarios()
    ]
    return _rule(scenarios, f"score_margin_{margin:g}", np.array(over, dtype=bool))


def random_veto(scenarios: ScenarioSet, rate: float, seed: int) -> pl.DataFrame:
    """The agent's plan with probability `rate` in every scenario, independently."""
    if not 0 < rate < 1:
        raise RolloutError(f"a random veto approves at a rate between 0 and 1, not {rate}")
    yes = np.random.default_rng(seed).random(len(scenarios)) < rate
    certainty = np.where(yes, math.log(rate), math.log1p(-rate))
    return _rule(scenarios, RANDOM_VETO, yes, certainty, seed)


def model(
    scenarios: ScenarioSet,
    name: str,
    label_log_probs: Floats | NDArray[np.float32],
    calibration: Calibration,
    seed: int | None = None,
    rationales: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """A model version, before any rule: its argmax, or with a seed an action drawn from its
    distribution.

    Parameters
    ----------
    label_log_probs : (N, 10) raw, over the whole vocabulary, nats.
    calibration : the version's: softmax((raw - bias) / temperature), as
        `app.domain.decision.propose` has it.
    rationales : its words by row, if it was asked for them.

    Raises
    ------
    RolloutError : the shape is wrong, or the numbers are no log-probabilities.
    """
    raw = np.asarray(label_log_probs, dtype=np.float64)
    if raw.shape != (len(scenarios), len(ACTIONS)):
        raise RolloutError(
            f"{name}: label log-probabilities are {raw.shape}, wanted is"
            f" {(len(scenarios), len(ACTIONS))}"
        )
    if not np.isfinite(raw).all() or (np.exp(raw).sum(axis=1) > 1 + CHECKED_SUM).any():
        raise RolloutError(
            f"{name}: a row of label log-probabilities is not finite, or sums to more than 1"
        )
    policy = log_policy(raw, calibration)
    if seed is None:
        chosen = policy.argmax(axis=1)
        certainty = np.zeros(len(chosen))
    else:
        # Gumbel's trick: the argmax of log p + Gumbel noise is a draw from p.
        chosen = (policy + np.random.default_rng(seed).gumbel(size=policy.shape)).argmax(axis=1)
        certainty = policy[np.arange(len(chosen)), chosen]
    ids = scenarios.table["id"]
    rows = []
    for row, scenario in enumerate(scenarios.scenarios()):
        action = ACTIONS[chosen[row]]
        order = order_for(action, scenario) if action.approve else None
        said = rationales[row] if rationales is not None else None
        quantity, stop = (order.quantity, order.stop) if order else (0.0, None)
        acted = (
            action.label,
            action.approve,
            quantity,
            stop,
            said,
            seed,
            float(certainty[row]),
            policy[row].tolist(),
        )
        rows.append((row, ids[row], name, *acted))
    return _table(rows)


def log_policy(raw: Floats, calibration: Calibration) -> Floats:
    """log softmax((raw - bias) / temperature) by row; (N, 10), nats."""
    scores = (raw - np.array(calibration.bias)) / calibration.temperature
    scores -= scores.max(axis=1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))


def build_rollouts(folder: Path, arms: Sequence[pl.DataFrame]) -> dict[str, Any]:
    """Write the arms' traces as one table, and return approval rates by arm. Raises `RolloutError`:
    one comes twice."""
    table = pl.concat(arms) if arms else pl.DataFrame(schema=SCHEMA)
    if table.select("arm", "row").is_duplicated().any():
        raise RolloutError("two arms have one name: name each model version once")
    table.write_parquet(folder / TABLE)
    by_arm = table.group_by("arm", maintain_order=True).agg(pl.len(), pl.col("approve").mean())
    return {
        "arms": {
            arm: {"rows": rows, "approval_rate": round(rate, 6)}
            for arm, rows, rate in by_arm.iter_rows()
        }
    }


def open_rollouts(artifact: Artifact) -> pl.DataFrame:
    """The table of a finished stage, columns of `SCHEMA`."""
    return pl.read_parquet(artifact / TABLE)


def _rule(
    scenarios: ScenarioSet,
    name: str,
    yes: Flags,
    certainty: Floats | None = None,
    seed: int | None = None,
) -> pl.DataFrame:
    sure = np.zeros(len(yes)) if certainty is None else certainty
    rows = [
        _of_plan(scenarios, row, name, bool(approve), None, None, seed, float(sure[row]))
        for row, approve in enumerate(yes)
    ]
    return _table(rows)


def _of_plan(
    scenarios: ScenarioSet,
    row: int,
    name: str,
    approve: bool,
    control: AgentAction | None,
    said: str | None,
    seed: int | None,
    log_prob: float,
) -> tuple[Any, ...]:
    """The plan as it is, or as the agent filled it; its letter is the nearest action with the whole
    risk."""
    scenario: Scenario = scenarios.scenarios()[row]
    action, quantity, stop = REJECT, 0.0, None
    if approve:
        action = agents_label(scenario, control or AgentAction(decision=True))
        filled = control or AgentAction(decision=True)
        quantity, stop = (
            filled.quantity or scenario.plan.quantity,
            filled.stop or scenario.plan.stop,
        )
    return (
        row,
        scenarios.table["id"][row],
        name,
        action.label,
        approve,
        quantity,
        stop,
        said,
        seed,
        log_prob,
        None,
    )


def _table(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
