"""A report is one file that loads nothing, escapes everything, and has no number without its
context."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from training.judging.report.document import Cell, Report, ReportError, Table

MADE_AT = datetime(2026, 11, 24, 9, tzinfo=UTC)
HOSTILE = '<script>alert("news")</script>'


def report() -> Report:
    made = Report(
        "Does it deserve promotion?", f"Refused. {HOSTILE}", MADE_AT, {"version": HOSTILE}
    )
    section = made.section("Arms")
    section.say(HOSTILE)
    rows = [
        (Cell(HOSTILE), Cell(-0.12, -0.2, -0.01, n=1000), Cell(500)),
        (Cell("buy and hold"), Cell(None, reason="no trades"), Cell(1)),
    ]
    section.table(
        "Arms on the same scenarios", ("arm", "mean R", "trades"), rows, "R of the agent's plan"
    )
    figure = Figure((4, 2))
    figure.add_subplot().plot([1, 2, 3], [1.0, 0.5, 2.0])
    section.plot("Equity", figure)
    return made


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    return parser


def test_hostile_text_stays_text() -> None:
    page = report().html()
    assert HOSTILE not in page
    # Headline, fact, paragraph, cell and the key that the cell is sorted by.
    assert page.count("&lt;script&gt;") == 5
    assert [tag for tag, _ in tags(page).found].count("script") == 1


def test_nothing_is_loaded_from_elsewhere() -> None:
    for tag, attributes in tags(report().html()).found:
        assert tag not in ("link", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


def test_a_cell_reads_with_its_interval_or_its_reason() -> None:
    assert Cell(-0.12, -0.2, -0.01).text == "-0.120 [-0.200, -0.010]"
    assert Cell(12345).text == "12,345"
    assert Cell(None, reason="no trades").text == "none: no trades"


def test_rows_are_sorted_by_number_and_nothing_comes_last() -> None:
    orders = [
        attributes["data-order"] for tag, attributes in tags(report().html()).found if tag == "td"
    ]
    assert orders[1] == "-0.12"
    assert orders[4] == "-inf"


def test_the_twin_holds_the_same_numbers(tmp_path: Path) -> None:
    html, twin = report().write(tmp_path)
    assert html.read_text().startswith("<!DOCTYPE html>")
    document = json.loads(twin.read_text())
    [section] = document["sections"]
    assert section["tables"][0]["rows"][0]["mean R"] == {
        "value": -0.12,
        "low": -0.2,
        "high": -0.01,
        "n": 1000,
    }
    assert section["tables"][0]["rows"][1]["mean R"] == {"value": None, "reason": "no trades"}
    assert section["plots"] == ["Equity"]


def test_the_same_report_gives_the_same_bytes() -> None:
    assert report().html() == report().html()


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        (Cell(float("nan")), "not a finite number"),
        (Cell(1.0, float("-inf"), 2.0), "finite"),
        (Cell(None), "reason"),
    ],
)
def test_a_number_that_is_none_is_refused(cell: Cell, fault: str) -> None:
    section = report().section("bad")
    with pytest.raises(ReportError, match=fault):
        section.table("bad", ("value",), [(cell,)])


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ReportError, match="2 cells, there are 1 columns"):
        report().section("bad").table("bad", ("value",), [(Cell(1), Cell(2))])


def test_a_column_of_numbers_stays_one_where_there_is_none() -> None:
    """Its gaps stand under its numbers; words are read from the left."""
    (table,) = [part for part in report().sections[0].parts if isinstance(part, Table)]
    assert table.kinds == ("words long", "numbers", "numbers")
    cells = [attributes for tag, attributes in tags(report().html()).found if tag == "td"]
    assert [str(cell["class"]).split()[0] for cell in cells] == ["words", "numbers", "numbers"] * 2


def test_a_column_of_sentences_goes_over_several_lines_and_a_short_one_does_not() -> None:
    evidence = "600 headlines: hostile ones turn 0.0% of proposals"
    table = Table("checks", ("check", "evidence"), ((Cell("parity"), Cell(evidence)),))
    assert table.kinds == ("words", "words long")


def test_a_word_is_explained_where_it_first_stands_and_at_the_end() -> None:
    made = report()
    made.glossary = {"R": "net profit over risk", "mean R": 'the "mean"', "never": "x"}
    made.sections[0].say("R and mean R, then R again; RSI is another word")
    page = made.html()
    assert (
        '<p><abbr title="net profit over risk">R</abbr> and <abbr title="the &#34;mean&#34;">'
        in page
    )
    assert "</abbr>, then R again; RSI is another word</p>" in page
    assert "<dt>never</dt><dd>x</dd>" in page
    assert HOSTILE not in page


def test_a_cell_leads_to_the_section_behind_it() -> None:
    made = report()
    made.section("Portfolio").table("Books", ("arm",), [(Cell("agent"),)])
    made.sections[0].table("Reasons", ("reason",), [(Cell("<b> too deep", section="Portfolio"),)])
    html = made.html()
    assert '<a href="#s2">&lt;b&gt; too deep</a>' in html
    assert '<h2 id="s2">Portfolio</h2>' in html
    made.sections[0].table("Reasons", ("reason",), [(Cell("x", section="Nowhere"),)])
    with pytest.raises(ReportError, match="'Nowhere', which is no section"):
        made.html()


def test_what_stands_in_backticks_is_code_and_no_word_is_explained_within() -> None:
    made = report()
    made.glossary = {"gate": "what judges"}
    made.sections[0].say("`make bench-gate` measures the gate; `<b>` and a ` alone stay")
    page = made.html()
    assert "<code>make bench-gate</code> measures the <abbr" in page
    assert "<code>&lt;b&gt;</code> and a ` alone stay" in page
