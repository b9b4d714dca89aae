"""The model card of a published version: plainly what it is, what it is not, and how well it did.

Written from the manifest alone, so that nothing in it can differ from what is verified and served.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from app.domain.model.actions import ACTIONS
from app.domain.model.manifest import ModelManifest
from app.policy.rivals import RIVAL_NAME
from app.policy.versions.store import NUMBERS_NAME

LIMITS = (
    (
        "It advises in shadow mode behind rules. It is no investment advice, and nothing here says"
        " that it makes money."
    ),
    (
        "It knows spot long candidates on hourly bars, as its prompt describes them. Other markets,"
        " bar lengths or prompt versions are outside of what it saw; the service refuses to load it"
        " with another prompt version."
    ),
    (
        "Rewards come from simulated orders: entry at the next bar's open, stop before target"
        " within a bar, fees and slippage on both sides, no effect of the order on the price."
    ),
    (
        "Results below are of scenarios later than all it was trained on, but they were looked at"
        " to judge this run. The held-out period (2023-2024) was not used; the gate judges there"
        " before anybody promotes a version."
    ),
    (
        "Its probabilities are calibrated on the validation scenarios; drift can make them wrong"
        " without notice."
    ),
)

ORDER = (
    "It is not indifferent to the order of its options: of the version that came with the release"
    " of 2026-11-27, 56 % of decisions turn when the options come in another order"
    " (docs/results.md)."
)


def model_card(manifest: ModelManifest) -> str:
    """Markdown. Facts that the provenance lacks are left out."""
    return "\n".join(_lines(manifest)) + "\n"


def _what_it_does(manifest: ModelManifest) -> str:
    if RIVAL_NAME in manifest.files:
        return (
            f"A simple rival for shadow-advisor ({manifest.base_model}): it reads a candidate's"
            " numbers and gives a chance that the agent's plan makes money; above its cut it"
            " approves all of the agent's risk, at the stop distance nearest to the agent's own."
        )
    kind = "LoRA adapter" if manifest.base is not None else "whole model"
    return (
        f"A {kind} for shadow-advisor: it reads one trade candidate and gives every one of"
        f" {len(ACTIONS)} actions (reject, or approve with a share of the risk and a stop"
        " distance) a probability, by one letter each."
    )


def _lines(manifest: ModelManifest) -> Iterator[str]:
    facts = manifest.provenance
    yield f"# {manifest.model_version}"
    yield ""
    yield _what_it_does(manifest)
    yield ""
    yield from _list("What it is", _identity(manifest, facts))
    yield from _list("What it is not", LIMITS if RIVAL_NAME in manifest.files else (*LIMITS, ORDER))
    yield from _results(facts.get("results"))
    yield from _questions(facts.get("questions"))
    yield from _language(facts.get("language"))
    yield from _teacher(facts.get("teacher"))
    yield from _list("What it was made from", _origins(facts))
    yield "## Files"
    yield ""
    yield from (f"- `{name}` {value}" for name, value in sorted(manifest.files.items()))


def _identity(manifest: ModelManifest, facts: Mapping[str, Any]) -> Iterator[str]:
    base = manifest.base
    name = (
        f"{manifest.base_model}, as version `{base.model_version}`"
        if base is not None
        else manifest.base_model
    )
    yield f"base model: {name}"
    yield f"licence: {manifest.licence}"
    yield f"created: {manifest.created_at:%Y-%m-%d}"
    yield f"prompt version {manifest.prompt_version}, feature schema {manifest.feature_schema}"
    if "algorithm" in facts:
        yield f"algorithm: {facts['algorithm']} (docs/papers.md)"
    if NUMBERS_NAME in manifest.files:
        yield "it reads the scenario's features past the text (docs/decisions/0045-numbers.md)"
    if left_out := facts.get("left_out"):
        yield (
            f"it leaves out the prompt's lines of {', '.join(left_out)}, which its features say"
            " (docs/decisions/0058-lines-left-out.md)"
        )
    if "rank" in facts.get("metrics", {}):
        rank = facts["metrics"]["rank"]
        yield f"it ranks the validation scenarios like its teacher at {rank:.2f} (Spearman)"
    if facts.get("ablations"):
        yield f"an ablation, not to be served: trained on {' and '.join(facts['ablations'])}"
    calibration = manifest.calibration
    yield (
        f"temperature {calibration.temperature:g}; it abstains below {calibration.min_label_mass:g}"
        " of mass on labels"
    )


def _origins(facts: Mapping[str, Any]) -> Iterator[str]:
    if "market" in facts:
        yield f"market: {facts['market']}"
    if "period" in facts:
        begin, end = (_day(second) for second in facts["period"])
        yield f"decisions from {begin} to {end}"
    if "scenarios" in facts:
        yield "scenarios: " + ", ".join(
            f"{count} {name}" for name, count in facts["scenarios"].items()
        )
    yield from (f"artefact {stage}: {value}" for stage, value in facts.get("data", {}).items())
    yield from (f"{name}: {facts[name]}" for name in ("code", "config_hash") if name in facts)


def _results(results: Mapping[str, Any] | None) -> Iterator[str]:
    """Mean net R per candidate, rejected ones counting 0."""
    if not results:
        return
    yield "## Results on the validation scenarios"
    yield ""
    yield (
        "Mean net profit per candidate in R of the agent's plan, after costs and before rules; a"
        " rejected candidate earns 0. 95 % intervals by a bootstrap over days."
        f" {results['scenarios']} scenarios on {results['days']} days."
    )
    yield ""
    yield from _table("arm", ("mean R", "95 % interval", "approves"), _arms(results))
    yield ""
    yield from _table("the policy's lead over", ("R", "95 % interval"), _leads(results))
    yield ""


def _arms(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, rate in results["approval_rate"].items():
        yield (name.replace("_", " "), *_with_interval(results[name]), f"{rate:.0%}")


def _leads(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, lead in results["lead"].items():
        yield (name.replace("_", " "), *_with_interval(lead))


def _questions(questions: Mapping[str, Any] | None) -> Iterator[str]:
    if not questions:
        return
    yield "## What it foretells of the plan"
    yield ""
    yield (
        "Beside the action (docs/questions.md), against what the teacher says of the validation"
        " scenarios, on which it was calibrated: log score in nats, that of one answer for all, and"
        " rank correlation."
    )
    yield ""
    columns = ("log_score", "log_score_of_one_answer", "rank_correlation")
    rows = [
        (name, *(f"{measured[column]:.3f}" if column in measured else "-" for column in columns))
        for name, measured in questions.items()
    ]
    yield from _table("question", ("log score", "of one answer", "rank correlation"), rows)
    yield ""


def _language(language: Mapping[str, Any] | None) -> Iterator[str]:
    if not language:
        return
    yield "## Its language"
    yield ""
    yield (
        f"On {language['after']['dialogues']} dialogues of the validation scenarios: the agent's"
        " words after its letter, templated from its rules. Consistency: how often words that fit"
        " the action are likelier than contrary ones."
    )
    yield ""
    rows = [
        (
            name,
            f"{part['perplexity']:.1f}",
            f"{part['kl_to_base']:.3f}",
            "unknown" if part["consistency"] is None else f"{part['consistency']:.0%}",
        )
        for name, part in (("before training", language["before"]), ("after", language["after"]))
    ]
    yield from _table("model", ("perplexity", "KL to the base, nats a token", "consistency"), rows)
    yield ""


def _teacher(questions: Mapping[str, Any] | None) -> Iterator[str]:
    if not questions:
        return
    yield "## Its teacher"
    yield ""
    yield (
        "Who answers each question about a candidate, and the mean squared errors of all who tried,"
        " out of fold."
    )
    yield ""
    rows = [
        (
            name,
            str(answer["teaches"]),
            ", ".join(f"{who} {error:.4f}" for who, error in answer["errors"].items()),
        )
        for name, answer in questions.items()
    ]
    yield from _table("question", ("teaches", "errors"), rows)
    yield ""


def _with_interval(estimate: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    has_interval = low is not None and high is not None
    return (
        "unknown" if value is None else f"{value:z.3f}",
        f"{low:z.3f} to {high:z.3f}" if has_interval else "unknown",
    )


def _table(first: str, columns: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {first} | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _list(title: str, lines: Any) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield from (f"- {line}" for line in lines)
    yield ""


def _day(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d}"
