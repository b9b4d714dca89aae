"""Checkpoints find every change of what they cover, and a stranger can check that a decision is
there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import shadow_advisor_client.proof
from shadow_advisor_client.proof import fault

from app.domain.canonical import canonical_json, content_hash, decision_id
from app.domain.record.link import FIRST, Linked, Producer
from app.shadow_log.comparisons import compare_all
from app.shadow_log.log import ShadowLog
from app.shadow_log.proof.checkpoint import (
    Checkpointer,
    check_checkpoints,
    key_at,
    proof,
    read_checkpoints,
)
from app.shadow_log.proof.findings import Fault, VerifyReport
from app.shadow_log.proof.places import CheckpointError, ObjectPlace, Place, place_at
from app.shadow_log.proof.verify import verify_log
from app.shadow_log.schema import tables
from bench.record.tamper import linked
from tests import builders as build
from tests.service.processes import advisor, environment
from tests.service.shadow_log.older_backup import back_up, restore


class Kept:
    """A log with a checkpoint after every few events."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.log = ShadowLog.connect(url)
        self.producer = Producer()
        self.file = directory / "checkpoints.jsonl"
        self.place: Place = place_at(str(self.file))
        self.key = directory / "checkpoint.key"
        self.checkpointer = self.signing_to(self.place)

    def signing_to(self, place: Place) -> Checkpointer:
        """Another writer's, with the same key."""
        return Checkpointer(self.log.engine, key_at(self.key), place)

    async def add(self, *names: str) -> None:
        await self.log.append([linked(self.producer, build.decision_event(n)) for n in names])

    async def check(self) -> VerifyReport:
        report = VerifyReport()
        signed, _ = read_checkpoints(self.place)
        await check_checkpoints(self.log.engine, signed, report)
        return report


@pytest.fixture
async def kept(database_url: str, tmp_path: Path) -> AsyncIterator[Kept]:
    made = Kept(database_url, tmp_path)
    await made.add("r-1", "r-2", "r-3")
    await made.checkpointer.checkpoint()
    await made.add("r-4", "r-5")
    await made.checkpointer.checkpoint()
    assert await made.checkpointer.checkpoint() is None, "nothing was added"
    yield made
    await made.log.aclose()


async def test_checkpoints_are_signed_and_hold(kept: Kept) -> None:
    (first, second), _ = read_checkpoints(kept.place)
    assert (first["size"], first["counts"]) == (3, {"decision": 3})
    assert (second["size"], second["counts"]) == (5, {"decision": 5})
    assert (await kept.check()).findings == []
    assert {oct(place.stat().st_mode & 0o777) for place in (kept.key, kept.file)} == {"0o600"}
    anew = await kept.signing_to(place_at("log:")).checkpoint()
    assert anew is not None
    assert (anew["root"], anew["key"]) == (second["root"], second["key"])


async def test_a_log_that_went_back_is_signed_as_it_is_then(
    database_url: str, tmp_path: Path
) -> None:
    made = Kept(database_url, tmp_path)
    await made.add("r-1", "r-2")
    copy = back_up(database_url)
    await made.add("r-3", "r-4")
    await made.checkpointer.checkpoint()
    restore(database_url, copy)
    await made.add("r-5", "r-6")
    document = await made.checkpointer.checkpoint()
    anew = await made.signing_to(place_at("log:")).checkpoint()
    assert document is not None
    assert anew is not None
    assert (document["size"], document["root"]) == (4, anew["root"])
    report = await made.check()
    assert report.counts == {Fault.CHECKPOINT: 1}, "what was signed before is not there any more"
    await made.log.aclose()


async def test_a_file_that_was_changed_or_signed_by_another_is_refused(
    kept: Kept, tmp_path: Path
) -> None:
    changed = [orjson.loads(line) for line in kept.file.read_bytes().splitlines()]
    changed[1]["size"] = 6
    kept.file.write_bytes(b"\n".join(orjson.dumps(each) for each in changed))
    with pytest.raises(CheckpointError, match="checkpoint 2: the signature does not fit"):
        read_checkpoints(kept.place)
    kept.file.unlink()
    other = Checkpointer(kept.log.engine, key_at(tmp_path / "other"), kept.place)
    await other.checkpoint()
    with pytest.raises(CheckpointError, match="another key"):
        read_checkpoints(kept.place, changed[0]["key"])


async def test_a_line_that_a_crash_cut_is_told_and_hides_nothing(kept: Kept) -> None:
    with kept.file.open("ab") as file:
        file.write(b'{"at":"2026-11-2')
    await kept.add("r-6")
    await kept.checkpointer.checkpoint()
    documents, cut = read_checkpoints(kept.place)
    assert ([each["size"] for each in documents], cut) == ([3, 5, 6], 1)
    assert (await kept.check()).findings == []


async def test_an_object_store_holds_each_checkpoint_as_an_object_that_is_never_written_again(
    kept: Kept, tmp_path: Path
) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = place_at((tmp_path / "bucket").as_uri())
    assert isinstance(bucket, ObjectPlace)
    document = await kept.signing_to(bucket).checkpoint()
    assert document is not None
    await bucket.add(document["size"], orjson.dumps(document))
    documents, cut = read_checkpoints(bucket)
    assert (documents, cut) == ([document], 0)
    [stored] = (tmp_path / "bucket").iterdir()
    assert stored.name.startswith("000000000000005-")
    report = VerifyReport()
    await check_checkpoints(kept.log.engine, documents, report)
    assert report.findings == []


async def test_a_place_that_cannot_be_used_says_which_and_why(tmp_path: Path) -> None:
    for where, why in (
        ("ftp://host/there", "checkpoints ftp://host/there: .*recognise"),
        (f"{(tmp_path / 'absent').as_uri()}", "checkpoints .*absent: "),
        (str(tmp_path / "absent" / "file"), "cannot be written: .*No such file"),
    ):
        with pytest.raises(CheckpointError, match=why) as refused:
            await place_at(where).add(1, b"{}")
        assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match="copy their lines into a file"):
        place_at("log:").lines()


async def test_a_consistent_forgery_after_the_checkpoint_is_found(kept: Kept) -> None:
    """A superuser takes a decision out of every table and makes sums and the whole chain anew: the
    log agrees with itself, and not with what was signed."""
    gone = decision_id("r-2")
    with psycopg.connect(kept.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in (*tables.PARTITIONED, "decision_keys"):
            connection.execute(f"DELETE FROM {table} WHERE decision_id = %s", [gone])
        connection.execute("DELETE FROM links WHERE key = %s", [str(gone)])
        rows = connection.execute(
            "SELECT id, producer, kind, key, claim, payload FROM event_links ORDER BY seq"
        ).fetchall()
        previous = FIRST
        for seq, (number, *hashes) in enumerate(rows, 1):
            producer, *others = hashes
            connection.execute(
                "UPDATE links SET seq = %s, previous = advisor_hash_bytes(%s) WHERE id = %s",
                [seq, previous, number],
            )
            previous = Linked(producer, seq, previous, *others).hash()
    await compare_all(kept.url)
    assert (await verify_log(kept.url)).findings == []
    report = await kept.check()
    assert set(report.counts) == {Fault.CHECKPOINT}
    assert len(report.findings) == 2


async def test_a_stranger_checks_a_proof_without_the_service(kept: Kept, tmp_path: Path) -> None:
    stored = await kept.log.decision(decision_id("r-4"))
    assert stored is not None
    signed, _ = read_checkpoints(kept.place)
    record = canonical_json(stored.as_json())
    made = await proof(kept.log.engine, stored.decision_id, record, signed)
    script = tmp_path / "proof.py"
    script.write_text(Path(shadow_advisor_client.proof.__file__).read_text())

    def check(document: dict[str, Any], key: str) -> tuple[int, str]:
        place = tmp_path / "proof.json"
        place.write_text(json.dumps(document))
        done = subprocess.run(
            [sys.executable, "-I", script, place, key],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    key = signed[0]["key"]
    status, said = check(made, key)
    assert (status, said.split(" was in the log")[0]) == (0, f"decision {stored.decision_id}")
    assert check(made | {"record": made["record"].replace("r-4", "r-9")}, key)[0] == 1
    assert check(made | {"index": 0}, key)[0] == 1
    assert check(made, "00" * 32)[0] == 1
    gone = await proof(kept.log.engine, stored.decision_id, None, signed)
    status, said = check(gone, key)
    assert status == 0
    assert said.endswith(f"was {content_hash(stored.as_json())}\n")
    for wrong in ({"kind": "outcome"}, {"payload": "sha256:00"}, {"key": str(decision_id("r-9"))}):
        assert check(gone | {"link": gone["link"] | wrong}, key)[0] == 1


async def test_the_commands_hold_a_log_against_its_checkpoints_and_prove_a_decision(
    kept: Kept, tmp_path: Path
) -> None:
    variables = environment(tmp_path, database_url=kept.url, advisor_checkpoints=kept.file)
    key = read_checkpoints(kept.place)[0][0]["key"]
    held = advisor(variables, "verify", "--checkpoints", str(kept.file), "--key", key)
    assert held.returncode == 0, held.stderr
    assert f"2 checkpoints, signed by {key}" in held.stderr
    assert "5 links of 1 producer, 0 events missing" in held.stderr
    proved = advisor(variables, "prove", str(decision_id("r-1")))
    assert fault(json.loads(proved.stdout), key) is None
    await kept.log.drop_months_before(datetime(2039, 1, 1, tzinfo=UTC))
    gone = advisor(variables, "prove", str(decision_id("r-1")))
    told = json.loads(gone.stdout)
    assert (told["record"], fault(told, key)) == (None, None)
    assert "dropped by retention" in gone.stderr
    replayed = advisor(variables, "replay", str(decision_id("r-1")))
    assert (replayed.returncode, "dropped by retention" in replayed.stderr) == (2, True)
    nobody = advisor(variables, "prove", str(decision_id("r-99")))
    assert (nobody.returncode, "no decision has the id" in nobody.stderr) == (2, True)
    tampered = "UPDATE links SET payload = previous WHERE seq = 5"
    with psycopg.connect(kept.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(tampered)
    held = advisor(variables, "verify", "--checkpoints", str(kept.file))
    assert held.returncode == 1
    assert "5 links at" in held.stderr
