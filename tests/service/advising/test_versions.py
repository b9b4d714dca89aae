"""Model versions are switched while the service runs: aliases decide, no request fails, refusals
change nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from safetensors.torch import load_file, save_file

from app.advising.serving import Pins, Serving
from app.domain.canonical import decision_id
from app.domain.errors import (
    AbstainReason,
    ManifestMismatch,
    PolicyAbstained,
    ShadowLogUnavailable,
    UnknownVersion,
)
from app.domain.model.manifest import ModelManifest
from app.domain.record.decision import prepare
from app.main import DEFAULT_MODEL
from app.policy.backends import Backends
from app.policy.encoding import PromptEncoder
from app.policy.in_process.whole.weights import load_model
from app.policy.options import BackendOptions
from app.policy.scripted import SCRIPTED_MANIFEST, ScriptedPolicy
from app.policy.versions.store import file_hash
from app.shadow_log.log import Registered, ShadowLog
from app.shadow_log.proof.verify import verify_log
from app.telemetry import UNOBSERVED
from tests import builders as build
from tests.policy.tiny_models import POSITIONS, save_adapter, save_tiny_model, write_manifest
from tests.service.processes import advisor, environment
from tests.service.running import Running, drained, request, running, settings_for, until

TOKEN = "correct horse"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions as training publishes them: a whole model, two activated adapters and an ordinary
    one. Read-only."""
    root = tmp_path_factory.mktemp("published")
    directory = save_tiny_model(root / DEFAULT_MODEL)
    base = write_manifest(directory, "base-1")
    model, tail = load_model(directory), PromptEncoder.from_directory(directory, POSITIONS).tail
    for seed, woken_by in ((1, tail), (2, tail), (3, None)):
        write_manifest(save_adapter(root / f"v{seed}", model, woken_by, seed), f"v{seed}", base)
    return root


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Path:
    """A home whose models may be damaged."""
    shutil.copytree(published, tmp_path / "home" / "models")
    return tmp_path / "home"


@asynccontextmanager
async def serving(
    database_url: str, valkey_url: str, home: Path, **more: Any
) -> AsyncIterator[Running]:
    more = {"admin_token": TOKEN, "prompt_tokens": POSITIONS, "deadline_ms": 60_000, **more}
    async with running(settings_for(database_url, valkey_url, home, **more), load=True) as api:
        yield api


@pytest.fixture
async def api(database_url: str, valkey_url: str, home: Path) -> AsyncIterator[Running]:
    async with serving(database_url, valkey_url, home) as service:
        yield service


async def put(api: Running, path: str, token: str | None = TOKEN, **body: Any) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await api.client.put(path, json=body, headers=headers)


async def move(api: Running, alias: str, version: str, **more: Any) -> httpx.Response:
    body = {"model_version": version, "reason": "test", "changed_by": "tests", **more}
    return await put(api, f"/aliases/{alias}", **body)


async def models(api: Running) -> list[str]:
    """Versions being served, as /readyz says, the primary first."""
    found: list[str] = (await api.client.get("/readyz")).json()["models"]
    return found


async def wait_for(api: Running, *versions: str) -> None:
    async def served() -> bool:
        return await models(api) == list(versions)

    await until(served)


def info(api: Running) -> set[tuple[str, str]]:
    """Versions and roles in the metric."""
    samples = next(iter(api.metrics.model_info.collect())).samples
    return {
        (sample.labels["model_version"], sample.labels["role"])
        for sample in samples
        if sample.value == 1
    }


def unused(api: Running) -> bool:
    """Whether every policy that is not served has been closed."""
    return not api.service.serving._retired


async def test_the_version_is_switched_under_load_without_a_failed_request(
    api: Running, database_url: str
) -> None:
    replies: list[httpx.Response] = []
    stop = asyncio.Event()

    async def client(name: int) -> None:
        number = 0
        while not stop.is_set():
            document = request(
                f"load-{name}-{number}", candidate__rsi=20 + (7 * name + number) % 60
            )
            replies.append(await api.advise({**document, "rationale": name == 0 and number == 0}))
            number += 1

    async with asyncio.TaskGroup() as group:
        for name in range(6):
            group.create_task(client(name))
        path = ("v1", "v2", "base-1", "v3", "v1")
        for number, version in enumerate(path):
            before = len(replies)

            async def more_answers(before: int = before) -> bool:
                return len(replies) > before + 6

            await until(more_answers)
            moved = await move(api, "shadow", version)
            assert moved.json() == {
                "alias": "shadow",
                "model_version": version,
                "before": ("base-1", *path)[number],
            }
            assert (await api.advise(request(f"after-{number}"))).json()["model_version"] == version
        stop.set()
    assert {reply.status_code for reply in replies} == {200}
    answers = [reply.json() for reply in replies]
    assert {answer["status"] for answer in answers} <= {"advised", "vetoed"}
    assert {answer["model_version"] for answer in answers} == {"base-1", "v1", "v2", "v3"}
    assert info(api) == {("v1", "primary")}

    async def closed() -> bool:
        return unused(api)

    await until(closed)
    assert await drained(api.settings) == len(answers) + len(path) + (
        answers[0]["rationale"] is not None
    )
    report = await verify_log(database_url)
    assert (report.decisions, report.findings) == (len(answers) + len(path), [])


class Scripted(Backends):
    """Every directory is a version that rejects."""

    def load(self, directory: Path, registered: ModelManifest | None = None) -> ScriptedPolicy:
        return ScriptedPolicy(["A"], manifest=scripted_manifest(directory.name))


def scripted_manifest(name: str) -> ModelManifest:
    return SCRIPTED_MANIFEST.model_copy(update={"model_version": name})


async def test_a_request_under_way_ends_with_the_version_it_began_with_which_is_closed_afterwards(
    database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    document = scripted_manifest("new").as_json()
    (tmp_path / "new" / "manifest.json").write_text(json.dumps(document))
    old = ScriptedPolicy(["H"], manifest=scripted_manifest("old"))
    shadow_log, prompt = ShadowLog.connect(database_url), prepare(build.scenario())
    backends = Scripted(BackendOptions(roots=(tmp_path,)))
    serving_ = Serving(Pins(old), backends, shadow_log, UNOBSERVED)
    await serving_.follow()
    with serving_.using() as models_:
        assert await serving_.move("shadow", "new", reason="test", by="tests") == "old"
        with serving_.using() as later:
            assert later.primary.manifest.model_version == "new"
        await serving_.follow()
        assert models_.primary is old
        await old.decide(prompt, 0)
    await serving_.follow()
    with pytest.raises(PolicyAbstained) as closed:
        await old.decide(prompt, 0)
    assert closed.value.reason is AbstainReason.SHUTTING_DOWN
    await shadow_log.aclose()


async def test_a_start_with_a_version_that_the_registry_knows_otherwise_is_refused(
    database_url: str, valkey_url: str, home: Path
) -> None:
    async with serving(database_url, valkey_url, home) as api:
        assert (await move(api, "shadow", "v1")).is_success
    other_manifest(home)
    with pytest.raises(ManifestMismatch, match="versions are immutable"):
        async with serving(database_url, valkey_url, home):
            pass


async def test_every_replica_follows_and_a_restart_begins_with_what_the_alias_names(
    database_url: str, valkey_url: str, published: Path, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                serving(
                    database_url, valkey_url, tmp_path / name, shipped_models=published, model=model
                )
            )
            for name, model in (("one", str(published / "v1")), ("two", str(published / "v2")))
        ]
        assert [await models(api) for api in (one, two)] == [["v1"], ["v2"]]
        for api in (one, two):
            refused = await move(api, "shadow", "v2")
            assert refused.status_code == 409
            assert "unset it" in refused.json()["detail"]
        assert (await move(one, "shadow-2", "v3")).is_success
        await wait_for(one, "v1", "v3")
        await wait_for(two, "v2", "v3")
    shutil.copytree(published, tmp_path / "three" / "models")
    async with AsyncExitStack() as stack:
        homes = (tmp_path / "three", tmp_path / "four")
        shutil.copytree(published, tmp_path / "four" / "models")
        three, four = [
            await stack.enter_async_context(serving(database_url, valkey_url, home))
            for home in homes
        ]
        await wait_for(three, "base-1", "v3")
        assert (await move(three, "shadow", "v1")).is_success
        await wait_for(four, "v1", "v3")
        assert info(four) == {("v1", "primary"), ("v3", "shadow")}
    async with serving(database_url, valkey_url, tmp_path / "four") as restarted:
        assert (await models(restarted))[0] == "v1", "from the first request on"
        await wait_for(restarted, "v1", "v3")
    shutil.rmtree(tmp_path / "four" / "models" / "v1")
    with pytest.raises(
        UnknownVersion, match=r"holds model version v1.*the alias shadow names it, MODEL can"
    ):
        async with serving(database_url, valkey_url, tmp_path / "four"):
            pass


async def test_without_postgres_a_start_serves_the_bundled_model(
    valkey_url: str, home: Path
) -> None:
    absent = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    async with serving(absent, valkey_url, home) as api:
        assert await models(api) == ["base-1"]
        assert (await api.advise(request("r-1"))).json()["model_version"] == "base-1"
        refused = await move(api, "shadow", "v1")
        assert refused.status_code == 503
        assert await models(api) == ["base-1"]


async def test_one_decision_has_one_advice_for_each_version_in_shadow(
    api: Running, database_url: str
) -> None:
    for alias, version in (
        ("shadow-2", "v1"),
        ("shadow-3", "v2"),
        ("shadow-4", "v3"),
        ("shadow-5", "v1"),
    ):
        assert (await move(api, alias, version)).is_success
    assert await models(api) == [
        "base-1",
        "v1",
        "v2",
        "v3",
    ], "the same version twice is served once"
    assert info(api) == {
        ("base-1", "primary"),
        ("v1", "shadow"),
        ("v2", "shadow"),
        ("v3", "shadow"),
    }
    reply = (await api.advise(request("r-1"))).json()
    assert reply["model_version"] == "base-1"
    assert [each["model_version"] for each in reply["advices"]] == ["base-1", "v1", "v2", "v3"]
    assert len({each["approve_probability"] for each in reply["advices"]}) == 4
    assert (await move(api, "shadow", "v2")).is_success
    assert await models(api) == ["v2", "v1", "v3"]
    for alias in ("shadow-4", "shadow-2", "shadow-5"):
        assert (await move(api, alias, "none")).json()["before"] in ("v1", "v3")
    assert await models(api) == ["v2"]
    again = (await api.advise(request("r-2"))).json()
    assert [each["model_version"] for each in again["advices"]] == ["v2"]
    assert again["approve_probability"] == pytest.approx(
        reply["advices"][2]["approve_probability"], abs=1e-4
    )
    assert await drained(api.settings) == 2
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        rows = connection.execute(
            "SELECT decision_id::text, model_version, role FROM advices ORDER BY decision_id = %s,"
            " ordinal",
            [str(decision_id("r-2"))],
        ).fetchall()
    first, second = str(decision_id("r-1")), str(decision_id("r-2"))
    assert rows == [
        (first, "base-1", "primary"),
        *((first, version, "shadow") for version in ("v1", "v2", "v3")),
        (second, "v2", "primary"),
    ]
    assert (await verify_log(database_url)).findings == []


async def test_versions_beside_each_other_say_the_same_by_either_engine(
    database_url: str, valkey_url: str, published: Path, tmp_path: Path
) -> None:
    """Two adapters and their base share one trunk, also after one became the primary."""
    said: dict[str, list[dict[str, float]]] = {}
    for engine in ("torch", "onednn"):
        home = tmp_path / engine
        shutil.copytree(published, home / "models")
        async with serving(database_url, valkey_url, home, engine=engine) as api:
            said[engine] = []
            for primary in ("base-1", "v2"):
                for alias, version in (("shadow", primary), ("shadow-2", "v1"), ("shadow-3", "v3")):
                    assert (await move(api, alias, version)).is_success
                reply = (await api.advise(request(f"{engine}-{primary}"))).json()
                said[engine].append(
                    {
                        each["model_version"]: each["approve_probability"]
                        for each in reply["advices"]
                    }
                )
                stored = await api.client.get(f"/decisions/{reply['decision_id']}")
                advices = stored.json()["decision"]["advices"]
                assert [each["reading"].get("engine") for each in advices] == [engine] * 3
    assert [list(each) for each in said["torch"]] == [["base-1", "v1", "v3"], ["v2", "v1", "v3"]]
    for by_torch, by_onednn in zip(said["torch"], said["onednn"], strict=True):
        assert by_onednn == pytest.approx(by_torch, abs=1e-4)


def damage(home: Path) -> None:
    path = home / "models" / "v1" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def lose_the_base(home: Path) -> None:
    shutil.rmtree(home / "models" / DEFAULT_MODEL)


def other_manifest(home: Path) -> None:
    path = home / "models" / "v1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "licence": "MIT"}))


def other_prompt(home: Path) -> None:
    path = home / "models" / "v1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompt_version": "1999-1"}))


def no_manifest(home: Path) -> None:
    (home / "models" / "v1" / "manifest.json").write_text("{")


REFUSED: dict[str, tuple[Any, int, str]] = {
    "changed bytes": (damage, 409, "bytes differ"),
    "no base": (lose_the_base, 409, "base model base-1 is not under"),
    "another manifest under the same name": (other_manifest, 409, "versions are immutable"),
    "another prompt version": (other_prompt, 409, "versions are immutable"),
    "no manifest": (no_manifest, 404, "holds model version v1"),
}


@pytest.mark.parametrize(("change", "status", "says"), REFUSED.values(), ids=REFUSED)
async def test_a_version_that_must_not_be_served_is_refused_and_nothing_changes(
    api: Running, home: Path, change: Any, status: int, says: str
) -> None:
    assert (await put(api, "/models/v1")).is_success
    assert (await move(api, "shadow", "v2")).is_success
    assert (await move(api, "shadow", "v3")).is_success
    before = (await api.client.get("/aliases")).json()
    change(home)
    for alias in ("shadow", "shadow-2"):
        refused = await move(api, alias, "v1")
        assert (refused.status_code, refused.headers["content-type"]) == (
            status,
            "application/problem+json",
        )
        assert says in refused.json()["detail"]
    assert (await api.client.get("/aliases")).json() == before
    assert await models(api) == ["v3"]
    assert (await api.advise(request("r-1"))).json()["model_version"] == "v3"


async def test_moves_that_make_no_sense_are_refused(api: Running) -> None:
    assert (await move(api, "shadow", "none")).status_code == 409
    assert (await move(api, "shadow", "v9")).status_code == 404
    for alias, version in (
        ("Shadow", "v1"),
        ("shadow", "../v1"),
        ("shadow", ".v1"),
        ("shadow", ""),
    ):
        assert (await move(api, alias, version)).status_code == 422
    for changes in ({"reason": ""}, {"changed_by": ""}, {"surprise": 1}):
        assert (await move(api, "shadow", "v1", **changes)).status_code == 422
    for path in ("/models/v1", "/aliases/shadow"):
        body = {"model_version": "v1", "reason": "test", "changed_by": "tests"}
        refused = await put(api, path, "wrong", **body)
        assert refused.status_code == 401
        assert "not known here" in refused.json()["detail"]
    assert (await api.client.get("/aliases")).json() == {"aliases": {}, "history": []}
    assert await models(api) == ["base-1"]


async def test_a_registered_version_can_be_named_without_being_served(
    api: Running, database_url: str
) -> None:
    assert (await move(api, "champion", "v1")).status_code == 409
    for version, status in (("v1", 200), ("v9", 404), ("v1", 200)):
        assert (await put(api, f"/models/{version}")).status_code == status
    assert (await move(api, "champion", "v1")).json()["before"] is None
    known = (await api.client.get("/aliases")).json()
    assert known["aliases"]["champion"] | {"changed_at": ""} == {
        "alias": "champion",
        "model_version": "v1",
        "reason": "tests: test",
        "changed_by": "admin",
        "changed_at": "",
        "served": False,
    }
    assert await models(api) == ["base-1"]
    log = ShadowLog.connect(database_url)
    registered = {row["model_version"]: row["manifest"].get("base") for row in await log.models()}
    await log.aclose()
    assert registered["v1"]["model_version"] == "base-1"


async def test_a_replica_that_lacks_the_version_goes_on_counts_it_and_follows_when_it_is_there(
    database_url: str,
    valkey_url: str,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.advising.serving.RETRY_S", 0.0)
    for name in ("one", "two"):
        shutil.copytree(published, tmp_path / name / "models")
    shutil.rmtree(tmp_path / "two" / "models" / "v1")
    async with (
        serving(database_url, valkey_url, tmp_path / "one") as one,
        serving(database_url, valkey_url, tmp_path / "two") as two,
    ):
        assert two.metric("advisor_version_refusals_total") == 0
        assert (await move(one, "shadow", "v1")).is_success

        async def refused() -> bool:
            return two.metric("advisor_version_refusals_total") > 0

        await until(refused)
        assert await models(two) == ["base-1"]
        assert (await two.advise(request("r-1"))).json()["model_version"] == "base-1"
        shutil.copytree(published / "v1", tmp_path / "two" / "models" / "v1")
        await wait_for(two, "v1")


async def test_the_command_shows_moves_and_rolls_back(
    api: Running, database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    variables = environment(
        tmp_path, database_url=database_url, redis_url=valkey_url, advisor_admin_token=TOKEN
    )

    async def alias(*arguments: str) -> Any:
        done = await asyncio.to_thread(advisor, variables, "alias", "--url", api.url, *arguments)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    assert await alias() == {"aliases": {}, "history": []}
    assert "nothing to go back to" in await alias("--rollback", "shadow")
    assert "needs --reason and --by" in await alias("shadow", "v1")
    assert "holds model version v9" in await alias("shadow", "v9", "--reason", "typo", "--by", "me")
    moved = await alias("shadow", "v1", "--reason", "passed", "--by", "me")
    assert moved == {"alias": "shadow", "model_version": "v1", "before": "base-1"}
    assert await models(api) == ["v1"]
    assert (await alias("--rollback", "shadow"))["model_version"] == "base-1", (
        "what was served before the first move"
    )
    assert await models(api) == ["base-1"]
    shown = await alias("shadow")
    assert shown["aliases"]["shadow"]["reason"] == "advisor alias --rollback: rollback from v1"
    assert shown["aliases"]["shadow"]["served"]
    moves = [(row["model_version"], row["reason"]) for row in shown["history"]]
    assert moves == [
        ("base-1", "advisor alias --rollback: rollback from v1"),
        ("v1", "me: passed"),
        ("base-1", "served before the first move"),
    ]
    left_behind = await alias("--rollback", "shadow")
    assert "nothing to go back to" in left_behind
    assert "none" not in left_behind, "the primary's alias names a version always"
    named = ("champion", "v1", "--reason", "good", "--by", "me")
    done = await asyncio.to_thread(advisor, variables, "alias", "--url", api.url, *named)
    assert "nobody asks the gate here" in done.stderr
    assert json.loads(done.stdout)["model_version"] == "v1"
    assert "needs the alias, and no version" in await alias("--rollback")


def other_bytes(home: Path) -> None:
    """The same name, other weights, and a manifest that describes them."""
    path = home / "models" / "v1" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, path)
    document = json.loads((home / "models" / "v1" / "manifest.json").read_text())
    document["files"][path.name] = file_hash(path)
    (home / "models" / "v1" / "manifest.json").write_text(json.dumps(document))


async def test_other_content_under_a_registered_name_is_refused_at_a_restart(
    database_url: str, valkey_url: str, home: Path
) -> None:
    pinned = {"model": str(home / "models" / "v1")}
    async with serving(database_url, valkey_url, home, **pinned) as api:
        assert (await put(api, "/models/v1")).is_success
    other_bytes(home)
    with pytest.raises(ManifestMismatch, match="other content is registered under that name"):
        async with serving(database_url, valkey_url, home, **pinned):
            pass


async def test_the_same_files_imported_on_another_day_are_served_as_registered(
    database_url: str, valkey_url: str, home: Path
) -> None:
    async with serving(database_url, valkey_url, home) as api:
        assert (await put(api, "/models/base-1")).is_success
        before = (await api.client.get("/models")).json()["serving"][0]["manifest_hash"]
    path = home / "models" / DEFAULT_MODEL / "manifest.json"
    document = json.loads(path.read_text()) | {"created_at": "2026-02-03T00:00:00Z"}
    path.write_text(json.dumps(document))
    async with serving(database_url, valkey_url, home) as api:
        [served] = (await api.client.get("/models")).json()["serving"]
        assert served["manifest_hash"] == before
        assert (await api.client.get("/readyz")).json()["models_refused"] == {}


async def test_what_began_without_postgres_abstains_when_the_registry_knows_it_otherwise(
    database_url: str, valkey_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(database_url, valkey_url, home) as api:
        assert (await put(api, "/models/v1")).is_success
    other_bytes(home)
    asked = ShadowLog.registered
    away = True

    async def registered(log: ShadowLog, model_version: str) -> Registered | None:
        if away:
            raise ShadowLogUnavailable("away")
        return await asked(log, model_version)

    monkeypatch.setattr(ShadowLog, "registered", registered)
    async with serving(database_url, valkey_url, home, model=str(home / "models" / "v1")) as api:
        assert (await api.advise(request("r-1"))).json()["status"] in ("advised", "vetoed")
        away = False

        async def withheld() -> bool:
            refused = (await api.client.get("/readyz")).json()["models_refused"]
            return "other content is registered" in refused.get("v1", "")

        await until(withheld)
        reply = (await api.advise(request("r-2"))).json()
        assert (reply["status"], reply["approve"]) == ("abstained", None)
        assert api.metric("advisor_version_refusals_total") == 1


async def test_a_library_that_panics_is_a_refusal(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As Rust's panics come through pyo3."""

    def panic(*_: Any) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr("app.policy.in_process.tensors.load_file", panic)
    refused = await move(api, "shadow", "v1")
    assert refused.status_code == 409
    assert "Panic: index out of bounds" in refused.json()["detail"]
    assert await models(api) == ["base-1"]
