"""Writes docs/licences.md: every distribution that constraints.txt pins, with its licence as its
own metadata say it.

usage: python deploy/licences.py (in the project's environment), or `make licences`
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences of what is installed

Made by `make licences` from the metadata of every distribution that constraints.txt pins, tests and
benches included; `make sbom` tells more, as CycloneDX. shadow-advisor itself, the bundled model,
Apache ECharts 6.1.0 and Swagger UI 5.35.0, which lie in app/api/explorer/static, are Apache-2.0.

| distribution | version | licence |
|---|---|---|
"""
ABSENT = "not installed where this page was made"


def pinned() -> dict[str, str]:
    """Versions by name, as constraints.txt says."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in pins if pin}


def licence(found: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the free text."""
    metadata = found.metadata.json
    expression = metadata.get("license_expression")
    if expression:
        return str(expression)
    licences = [c for c in metadata.get("classifier", ()) if c.startswith("License ::")]
    names = [c.rpartition(" :: ")[2] for c in licences if c != "License :: OSI Approved"]
    text = str(metadata.get("license") or "").strip()
    return "; ".join(names) or (text.splitlines()[0][:80] if text else "not said")


def rows() -> list[str]:
    """The table, by name."""
    table = []
    for name, version in sorted(pinned().items(), key=lambda pin: pin[0].lower()):
        try:
            said = licence(distribution(name))
        except PackageNotFoundError:
            said = ABSENT
        table.append(f"| {name} | {version} | {said.replace('|', '/')} |")
    return table


if __name__ == "__main__":
    PAGE.write_text(HEAD + "\n".join(rows()) + "\n")
