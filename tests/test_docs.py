"""The documentation says what the code does: fields, rules, metrics, routes and links."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from typer.main import get_command

from app.api.explorer import acts, decision, drift, limits, pages
from app.cli.__main__ import app as advisor
from app.domain.candidate import Candidate, Onchain, PatternMemory, Social, VolumeProfile
from app.domain.fields import Record
from app.domain.model.questions import QUESTIONS
from app.domain.record.control import AgentAction
from app.domain.record.outcome import Outcome
from app.domain.rules.limits import Cost, DirectionLimits, Limits, RuleLimits
from app.domain.rules.vetoes import AFTER_CAPS, RULES, VetoCode
from app.domain.scenario import (
    Account,
    Derived,
    LeftOut,
    Market,
    Plan,
    Position,
    Scenario,
    Surroundings,
)
from app.main import create_app
from app.processes.metrics import Metrics
from app.schemas import AdviseResponse
from tests.chaos.faults import FAULTS
from training.__main__ import app as training

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CAPTURED: tuple[type[Record], ...] = (
    Candidate,
    PatternMemory,
    Social,
    Onchain,
    VolumeProfile,
    Plan,
    Account,
    Derived,
    Position,
    Market,
    Surroundings,
    Scenario,
    LeftOut,
    AgentAction,
    Outcome,
)


def field_row(name: str, field: FieldInfo) -> str:
    """The row that a captured field must have in docs/trade_record_format.md."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    needed = "optional"
    if field.is_required():
        needed = "required"
    elif extra.get("null"):
        needed = f"null: {extra['null']}"
    return f"| `{name}` | {extra['unit']} | {field.description} | {needed} |"


@pytest.mark.parametrize("record", CAPTURED, ids=lambda record: record.__name__)
def test_every_captured_field_is_described_with_unit_and_meaning_of_null(
    record: type[Record],
) -> None:
    text = (DOCS / "trade_record_format.md").read_text()
    nested = ("candidate", "plan", "account", "market") if record is Scenario else ()
    rows = [
        field_row(name, field) for name, field in record.model_fields.items() if name not in nested
    ]
    assert [row for row in rows if row not in text] == []


def test_every_veto_has_its_row_and_every_limit_is_named() -> None:
    text = (DOCS / "vetoes.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))
    assert documented == {code.value for code in VetoCode}
    assert [rule.row for rule in (*RULES, *AFTER_CAPS) if rule.row not in text.splitlines()] == []
    whole = Limits(version="all", tolerance=0.0, direction=DirectionLimits(), cost=Cost())
    fields = {
        f"{section}.{name}"
        for section, table in whole
        if isinstance(table, RuleLimits)
        for name in type(table).model_fields
        if name not in RuleLimits.model_fields
    }
    assert {field for field in fields if f"`{field}`" not in text} == set()


def test_every_metric_is_in_the_runbook_or_the_metrics_page() -> None:
    text = (DOCS / "metrics.md").read_text()
    names = {metric.name for metric in Metrics(["v"]).registry.collect()}
    documented = {
        name.removesuffix("_total")
        for name in re.findall(r"^\| `(advisor_\w+)`", text, re.MULTILINE)
    }
    assert documented == names


def test_every_route_is_in_the_architecture_page_and_has_a_summary() -> None:
    text = (DOCS / "architecture.md").read_text()
    for path, operations in create_app().openapi()["paths"].items():
        for method, operation in operations.items():
            assert f"`{method.upper()} {path}`" in text
            assert operation["summary"]


def test_every_file_that_the_architecture_page_walks_through_is_there() -> None:
    text = (DOCS / "architecture.md").read_text()
    named = re.findall(r"`((?:app|training)/[\w/]+\.py)`", text)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("package", ["app", "training"])
def test_the_architecture_page_shows_every_room_of_both_houses(package: str) -> None:
    text = (DOCS / "architecture.md").read_text()
    drawing = text[text.index(f"```\n{package}/") :].split("```")[1]
    shown = set(re.findall(r"[a-z_]+", drawing))
    rooms = {path.stem for path in (ROOT / package).iterdir() if not path.name.startswith("__")}
    assert rooms - shown == set()
    assert len(rooms) <= 16, "a level of the tree holds some fourteen entries"


def test_the_table_of_the_domain_names_every_room_and_every_file_once() -> None:
    text = (DOCS / "architecture.md").read_text()
    table = text[text.index("| step | room of `app/domain` |") :].split("\n\n")[0]
    rows = [row.split("|")[2:4] for row in table.splitlines()[2:]]
    named: dict[str, set[str]] = {}
    for room, files in rows:
        folder = room.strip().strip("`/") if "`" in room else "."
        named.setdefault(folder, set()).update(re.findall(r"`([a-z_]+)`", files))
    domain = ROOT / "app/domain"
    rooms = {path.name for path in domain.iterdir() if (path / "__init__.py").is_file()} | {"."}
    assert named == {
        room: {path.stem for path in (domain / room).glob("*.py")} - {"__init__"} for room in rooms
    }


def test_the_readme_shows_rooms_that_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("```\napp/") :].split("```")[1]
    shown = set(re.findall(r"([a-z_]+)/", tree))
    there = {path.name for folder in ("", "app", "training") for path in (ROOT / folder).iterdir()}
    assert {"client", "domain", "learning", "tests"} < shown <= there


def test_connecting_explains_every_field_of_the_answer() -> None:
    text = (DOCS / "connect.md").read_text().split("## The answer\n")[1]
    assert set(AdviseResponse.model_fields) <= set(re.findall(r"`(\w+)`", text))


def test_the_vocabulary_has_each_word_once() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \|$", (DOCS / "vocabulary.md").read_text(), re.MULTILINE
    )
    words = [word.strip() for row in rows if row != "word" for word in re.split("[,/]", row)]
    assert len(words) > 80
    assert sorted(words) == sorted(set(words))


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_decision_records_have_their_four_parts() -> None:
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert records
    for record in records:
        text = record.read_text()
        missing = [
            part
            for part in ("Context", "Decision", "Consequences", "Alternatives")
            if f"## {part}" not in text
        ]
        assert missing == [], record.name


def test_every_question_has_its_row() -> None:
    rows = (DOCS / "questions.md").read_text().splitlines()
    for question in QUESTIONS:
        begins = f"| `{question.name.value}` | {question.meaning} |"
        assert [row for row in rows if row.startswith(begins)], begins


def features() -> list[str]:
    """Last cells of the table of features: what shows them."""
    text = (DOCS / "features.md").read_text().partition("## Tried")[0]
    rows = [row for row in text.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 20
    return [row.split("|")[3] for row in rows]


def test_every_command_and_page_that_shows_a_feature_is_there() -> None:
    programs = {"advisor": get_command(advisor), "advisor-train": get_command(training)}
    routers = (acts.router, decision.router, drift.router, limits.router, pages.router)
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}
    named = re.findall(r"`([^`]+)`", " ".join(features()))
    assert len(named) > 25
    for name in named:
        program, *words = name.split()
        if name.startswith("/"):
            assert name in paths, name
        elif program in programs:
            assert_is_command(programs[program], words)
        else:
            assert name.startswith("make "), name


def assert_is_command(group: Any, words: list[str]) -> None:
    """The words lead to a command, or end with an option."""
    for word in words:
        if not word.startswith("--"):
            assert word in group.commands, word
            group = group.commands[word]


def test_every_row_of_the_reliability_page_can_be_done_again() -> None:
    """Each fault of `make chaos` has its row, and what a row names to run is there."""
    rows = [row for row in (DOCS / "reliability.md").read_text().splitlines() if row[:1] == "|"]
    named = [command for row in rows for command in re.findall(r"`([^`]+)`", row)]
    told = [name for command in named for name in re.findall(r'FAULT="([^"]+)"', command)]
    assert sorted(told) == sorted(fault.name for fault in FAULTS)
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    ran = 0
    for command in named:
        for target in re.findall(r"^make ([a-z-]+)", command):
            assert target in targets, command
        for module in re.findall(r"python -m ([a-z_.]+)", command):
            assert find_spec(module), command
        for path in re.findall(r"pytest (\S+)", command):
            assert (ROOT / path).is_file(), command
        ran += command.startswith(("make ", "python -m ", "pytest "))
    assert ran > 30
