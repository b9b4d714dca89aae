"""The gate's answer in words that a trader uses."""

from __future__ import annotations

from training.judging.gate.verdict import RefusalCode
from training.statistics.bootstrap import Estimate

GLOSSARY = {
    "R": "net profit over the risk of the agent's plan: -1 R loses what the plan risks",
    "scenario": "one opportunity that the agent saw, with everything that was known at that moment",
    "arm": "somebody who answers every scenario: the agent, a rule, a model",
    "policy": "the version that is judged, with the rules on",
    "random veto": "the policy's own answers dealt at random: as many trades, no judgement",
    "veto": "a rule's refusal of an order",
    "bound": "what the truth is above with the stated confidence",
    "intervals": "where the truth lies in 95 of 100 cases",
    "Sharpe": "mean return over its deviation, a year: what is earned for the risk that is taken",
    "Sortino": "as Sharpe, but only losses count as risk",
    "drawdown": "how far the account is below its highest level so far",
    "turnover": "how often a year the account is traded once over",
    "exposure": "share of the time with a trade open",
    "profit factor": "what winners earned over what losers lost",
    "expectancy": "mean R of a trade",
    "calibration": "whether what is foretold with 60 % happens in 60 of 100 cases",
    "Holm": "a correction for looking at many differences at once",
    "MAE": "maximum adverse excursion: the worst that a trade stood at while it was open",
    "MFE": "maximum favourable excursion: the best that a trade stood at while it was open",
    "PBO": (
        "probability of backtest overfitting: how often the best in one half of the days is below"
        " the middle in the other"
    ),
}
"""Words of the report, explained where they first stand in a text, and at the end."""
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
ARMS, PORTFOLIO = "Every arm on the same scenarios", "As a portfolio"
DATA, HONEST = "How much data would it take?", "Is what it foretells honest?"
LEARNING = "How it learned"
APART, VERDICT = "When policy and agent disagreed", "The gate's verdict"
"""Titles of sections that reasons lead to."""
EVIDENCE = {
    RefusalCode.TOO_FEW_SCENARIOS: DATA,
    RefusalCode.TOO_FEW_TRADES: DATA,
    RefusalCode.TOO_FEW_VETOES: DATA,
    RefusalCode.TOO_FEW_DAYS: DATA,
    RefusalCode.APPROVES_MORE_THAN_AGENT: APART,
    RefusalCode.NOT_BETTER_THAN_AGENT: ARMS,
    RefusalCode.NOT_BETTER_THAN_HEURISTIC: ARMS,
    RefusalCode.NOT_BETTER_THAN_RANDOM_VETO: ARMS,
    RefusalCode.NOT_BETTER_THAN_NOT_TRADING: ARMS,
    RefusalCode.SHARPE_UNDEFINED: PORTFOLIO,
    RefusalCode.SHARPE_NOT_HIGHER: PORTFOLIO,
    RefusalCode.SHARPE_NOT_CONFIDENT: PORTFOLIO,
    RefusalCode.DRAWDOWN_WORSE: PORTFOLIO,
    RefusalCode.CALIBRATION_MISSING: HONEST,
    RefusalCode.CALIBRATION_POOR: HONEST,
    RefusalCode.CHECK_MISSING: VERDICT,
    RefusalCode.CHECK_FAILED: VERDICT,
}
"""Where the report shows what is behind a reason; evidence that contradicts itself is shown
nowhere."""


NOTICEABLE = 0.0005
"""R a scenario: a twentieth of an R in a hundred, which would be told as 0.0."""


def opening(
    policy: float, agent: float, declined: float, gap: Estimate, scenarios: int, days: int
) -> str:
    """What following it would have been worth beside the agent alone and beside not trading, and
    how much of that is trades of the agent's that it declined; mean R per scenario.

    `gap` has the gate's lower bound on the policy less the agent; live, that is of clipped days, so
    what is told beside the two means is their own difference.
    """
    better = policy - agent
    told = (
        f"On {scenarios:,} opportunities of {days:,} days that it had not learnt from, a hundred of"
        f" them would have earned {100 * policy:+z.1f} R with it, {100 * agent:+z.1f} R with the"
        " agent alone and 0 R without trading, after costs (1 R is what the agent's plan risks)"
    )
    parts = (
        f"{100 * declined:+z.1f} R by declining the agent's trades,"
        f" {100 * (better - declined):+z.1f} R by its other answers"
    )
    if gap.value is None or gap.low is None:
        return f"{told}; how sure that is cannot be said: {gap.reason or 'there is no bound'}."
    if abs(better) < NOTICEABLE:
        return f"{told}: no difference from the agent that one would notice."
    if gap.low > 0 and better > 0:
        sure = f"surely by {100 * gap.low:.1f} R"
        return f"{told}: better than the agent by {100 * better:.1f} R, {sure} ({parts})."
    if better <= 0:
        return f"{told}: worse than the agent by {-100 * better:.1f} R ({parts})."
    return (
        f"{told}: better than the agent by {100 * better:.1f} R ({parts}), which may be luck: it"
        f" could as well be {100 * gap.low:+z.1f} R."
    )
