"""The page of licences names what is pinned, and nothing is there that may not be used so."""

from __future__ import annotations

import re

from deploy.licences import PAGE, pinned

SHARE_ALIKE = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)


def test_every_pinned_distribution_is_on_the_page_with_its_version() -> None:
    rows = re.findall(r"^\| ([\w.-]+) \| ([^ |]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name: version for name, version, _ in rows if name != "distribution"} == pinned()


def test_no_licence_asks_for_our_source() -> None:
    asking = [
        line
        for line in PAGE.read_text().splitlines()
        if SHARE_ALIKE.search(line) and "LGPL" not in line and "Lesser" not in line
    ]
    assert asking == []
