"""Versions that are adapters: found by name, loaded over the base that they were trained on,
refused without it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from app.domain.errors import ManifestMismatch, ModelFileError, UnknownVersion
from app.domain.model.manifest import BaseModelRef, ModelManifest
from app.domain.model.prompt import PROMPT_VERSION, SYSTEM, Prompt
from app.domain.record.decision import Reading
from app.policy.backends import Backends
from app.policy.in_process.batching import Batcher
from app.policy.in_process.label_reader import LabelReader
from app.policy.in_process.policy import TransformersPolicy
from app.policy.options import BackendOptions
from app.policy.versions.store import find_base, find_version, read_manifest
from app.policy.vllm import VllmPolicy
from tests.policy.model_server import Server
from tests.policy.peft_reading import TEXTS, assert_agree, change_config, ids_of, peft_says
from tests.policy.tiny_models import POSITIONS, TINY, save_adapter, save_tiny_model, write_manifest

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # PEFT's own


@pytest.fixture
def store(tiny: LabelReader, tmp_path: Path) -> Path:
    """A directory of versions: a base model, two activated adapters, an ordinary one."""
    root = tmp_path / "models"
    base = write_manifest(save_tiny_model(root / "a-base"), "base-1")
    for seed, tail in ((1, tiny.encoder.tail), (2, tiny.encoder.tail), (3, None)):
        write_manifest(save_adapter(root / f"v{seed}", tiny.model, tail, seed), f"v{seed}", base)
    return root


PROMPTS = [Prompt(PROMPT_VERSION, SYSTEM, text) for text in TEXTS]


def backends(root: Path, **more: Any) -> Backends:
    return Backends(BackendOptions(roots=[root], prompt_tokens=POSITIONS, **more))


def kept(over: Backends, manifest_hash: str) -> Batcher | None:
    """A base model that is still in memory."""
    assert over._in_process is not None
    return over._in_process._bases.acquire(manifest_hash)


def served(root: Path, name: str, over: Backends | None = None) -> TransformersPolicy:
    policy = (over or backends(root)).load(find_version(name, [root]))
    assert isinstance(policy, TransformersPolicy)
    return policy


async def ask(policy: TransformersPolicy, prompt: Prompt = PROMPTS[1]) -> Reading:
    return await policy.decide(prompt, time.monotonic() + 60)


async def test_versions_are_loaded_from_their_directories_and_say_what_peft_says(
    store: Path, fresh: LabelReader
) -> None:
    over = backends(store)
    ids = ids_of(fresh)
    for name in ("v3", "v1", "v2", "v3"):
        policy = served(store, name, over)
        expected = peft_says(store / "a-base", store / name, fresh, ids)
        readings = [await ask(policy, prompt) for prompt in PROMPTS]
        assert_agree([reading.log_probabilities for reading in readings], expected)
        assert policy.manifest.model_version == name
        await policy.aclose()
    assert kept(over, policy.manifest.hash()) is None


async def test_versions_over_one_base_share_its_weights_and_close_one_by_one(store: Path) -> None:
    over = backends(store)
    base, one, two = (served(store, name, over) for name in ("base-1", "v1", "v2"))
    batchers = {policy._batcher for policy in (base, one, two)}
    assert len(batchers) == 1
    [batcher] = batchers
    assert isinstance(batcher, Batcher)
    before = [await ask(policy) for policy in (base, one, two)]
    ordinary = served(store, "v3", over)
    assert ordinary._batcher is not batcher, "a merged adapter changes every token"
    await base.aclose()
    await base.aclose()
    await one.aclose()
    assert await ask(two) == before[2]
    assert len({reading.log_probabilities for reading in (*before, await ask(ordinary))}) == 4
    await two.aclose()
    await ordinary.aclose()
    assert batcher._thread._shutdown
    again = served(store, "v1", over)
    assert_agree(
        [(await ask(again)).log_probabilities], torch.tensor([before[1].log_probabilities])
    )
    await again.aclose()


def tampered(root: Path, name: str, **base: Any) -> None:
    path = root / name / "manifest.json"
    document = json.loads(path.read_text())
    document["base"].update(base)
    path.write_text(json.dumps(document))


def test_an_adapter_without_its_base_or_with_another_one_is_refused(
    store: Path, tmp_path: Path
) -> None:
    other = "sha256:" + "0" * 64
    tampered(store, "v1", weights_hash=other)
    with pytest.raises(ManifestMismatch, match="a-base has other weights than the base-1"):
        served(store, "v1")
    tampered(store, "v1", model_version="elsewhere-1")
    with pytest.raises(
        ModelFileError, match=r"base model elsewhere-1 is not under .*`advisor model import`"
    ):
        served(store, "v1")
    with pytest.raises(UnknownVersion, match="holds model version v9"):
        find_version("v9", [store])
    (store / "a-base" / "config.json").write_text("{}")
    with pytest.raises(ManifestMismatch, match=r"bytes differ from the manifest: config\.json"):
        served(store, "v2")


def test_an_adapter_that_was_damaged_or_has_a_pickle_is_refused_and_the_base_is_not_kept(
    store: Path,
) -> None:
    over = backends(store)
    manifest = read_manifest(store / "a-base" / "manifest.json")
    (store / "v1" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match="pickled code"):
        served(store, "v1", over)
    change_config(use_dora=True)(store / "v2")
    with pytest.raises(
        ManifestMismatch, match=r"bytes differ from the manifest: adapter_config\.json"
    ):
        served(store, "v2", over)
    write_manifest(store / "v2", "v2", manifest)
    with pytest.raises(ModelFileError, match="use_dora"):
        served(store, "v2", over)
    assert kept(over, manifest.hash()) is None


def test_an_ordinary_adapter_that_spoils_its_base_is_refused(
    tiny: LabelReader, store: Path
) -> None:
    """Each term is finite; what they are multiplied to is not."""
    manifest = read_manifest(store / "a-base" / "manifest.json")
    save_adapter(store / "v3", tiny.model, None, scale=1e30)
    write_manifest(store / "v3", "v3", manifest)
    with pytest.raises(ModelFileError, match="says numbers that are not finite"):
        served(store, "v3")


def test_the_manifest_of_a_whole_model_is_hashed_as_before_and_an_adapter_is_no_base(
    store: Path,
) -> None:
    whole = read_manifest(store / "a-base" / "manifest.json")
    adapter = read_manifest(store / "v1" / "manifest.json")
    assert "base" not in whole.as_json()
    assert adapter.base is not None
    assert adapter.base.manifest_hash == whole.hash()
    assert ModelManifest.from_json(adapter.as_json()) == adapter
    with pytest.raises(ModelFileError, match="is an adapter itself"):
        BaseModelRef.of(adapter)


def test_weights_not_the_name_or_the_day_make_a_base(store: Path, tmp_path: Path) -> None:
    adapter = read_manifest(store / "v1" / "manifest.json")
    assert adapter.base is not None
    elsewhere = tmp_path / "elsewhere"
    save_tiny_model(elsewhere / "other", LlamaConfig(**{**TINY, "hidden_size": 16, "head_dim": 4}))
    write_manifest(elsewhere / "other", "other-1")
    write_manifest(
        save_tiny_model(elsewhere / "same"), "imported-later", provenance={"day": "another"}
    )
    assert find_base(adapter.base, [elsewhere])[0] == elsewhere / "same"


async def test_vllm_is_asked_for_ordinary_adapters_by_their_versions(
    store: Path, tiny: LabelReader
) -> None:
    """As it serves them with `--lora-modules v3=... v4=...`; MODEL alone may go by another name."""
    base = read_manifest(store / "a-base" / "manifest.json")
    write_manifest(save_adapter(store / "v4", tiny.model, None, 4), "v4", base)
    server = Server()
    server.reads = lambda request: {
        f"token_id:{number}": -2.5 for number in request["logprob_token_ids"]
    }
    named = {store / "a-base": "advisor"}
    over = backends(store, vllm_url=server.url, vllm_names=named)
    for directory in ("a-base", "v3", "v4"):
        policy = over.load(store / directory)
        assert isinstance(policy, VllmPolicy)
        await policy.decide(PROMPTS[1], time.monotonic() + 60)
        await policy.aclose()
    assert [request["model"] for _, _, request in server.requests] == ["advisor", "v3", "v4"]
    prompts = [request["prompt"] for _, _, request in server.requests]
    assert prompts[0] == prompts[1] == prompts[2]
    server.close()


def test_vllm_is_given_no_activated_adapter_and_none_over_another_base(store: Path) -> None:
    over = backends(store, vllm_url="http://127.0.0.1:8000")
    with pytest.raises(ModelFileError, match="v1 is an activated adapter, whose branches"):
        over.load(store / "v1")
    change_config(use_dora=True)(store / "v3")
    with pytest.raises(ManifestMismatch, match="bytes differ from the manifest"):
        over.load(store / "v3")
    write_manifest(store / "v3", "v3", read_manifest(store / "a-base" / "manifest.json"))
    with pytest.raises(ModelFileError, match="use_dora not supported"):
        over.load(store / "v3")
    change_config(use_dora=None)(store / "v3")
    write_manifest(store / "v3", "v3", read_manifest(store / "a-base" / "manifest.json"))
    over.load(store / "v3")
    with (store / "a-base" / "config.json").open("a") as config:
        config.write(" ")
    with pytest.raises(ManifestMismatch, match=r"bytes differ from the manifest: config\.json"):
        over.load(store / "v3")
