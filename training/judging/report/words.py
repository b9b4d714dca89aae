"""The gate's answer in words that a trader uses."""

from __future__ import annotations

from training.judging.gate.verdict import RefusalCode
from training.statistics.bootstrap import Estimate

REASONS = {
    RefusalCode.NOT_FINITE: "a number in the evidence is none",
    RefusalCode.OUT_OF_BOUNDS: "a day's result is beyond what the bound allows for",
    RefusalCode.NOT_IN_ORDER: "the opportunities are not in order of time",
    RefusalCode.SPLIT_OVERLAPS: "it was judged on what it had learnt from",
    RefusalCode.TOO_FEW_SCENARIOS: "too few opportunities to judge by",
    RefusalCode.TOO_FEW_TRADES: "it took too few trades to judge by",
    RefusalCode.TOO_FEW_VETOES: "it refused too few trades to judge by",
    RefusalCode.TOO_FEW_DAYS: "too few days to judge by",
    RefusalCode.APPROVES_MORE_THAN_AGENT: "it trades where the agent does not",
    RefusalCode.NOT_BETTER_THAN_AGENT: "it is not surely better than the agent alone",
    RefusalCode.NOT_BETTER_THAN_HEURISTIC: "it is not surely better than a simple rule",
    RefusalCode.NOT_BETTER_THAN_RANDOM_VETO: "refusing as often by a coin may do as well",
    RefusalCode.NOT_BETTER_THAN_NOT_TRADING: "doing nothing may do as well",
    RefusalCode.SHARPE_UNDEFINED: "its equity does not move",
    RefusalCode.SHARPE_NOT_HIGHER: "its return for its risk is not above a rival's",
    RefusalCode.SHARPE_NOT_CONFIDENT: "with so many tries, this return for its risk may be luck",
    RefusalCode.DRAWDOWN_WORSE: "its deepest loss is deeper than the agent's",
    RefusalCode.CALIBRATION_MISSING: "it does not foretell whether plans make money",
    RefusalCode.CALIBRATION_POOR: "what it foretells is not what happens",
    RefusalCode.CHECK_MISSING: "a check was not made",
    RefusalCode.CHECK_FAILED: "a check failed",
}


def opening(policy: float, agent: float, gap: Estimate, scenarios: int, days: int) -> str:
    """What following it would have been worth beside the agent alone; mean R per scenario.

    `gap` is the policy less the agent with its lower bound.
    """
    told = (
        f"On {scenarios:,} opportunities of {days:,} days that it had not learnt from, a hundred of"
        f" them would have earned {100 * policy:+.1f} R with it and {100 * agent:+.1f} R with the"
        " agent alone, after costs (1 R is what the agent's plan risks)"
    )
    if gap.value is None or gap.low is None:
        return f"{told}; how sure that is cannot be said: {gap.reason or 'there is no bound'}."
    if gap.low > 0:
        return f"{told}: better by {100 * gap.value:.1f} R, and surely by {100 * gap.low:.1f} R."
    if gap.value <= 0:
        return f"{told}: worse by {-100 * gap.value:.1f} R."
    return (
        f"{told}: better by {100 * gap.value:.1f} R, which may be luck: it could as well be"
        f" {100 * gap.low:+.1f} R."
    )
