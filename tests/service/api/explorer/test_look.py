"""Numbers on pages say what they are."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from app.api.explorer.look import lapse, markdown, price, signed


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (40000.0, "40,000"),
        (1234567.25, "1,234,567.25"),
        (0.00001234, "0.00001234"),
        (1.5e-9, "0.0000000015"),
        (-2e-12, "-0.000000000002"),
        (5e-314, "5e-314"),
        (1e300, "1e+300"),
        (float("nan"), "–"),
    ],
)
def test_a_price_is_never_shown_as_nothing_nor_as_hundreds_of_digits(
    value: float, shown: str
) -> None:
    assert price(value) == shown


def test_what_is_no_number_has_no_sign() -> None:
    assert (signed(float("inf")), signed(-1.5)) == ("–", "-1.50")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.25, "+0.2 s"),
        (119.0, "+119.0 s"),
        (-120.0, "-2.0 min"),
        (6 * 3600.0, "+6.0 h"),
        (3 * 86400.0, "+3.0 days"),
        (-284277203.8, "-9.0 years"),
    ],
)
def test_a_length_of_time_is_told_in_a_unit_that_is_read_at_a_glance(
    seconds: float | None, shown: str
) -> None:
    assert lapse(seconds) == shown


def test_a_card_is_read_as_markdown_below_the_headings_of_its_page() -> None:
    shown = markdown(
        "# v1\n\nIt *reads*.\n\n| arm | R |\n|---|---|\n| `agent` | 1 |\n\n## Files\n- a\n"
    )
    assert "<h3>v1</h3>" in shown
    assert "<h4>Files</h4>" in shown
    assert "<em>reads</em>" in shown
    assert "<td><code>agent</code></td>" in shown
    assert "<li>a</li>" in shown
    assert markdown("###### deep") == "<h6>deep</h6>\n"


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "a <img src=x onerror=alert(1)> b",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt&#58;alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "[x](vbscript:x)",
        "<javascript:alert(1)>",
        "![x](https://away.example/pixel.png)",
        '[x](/ui ""onmouseover=alert(1)")',
        '```x" onclick=alert(1)\n<b>\n```',
        "# <iframe src=/ui>",
        "| <b> |\n|---|\n| </table><form> |",
        "{{ 7 * 7 }}</div></section><h1>",
    ],
)
def test_a_hostile_card_has_no_element_script_or_picture_of_its_own(hostile: str) -> None:
    reader = Elements()
    reader.feed(markdown(hostile))
    assert reader.tags <= {
        "p",
        "a",
        "h3",
        "pre",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert reader.attributes <= {"href", "title", "class"}
    assert all(str(link).startswith(("/", "https://")) for link in reader.links)


def test_a_card_that_is_all_brackets_is_shown() -> None:
    for bracket in ("[", "> ", "*", "- ", "`", "![", "<"):
        assert markdown(500 * bracket)


class Elements(HTMLParser):
    """Elements, attributes and links that a browser finds in a text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src")]
