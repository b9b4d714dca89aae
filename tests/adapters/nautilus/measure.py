"""What the actor costs an engine, per bar and per entry. Runs in nautilus' environment; the service
need not be there.

usage: measure.py
"""

from __future__ import annotations

import time
from statistics import median

from shadow_advisor_client.adapters.nautilus import ShadowAdvisor, ShadowAdvisorConfig

from tests.adapters.nautilus.backtest import BARS, Brackets, BracketsConfig, engine_with

ROUNDS = 3
BARS_EACH = 5_000
NEVER = 10 * BARS_EACH
EVERY = 100
ASKED = BARS_EACH // EVERY * 4 // 5
"""One entry of five has no stop, and is not asked about."""


def run(every: int, advised: bool) -> float:
    """Seconds of a back-test, an entry every so many bars."""
    engine = engine_with(BARS_EACH)
    engine.add_strategy(Brackets(BracketsConfig(every=every)))
    if advised:
        # As in a live node: an entry waits for nobody.
        config = ShadowAdvisorConfig(
            bar_types=(BARS,), url="http://127.0.0.1:9", backtest_wait_s=0.0
        )
        engine.add_actor(ShadowAdvisor(config))
    begin = time.perf_counter()
    engine.run()
    taken = time.perf_counter() - begin
    engine.dispose()
    return taken


def added(every: int) -> float:
    """Seconds that the actor adds to a back-test: the median of pairs, one after the other."""
    return median(run(every, advised=True) - run(every, advised=False) for _ in range(ROUNDS))


def main() -> None:
    bars = added(NEVER)
    entries = added(EVERY) - bars
    print(f"per bar    {1e6 * bars / BARS_EACH:8.1f} us")
    print(f"per entry  {1e6 * entries / ASKED:8.1f} us, its reports among it")


if __name__ == "__main__":
    main()
