"""The gate's report: a verdict signed off by name, sealed by a content hash, demanded before an
alias moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from app.domain.canonical import content_hash
from training.config.judging import GateConfig, Kind
from training.judging.gate.verdict import Evidence, GateError, Verdict


def verdict_file(kind: Kind) -> str:
    """Where an evaluation keeps the gate's signed verdict."""
    return "verdict.json" if kind is Kind.TRADER else f"verdict-{kind.value}.json"


def sign_off(
    verdict: Verdict, evidence: Evidence, config: GateConfig, *, by: str, at: datetime
) -> dict[str, Any]:
    """The report of a verdict: who signs, when, on which evidence and limits; sealed by a content
    hash."""
    return _sealed({
        "verdict": verdict.as_json(),
        "evidence": evidence.hash(),
        "checks": [asdict(check) for check in evidence.checks],
        "limits": config.model_dump(mode="json"),
        "signed_by": by,
        "signed_at": at.isoformat(),
    })  # fmt: skip


def overridden(report: Mapping[str, Any], *, by: str, why: str, at: datetime) -> dict[str, Any]:
    """A report with an override: somebody promotes against the verdict, by name and with a
    reason."""
    if not by.strip() or not why.strip():
        raise GateError("an override needs a name and a reason")
    require_unchanged(report)
    plain = {key: value for key, value in report.items() if key != "hash"}
    return _sealed(
        {**plain, "override": {"by": by, "why": why, "at": at.isoformat(), "of": report["hash"]}}
    )


def require_unchanged(report: Mapping[str, Any]) -> None:
    """Raise `GateError` when a report is not as it was signed."""
    plain = {key: value for key, value in report.items() if key != "hash"}
    if report.get("hash") != content_hash(plain):
        raise GateError("the gate's report was changed after it was signed: evaluate again")


def require_promotable(report: Mapping[str, Any], model_version: str) -> None:
    """Raise `GateError` unless the report is unchanged, of this version, and passes or was
    overridden."""
    require_unchanged(report)
    verdict = report["verdict"]
    if verdict["model_version"] != model_version:
        raise GateError(f"the report is about {verdict['model_version']}, not {model_version}")
    if not verdict["promote"] and "override" not in report:
        codes = ", ".join(sorted({each["code"] for each in verdict["refusals"]}))
        raise GateError(f"{model_version} did not pass the gate: {codes}")


def _sealed(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "hash": content_hash(plain)}
