"""The algorithms: how each of `training.config.learning.ALGORITHMS` trains.

The policy stage is given the one that it runs, instead of importing this table, so that its key
follows that one alone.
"""

from __future__ import annotations

from training.learning.algorithms import dpo, expected, ppo, rrhf
from training.learning.algorithms.policy import Train

TRAINS: dict[str, Train] = {
    "expected": expected.train,
    "dpo": dpo.train,
    "ppo": ppo.train,
    "rrhf": rrhf.train,
}
