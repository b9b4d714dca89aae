"""The page of licences names what is pinned, and nothing is there that may not be used so."""

from __future__ import annotations

import re

from tests.service.running import ROOT

PAGE = ROOT / "docs" / "licences.md"
SHARE_ALIKE = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)


def normal(name: str) -> str:
    """As PyPI compares names (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pinned_distribution_is_on_the_page_with_its_version() -> None:
    rows = re.findall(r"^\| ([\w.-]+) \| (\d[^ |]*) \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    pins = (ROOT / "constraints.txt").read_text()
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)", pins, re.MULTILINE)
    assert {(normal(name), version) for name, version in rows} == {
        (normal(name), version) for name, version in pinned
    }


def test_no_licence_asks_for_our_source() -> None:
    asking = [
        line
        for line in PAGE.read_text().splitlines()
        if SHARE_ALIKE.search(line) and "LGPL" not in line and "Lesser" not in line
    ]
    assert asking == []
