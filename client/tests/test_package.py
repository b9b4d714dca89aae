"""What an agent installs: small, typed, httpx alone, and the same files in the service's wheel."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

CLIENT = Path(__file__).parents[1]
PACKAGE = CLIENT / "src" / "shadow_advisor_client"


def built(project: Path, folder: Path) -> Path:
    """The wheel of a copy of a project, made without network."""
    copy = folder / "project"
    ignored = shutil.ignore_patterns(".*", "var", "build", "*.egg-info", "__pycache__", "models")
    shutil.copytree(project, copy, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def shipped() -> set[str]:
    return {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }


def test_the_wheel_is_small_typed_and_needs_httpx_alone(tmp_path: Path) -> None:
    wheel = built(CLIENT, tmp_path)
    assert wheel.stat().st_size < 100_000
    with ZipFile(wheel) as files:
        names = set(files.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        lines = files.read(metadata).decode().splitlines()
    assert {name for name in names if ".dist-info/" not in name} == shipped()
    assert [line for line in lines if line.startswith("Requires-")] == [
        "Requires-Python: >=3.9",
        "Requires-Dist: httpx>=0.28",
        'Requires-Dist: cryptography>=46; extra == "proof"',
        'Requires-Dist: mcp>=2.3; python_version >= "3.10" and extra == "mcp"',
    ]


def test_the_wheel_of_the_service_carries_the_client_that_it_uses(tmp_path: Path) -> None:
    with ZipFile(built(CLIENT.parent, tmp_path)) as files:
        names = set(files.namelist())
    assert shipped() < names
    assert not any(name.startswith(("client/", "tests/")) for name in names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_the_oldest_python_can_read_it(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    annotated = path.name != "__init__.py"
    assert not annotated or "from __future__ import annotations" in text
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "isinstance":
            assert not isinstance(call.args[1], ast.BinOp), f"line {call.lineno}: X | Y is 3.10"
