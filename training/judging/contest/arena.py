"""Where arms meet: the same scenarios, the same bars, the same costs. Orders become fates, fates
become R of the agent's plan.

Every order is simulated as it is, whatever a limit made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.domain.errors import AdvisorError
from training.arrays import Floats, Rows, Times
from training.config.data import OutcomesConfig
from training.judging.contest.arms import Arm
from training.market.bars import Bars
from training.outcomes.ground import Ground
from training.outcomes.labels import plan_orders
from training.outcomes.orders import Orders
from training.outcomes.simulate import Costs, Exit, Fates
from training.scenarios.table import ScenarioSet

DRAWS_AT_ONCE = 10
"""Draws of a random veto that are simulated together: more cost memory and save nothing."""


class ArenaError(AdvisorError):
    """An arm cannot be played on these scenarios."""


@dataclass(frozen=True, eq=False)
class Played:
    """What an arm did in N scenarios, what became of its orders, and what it earned.

    r : (N,) net profit in R of the agent's plan, 0 where it did not trade.
    """

    arm: Arm
    fates: Fates
    r: Floats


@dataclass(frozen=True, eq=False)
class Arena:
    """N real scenarios whose outcomes can be known, in order of time.

    rows : their rows in the scenario set.
    as_of : when each was decided. ends_at : when its longest outcome is known.
    plans : the agent's, as they reach the market: `as_of`, or late.
    """

    rows: Rows
    as_of: Times
    ends_at: Times
    plans: Orders
    ground: Ground
    costs: Costs

    @classmethod
    def of(
        cls,
        scenarios: ScenarioSet,
        series: Mapping[str, Sequence[Bars]],
        outcomes: OutcomesConfig,
        rows: Rows | None = None,
    ) -> Self:
        """Of scenario rows, by default all real ones; what bars cannot judge and synthetic ones are
        left out."""
        wanted = np.flatnonzero(scenarios.real) if rows is None else np.asarray(rows)
        wanted = wanted[scenarios.real[wanted]]
        parsed = scenarios.scenarios()
        plans = plan_orders([parsed[row] for row in wanted], outcomes.delay_s)
        judged = np.flatnonzero(Ground.of(series, plans).excluded == "")
        if not len(judged):
            raise ArenaError(
                "no scenario with a known outcome is left: more bars are needed after the last"
                " decision"
            )
        rows, plans = wanted[judged], plans.at(judged)
        return cls(
            rows,
            scenarios.as_of[rows],
            scenarios.ends_at[rows],
            plans,
            Ground.of(series, plans),
            Costs.of(outcomes),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def symbols(self) -> NDArray[np.str_]:
        """(N,)"""
        return self.plans.symbol

    def play(self, arm: Arm) -> Played:
        """What the arm earned. Raises `ArenaError`: it answers another number of scenarios."""
        if len(arm.orders) != len(self):
            raise ArenaError(f"an arm answers {len(arm.orders)} scenarios, there are {len(self)}")
        return self._followed(arm, np.arange(len(self)))

    def deal(self, arm: Arm, answers: Rows, onto: Rows) -> Played:
        """What the arm's answers to some scenarios earn in others; (M,) each.

        What is dealt is the shape of the final order: the distance of its stop in ATR, and its
        share of the plan's quantity. The answer to scenario j, dealt onto scenario i, is the order

            stop     = entry_i - (entry_j - stop_j) / ATR_j x ATR_i
            quantity = quantity_j / plan's quantity_j x plan's quantity_i

        with entry and targets of i's plan. A refusal is dealt as a refusal; rules are not asked
        again, since a veto at random asks nobody.
        """
        dealt, plans = arm.orders.at(answers), self.plans.at(onto)
        distance = (dealt.entry - dealt.stop) / dealt.atr
        share = dealt.quantity / self.plans.quantity[answers]
        orders = replace(
            plans, stop=plans.entry - distance * plans.atr, quantity=share * plans.quantity
        )
        return self._followed(Arm(orders), onto)

    def random_veto(self, arm: Arm, draws: int, seed: int) -> Iterator[Played]:
        """The arm's own answers dealt to all scenarios at random: the same rate, the same shapes of
        orders, no judgement."""
        source, count = np.random.default_rng(seed), len(self)
        for begin in range(0, draws, DRAWS_AT_ONCE):
            some = min(DRAWS_AT_ONCE, draws - begin)
            answers = np.concatenate([source.permutation(count) for _ in range(some)])
            dealt = self.deal(arm, answers, np.tile(np.arange(count), some))
            for number in range(some):
                rows = np.arange(number * count, (number + 1) * count)
                yield Played(dealt.arm.at(rows), dealt.fates.at(rows), dealt.r[rows])

    def _followed(self, arm: Arm, scenarios: Rows) -> Played:
        # The arena says when an order reaches the market: with the plan of its scenario.
        orders = replace(arm.orders, as_of=self.plans.as_of[scenarios])
        fates = self.ground.follow(orders, self.costs, scenarios)
        lost = orders.placed & (fates.exit == Exit.UNRESOLVED)
        if lost.any():
            row = int(self.rows[scenarios[np.argmax(lost)]])
            raise ArenaError(f"an order of scenario {row} has no fate, though its bars are there")
        return Played(arm, fates, np.nan_to_num(fates.net / orders.plan_risk))
