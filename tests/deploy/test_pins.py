"""`make pin-images` writes digests behind versions. No registry is at hand: a program called
`docker` answers in its place, as `docker buildx imagetools inspect` does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.service.running import ROOT

DOCKER = """#!PYTHON
import hashlib, sys
assert sys.argv[1:-1] == "buildx imagetools inspect --format {{.Manifest.Digest}}".split()
if sys.argv[-1] == "UNKNOWN":
    sys.exit("ERROR: docker.io/UNKNOWN: not found")
print("sha256:" + hashlib.sha256((sys.argv[-1] + "SALT").encode()).hexdigest())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The two files, where they may be changed, and the programs that are needed beside docker."""
    for name in ("docker-compose.yml", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tools").mkdir()
    for name in ("sed", "grep", "sort"):
        (tmp_path / "tools" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def pin(
    folder: Path, salt: str = "", unknown: str = "", docker: bool = True
) -> subprocess.CompletedProcess[str]:
    program = folder / "tools" / "docker"
    program.unlink(missing_ok=True)
    if docker:
        values = {"PYTHON": sys.executable, "UNKNOWN": unknown, "SALT": salt}
        program.write_text(re.sub("|".join(values), lambda name: values[name[0]], DOCKER))
        program.chmod(0o755)
    return subprocess.run(
        [str(shutil.which("make")), "-f", str(ROOT / "Makefile"), "pin-images"],
        cwd=folder,
        env=os.environ | {"PATH": str(program.parent), "MAKEFLAGS": "", "MAKELEVEL": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def images(folder: Path) -> list[str]:
    """What would be pulled."""
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"].values()
    stages = re.findall(r"^FROM (\S+:\S+)", (folder / "Dockerfile").read_text(), re.MULTILINE)
    named = [service["image"] for service in services]
    return [name for name in [*named, *stages] if not name.startswith("shadow-advisor")]


def test_every_image_that_others_make_gets_a_digest_and_nothing_else_changes(copy: Path) -> None:
    before = {name: (copy / name).read_text() for name in ("docker-compose.yml", "Dockerfile")}
    plain = images(copy)
    assert {"valkey/valkey", "postgres", "python"} <= {name.partition(":")[0] for name in plain}
    done = pin(copy)
    assert done.returncode == 0, done.stderr
    names = images(copy)
    assert all(re.fullmatch(r".+:.+@sha256:[0-9a-f]{64}", name) for name in names)
    assert [name.partition("@")[0] for name in names] == plain
    assert sorted(done.stdout.split()) == sorted(set(names))
    for name, text in before.items():
        assert re.sub("@sha256:[0-9a-f]{64}", "", (copy / name).read_text()) == text


def test_digests_are_asked_for_anew(copy: Path) -> None:
    pin(copy)
    first = images(copy)
    pin(copy, salt="a month later")
    second = images(copy)
    assert [name.count("@") for name in second] == [1] * len(first)
    assert not set(first) & set(second)


def test_an_image_that_nobody_has_or_no_docker_changes_nothing(copy: Path) -> None:
    before = (copy / "docker-compose.yml").read_text()
    refused = pin(copy, unknown=images(copy)[0])
    assert refused.returncode == 2
    assert "not found" in refused.stderr
    alone = pin(copy, docker=False)
    assert alone.returncode == 2
    assert "docker: not found" in alone.stderr
    assert (copy / "docker-compose.yml").read_text() == before
