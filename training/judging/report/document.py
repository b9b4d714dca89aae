"""A report: one self-contained HTML file and its JSON twin. Tables sort, plots are vector graphics,
it prints well.

The report holds what it is given and computes nothing. A cell is a number with its interval and
sample size, a word, or the reason why there is no number.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from app.domain.errors import AdvisorError

TEMPLATE = Path(__file__).with_name("page.html.j2")


class ReportError(AdvisorError):
    """A report cannot be written as asked."""


class Cell(NamedTuple):
    """A value in a table: a number with its interval and sample size, or a word, or the reason why
    there is none."""

    value: float | int | str | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    digits: int = 3
    reason: str = ""
    """Why `value` is None."""
    section: str = ""
    """Title of the section that shows what is behind it."""

    @property
    def text(self) -> str:
        """As people read it: `-0.120 [-0.180, -0.060]`; a bound on one side only ends in
        infinity."""
        if self.value is None:
            return f"none: {self.reason}"
        if isinstance(self.value, str):
            return self.value
        shown = number(self.value, self.digits)
        if self.low is None:
            return shown
        high = "∞" if self.high is None else number(self.high, self.digits)
        return f"{shown} [{number(self.low, self.digits)}, {high}]"

    @property
    def fault(self) -> str:
        """Why it cannot be shown; nothing when it can."""
        numbers = [x for x in (self.value, self.low, self.high) if isinstance(x, float)]
        if not all(map(math.isfinite, numbers)):
            return f"{self.value} is not a finite number"
        if self.value is None and not self.reason:
            return "an empty cell without a reason"
        return ""

    @property
    def order(self) -> float | str:
        """What the column is sorted by; nothing comes last."""
        return -math.inf if self.value is None else self.value


SHORT = 24
"""Characters of words that stand in one line, also on a phone."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. `note` says units and how to read it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """How each column is set: "words" hold no number and are read from the left, those that are
        "long" go over several lines."""
        return tuple(map(self._kind, range(len(self.columns))))

    def _kind(self, at: int) -> str:
        cells = [row[at] for row in self.rows]
        if any(isinstance(cell.value, int | float) for cell in cells):
            return "numbers"
        return (
            "words long" if max((len(cell.text) for cell in cells), default=0) > SHORT else "words"
        )


@dataclass(frozen=True)
class Plot:
    """A figure as SVG, with words for those who cannot see it."""

    caption: str
    svg: str


@dataclass
class Section:
    """A titled part: paragraphs, then tables and plots in the order in which they were added."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    parts: list[Table | Plot] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.paragraphs.append(text)

    def table(
        self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = ""
    ) -> None:
        """Add a table. Raises `ReportError` when a row does not fit, or a number is not finite."""
        for row in rows:
            if len(row) != len(columns):
                raise ReportError(
                    f"table {caption!r}: a row has {len(row)} cells, there are {len(columns)}"
                    " columns"
                )
            for name, cell in zip(columns, row, strict=True):
                if fault := cell.fault:
                    raise ReportError(f"table {caption!r}, column {name!r}: {fault}")
        self.parts.append(Table(caption, tuple(columns), tuple(tuple(row) for row in rows), note))

    def plot(self, caption: str, figure: Figure) -> None:
        """Add a figure. The same figure gives the same bytes."""
        stream = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": caption, "svg.fonttype": "none"}):
            figure.savefig(
                stream, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight"
            )
        svg = stream.getvalue()
        self.parts.append(Plot(caption, svg[svg.index("<svg") :]))


@dataclass
class Report:
    """Title, a headline that answers the question, and sections."""

    title: str
    headline: str
    made_at: datetime
    facts: dict[str, str]
    """What it is about: model version, period, data."""
    sections: list[Section] = field(default_factory=list)
    glossary: Mapping[str, str] = field(default_factory=dict)
    """What words mean, shown on hover and at the end."""

    def section(self, title: str) -> Section:
        """Begin a part."""
        self.sections.append(Section(title))
        return self.sections[-1]

    def html(self) -> str:
        """The page. Every text is escaped; nothing is loaded from elsewhere."""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["explained"] = self._explained
        environment.filters["coded"] = coded
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(
            report=self,
            places=self._places(),
            is_plot=lambda part: isinstance(part, Plot),
            safe=Markup,
        )

    def _places(self) -> dict[str, str]:
        """Where on the page each section begins. Raises `ReportError` for a cell that leads to
        none."""
        places = {section.title: f"s{i}" for i, section in enumerate(self.sections, 1)}
        parts = [part for section in self.sections for part in section.parts]
        cells = [
            cell for part in parts if isinstance(part, Table) for row in part.rows for cell in row
        ]
        for cell in cells:
            if cell.section and cell.section not in places:
                raise ReportError(f"a cell leads to {cell.section!r}, which is no section")
        return places

    def _explained(self, text: str) -> Markup:
        """A text, escaped, whose words of the glossary say on hover what they mean, the first time
        each; what stands in backticks is code."""
        seen: set[str] = set()
        return coded(text, lambda part: self._with_words(part, seen))

    def _with_words(self, text: str, seen: set[str]) -> Markup:
        if not self.glossary:
            return escape(text)
        words = sorted(self.glossary, key=len, reverse=True)
        found = re.split(rf"\b({'|'.join(map(re.escape, words))})\b", text)
        said = [escape(part) for part in found]
        for at in range(1, len(found), 2):
            if found[at] in seen:
                continue  # It was explained before.
            seen.add(found[at])
            meaning = escape(self.glossary[found[at]])
            said[at] = Markup('<abbr title="{}">{}</abbr>').format(meaning, found[at])
        return Markup("").join(said)

    def as_json(self) -> dict[str, Any]:
        """The same numbers for programs; plots by caption only."""
        return {
            "title": self.title,
            "headline": self.headline,
            "made_at": self.made_at.isoformat(),
            "facts": self.facts,
            "sections": [
                {
                    "title": section.title,
                    "text": section.paragraphs,
                    "tables": [
                        _table_json(part) for part in section.parts if isinstance(part, Table)
                    ],
                    "plots": [part.caption for part in section.parts if isinstance(part, Plot)],
                }
                for section in self.sections
            ],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """`report.html` and `report.json` in a folder."""
        html, twin = folder / "report.html", folder / "report.json"
        html.write_text(self.html(), encoding="utf-8")
        twin.write_text(
            json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        return html, twin


def coded(text: str, told: Callable[[str], Markup] = escape) -> Markup:
    """A text, escaped, in which what stands in backticks is code; `told` of everything else."""
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if at % 2 else told(part)
        for at, part in enumerate(parts)
    )


def number(value: float | int, digits: int) -> str:
    """A number as people read it, thousands apart; integers as they are, and no negative nought."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def _table_json(table: Table) -> dict[str, Any]:
    def plain(cell: Cell) -> dict[str, Any]:
        beside = {"low": cell.low, "high": cell.high, "n": cell.n, "reason": cell.reason or None}
        return {"value": cell.value} | {k: v for k, v in beside.items() if v is not None}

    rows = [
        {name: plain(cell) for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]
    return {"caption": table.caption, "note": table.note, "rows": rows}
