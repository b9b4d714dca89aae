"""Random damage to a model's directory and manifest: a refusal of one line, or a verified load."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.errors import ManifestMismatch, ModelFileError
from app.domain.model.manifest import MANIFEST_NAME
from app.policy.backends import Backends
from app.policy.in_process.label_reader import LabelReader
from app.policy.options import BackendOptions
from app.policy.versions.store import file_hash, load_manifest, read_manifest
from tests.policy.tiny_models import POSITIONS, save_adapter, write_manifest

EXAMPLES = int(os.environ.get("ADVISOR_FUZZ_EXAMPLES", "40"))
quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Edit = tuple[float, int, bytes]
edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 4), st.binary(max_size=6)),
    min_size=1,
    max_size=4,
)
"""Where (as a share of the file), how many bytes go, and what comes in their place."""


def damaged(content: bytes, changes: list[Edit]) -> bytes:
    for where, removed, added in changes:
        at = int(where * len(content))
        content = content[:at] + added + content[at + removed :]
    return content


def verified_or_refused_in_one_line(root: Path, name: str) -> bool:
    """Whether a version is served as what its directory says, or refused by a sentence."""
    try:
        policy = Backends(BackendOptions(roots=[root], prompt_tokens=POSITIONS)).load(root / name)
    except (ModelFileError, ManifestMismatch) as refused:
        return "\n" not in str(refused)
    return policy.manifest == load_manifest(root / name)


@pytest.fixture(scope="module")
def store(
    tiny_directory: Path, tiny: LabelReader, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_directory, root / "base")
    base = write_manifest(root / "base", "base-1")
    save_adapter(root / "v1", tiny.model, tiny.encoder.tail)
    write_manifest(root / "v1", "v1", base)
    return root


@quick
@given(name=st.sampled_from(["base", "v1"]), changes=edits)
def test_damaged_manifests(store: Path, name: str, changes: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "models"
        shutil.copytree(store, root)
        path = root / name / MANIFEST_NAME
        path.write_bytes(damaged(path.read_bytes(), changes))
        assert verified_or_refused_in_one_line(root, "v1")


FILES = [
    *(("base", file) for file in ("config.json", "generation_config.json", "model.safetensors")),
    *(("base", file) for file in ("tokenizer.json", "tokenizer_config.json")),
    ("base", "chat_template.jinja"),
    *(("v1", file) for file in ("adapter_config.json", "adapter_model.safetensors")),
]


@quick
@given(
    which=st.sampled_from(FILES),
    changes=edits,
    header=st.booleans(),
)
def test_damaged_files_that_a_manifest_describes(
    store: Path, which: tuple[str, str], changes: list[Edit], header: bool
) -> None:
    """The worst case: the manifest lists the damaged bytes, so that the libraries read them."""
    name, file = which
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "models"
        shutil.copytree(store, root)
        path = root / name / file
        content = path.read_bytes()
        head = 2048 if header else len(content)
        path.write_bytes(damaged(content[:head], changes) + content[head:])
        manifest = root / name / MANIFEST_NAME
        document = json.loads(manifest.read_text())
        document["files"][file] = file_hash(path)
        manifest.write_text(json.dumps(document))
        assert verified_or_refused_in_one_line(root, name)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@quick
@given(key=st.integers(0, 100), value=json_values)
def test_configurations_with_any_value_anywhere(store: Path, key: int, value: Any) -> None:
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / "models"
        shutil.copytree(store, root)
        path = root / "base" / "config.json"
        document = json.loads(path.read_text())
        document[sorted(document)[key % len(document)]] = value
        path.write_text(json.dumps(document))
        write_manifest(root / "base", "base-1")
        assert verified_or_refused_in_one_line(root, "base")


@quick
@given(value=json_values)
def test_any_document_as_a_manifest(store: Path, value: Any) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / MANIFEST_NAME
        document = json.loads((store / "v1" / MANIFEST_NAME).read_text())
        for wrong in (value, {**document, "files": value}, {**document, "provenance": value}):
            path.write_text(json.dumps(wrong))
            try:
                told = read_manifest(path).hash()
            except ModelFileError as refused:
                told = str(refused)
            assert "\n" not in told
