"""`advisor` as people type it: every command, and every refusal in one line that says how to mend
it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from app.cli.__main__ import app
from app.cli.settings import HIDDEN, page
from app.domain.canonical import decision_id
from app.local.servers import EmbeddedPostgres, EmbeddedValkey
from app.settings import Settings, unknown_variables
from app.shadow_log.log import ShadowLog
from app.shadow_log.schema import tables
from tests import builders as build
from tests.service.api.http_faults import faulty, garbage
from tests.service.processes import advisor, environment
from tests.service.running import ROOT, running, settings_for
from tests.service.shadow_log.test_log import rows

COMMANDS = [
    "up",
    "serve",
    "writer",
    "import",
    "migrate",
    "verify",
    "compare",
    "prove",
    "replay",
    "drill",
    "what-if",
    "export",
    "retention",
    "state",
    "alias",
    "doctor",
    "query",
    "psql",
    "settings",
    "model",
    "token",
    "limits",
    "notices",
]
COMMANDS += ["limits diff", "limits history", "limits adopt", "limits rollback"]
COMMANDS += [
    "notices watch",
    "notices test",
    "model import",
    "token create",
    "token list",
    "token rotate",
    "token revoke",
]
STAYING = ("up", "serve", "writer", "psql", "notices watch", "model", "token", "limits", "notices")
"""Commands that run until they are stopped or hand over to another program, and groups."""
NOBODY_THERE = "postgresql://advisor:secret@127.0.0.1:1/advisor"


def refusal(variables: Mapping[str, str], *arguments: str, cwd: Path = ROOT) -> str:
    """The one line in which a command refuses; uvicorn may have announced itself before."""
    done = advisor(variables, *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" or "--json" in arguments
    own = [line for line in done.stderr.splitlines() if not line.startswith(("INFO:", "ERROR:"))]
    assert len(own) == 1, done.stderr
    assert own[0].startswith("advisor: ")
    assert "secret" not in done.stderr
    return own[0].removeprefix("advisor: ")


@pytest.fixture
def variables(database_url: str, valkey_url: str, tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home", database_url=database_url, redis_url=valkey_url)


@pytest.fixture
async def stored(database_url: str) -> None:
    """Two decisions in the shadow log."""
    log = ShadowLog.connect(database_url)
    await log.append(
        [build.decision_event("r-1", control=True), build.decision_event("r-2", label="A")]
    )
    await log.aclose()


def tamper(database_url: str, statement: str) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute("SET session_replication_role = replica")
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    named = "python -m app.cli"
    done = CliRunner().invoke(app, [*command.split(), "--help"], prog_name=named)
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Usage: {named} {command} " in done.stdout


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in STAYING])
def test_every_command_that_ends_speaks_json(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("verify", "--json"), "DATABASE_URL is not set"),
        (("retention", "--json"), "Missing option '--before'"),
        (("what-if", "--limits", "nowhere.toml", "--json"), "nowhere.toml: cannot be read"),
        (("what-if", "--limits", "limits.toml", "--since", "2026-01-02", "--until", "2026-01-01",
          "--json"), "it is not after --since"),
        (("query", " ", "--json"), "there is no question"),
        (("no-such-command", "--json"), "No such command"),
    ],
)  # fmt: skip
def test_a_failure_is_a_document_for_who_asked_for_json(
    arguments: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    done = advisor(environment(tmp_path / "home"), *arguments)
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert list(told) == ["error"]
    assert why in told["error"]
    assert done.stderr == f"advisor: {told['error']}\n"


def test_what_was_done_is_a_document_as_well(
    stored: None, variables: dict[str, str], tmp_path: Path
) -> None:
    [decision] = rows(
        variables["DATABASE_URL"], "SELECT decision_id FROM decisions WHERE request_id = 'r-1'"
    )

    def told(*arguments: str) -> Any:
        done = advisor(variables, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    id = str(decision["decision_id"])
    assert told("replay", id) == {"decision_id": id, "differences": {}}
    assert told("compare") == {"decisions": 2, "changed": 0}
    folder = str(tmp_path / "export")
    assert told("export", folder) == {"folder": folder, "days": 1, "rows": 2, "kept": 0}
    assert told("migrate") == {"revision": tables.REVISION}
    assert told("token", "create", "--name", "a", "--role", "reader")["token"].startswith("advisor")
    assert len(told("token", "revoke", "a")) == 1


def test_the_list_of_commands_is_whole(tmp_path: Path) -> None:
    done = advisor(environment(tmp_path), "--help")
    assert done.returncode == 0
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", done.stdout, re.MULTILINE)
    assert listed == [command for command in COMMANDS if " " not in command]
    assert advisor(environment(tmp_path), "unknown").returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        ("what-if", "--limits", "limits.toml", "--forget-hours", "nan"),
        ("what-if", "--limits", "limits.toml", "--forget-hours", "inf"),
        ("doctor", "--free-gb", "nan"),
        ("notices", "watch", "--every", "nan"),
        ("import", "trades.json", "--from", "freqtrade", "--roi", "inf"),
    ],
)
def test_an_option_that_is_no_finite_number_is_a_wrong_command(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    done = advisor(environment(tmp_path), *command)
    assert done.returncode == 2, done.stderr
    assert "Invalid value" in done.stderr


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = advisor(environment(tmp_path), "--version")
    assert (done.returncode, done.stdout) == (0, f"shadow-advisor {version('shadow-advisor')}\n")


def test_a_command_that_is_almost_one_is_named(tmp_path: Path) -> None:
    done = advisor(environment(tmp_path), "verfy")
    assert done.returncode == 2
    assert "Did you mean 'verify'" in done.stderr


def test_settings_show_value_and_origin_and_hide_what_is_secret(tmp_path: Path) -> None:
    changes = {"ADVISOR_DEADLINE_MS": "700", "ADVISOR_ADMIN_TOKEN": "a-long-secret"}
    changes["DATABASE_URL"] = "postgresql://me:secret@host/db"
    done = advisor(environment(tmp_path) | changes, "settings", "--json")
    assert done.returncode == 0
    assert "a-long-secret" not in done.stdout
    assert "me:secret" not in done.stdout
    told = {row["variable"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert told["ADVISOR_DEADLINE_MS"] == ("700", "environment")
    assert told["ADVISOR_MAX_BATCH"] == ("4", "default")
    assert told["ADVISOR_ADMIN_TOKEN"] == told["DATABASE_URL"] == (HIDDEN, "environment")
    assert told["ADVISOR_OPEN"] == ("loopback", "environment")


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    """Compose files and unit files write what is not set so."""
    empty = {"ADVISOR_DECIDERS": "", "ADVISOR_PORT": "", "ADVISOR_LIMITS": "", "VLLM_URL": ""}
    done = advisor(environment(tmp_path) | empty, "settings", "--json")
    told = {row["variable"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert told["ADVISOR_PORT"] == ("8321", "default")
    assert told["ADVISOR_LIMITS"] == ("limits.toml", "default")
    assert {told[name][1] for name in empty} == {"default"}


def test_what_clients_and_tests_read_is_no_wrong_setting() -> None:
    names = ("ADVISOR_URL", "ADVISOR_TOKEN", "ADVISOR_TOKEN_FILE", "ADVISOR_FUZZ_SEED", "ADVISE")
    assert unknown_variables([*names, "advisor_port"]) == []
    assert unknown_variables(["advisor_prot", "ADVISOR_QQQQQQ"]) == [
        "ADVISOR_QQQQQQ: no such setting",
        "advisor_prot: no such setting; did you mean ADVISOR_PORT?",
    ]


def test_the_page_of_settings_is_the_one_that_the_command_makes() -> None:
    assert (ROOT / "docs/settings.md").read_text() == page()
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.usefixtures("stored")
def test_a_question_is_answered_as_table_json_and_csv_and_changes_nothing(
    variables: dict[str, str],
) -> None:
    asked = "SELECT count(*) AS decisions, NULL AS nothing FROM decisions"
    table = advisor(variables, "query", asked)
    assert table.returncode == 0
    assert re.search(r"decisions +nothing", table.stdout)
    assert json.loads(advisor(variables, "query", asked, "--json").stdout) == [
        {"decisions": 2, "nothing": None}
    ]
    assert advisor(variables, "query", asked, "--csv").stdout.split() == ["decisions,nothing", "2,"]
    odd = "SELECT 'nan'::float8 AS a, '-infinity'::float8 AS b"
    assert json.loads(
        advisor(variables, "query", odd, "--json").stdout, parse_constant=str.encode
    ) == [{"a": "NaN", "b": "-Infinity"}]
    within = "SELECT array['nan'::float8, 1] AS a, '\\x00ff'::bytea AS b"
    assert json.loads(
        advisor(variables, "query", within, "--json").stdout, parse_constant=str.encode
    ) == [{"a": ["NaN", 1.0], "b": "\\x00ff"}]
    assert "is no text" in refusal(variables, "query", "SELECT '\udcff'", "--json")
    endless = "SELECT 'infinity'::timestamptz AS a, '-infinity'::date AS b, '24:00'::time AS c"
    assert json.loads(advisor(variables, "query", endless, "--json").stdout) == [
        {"a": "infinity", "b": "-infinity", "c": "24:00:00"}
    ]
    assert "give each its own with AS" in refusal(variables, "query", "SELECT 1, 2", "--json")
    assert "choose one" in advisor(variables, "query", asked, "--json", "--csv").stderr
    changing = "SET TRANSACTION READ WRITE; DELETE FROM state_changes"
    assert "Postgres says: " in refusal(variables, "query", changing)
    assert "Postgres says: " in refusal(variables, "query", "SELECT nothing_there")
    assert "Postgres says: " in refusal({**variables, "DATABASE_URL": NOBODY_THERE}, "query", asked)


def test_a_folder_without_a_name_is_not_the_one_that_the_command_runs_in(
    tmp_path: Path,
) -> None:
    variables = environment(tmp_path, database_url=NOBODY_THERE)
    done = advisor(variables, "export", "", cwd=tmp_path)
    assert done.returncode == 2
    assert "the folder has no name" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_limits_file_that_is_not_there_is_named_without_talk_of_the_service(
    tmp_path: Path,
) -> None:
    reasons = ("--reason", "r", "--by", "b")
    says = refusal(environment(tmp_path), "limits", "adopt", "NOPE.toml", *reasons)
    assert says == "NOPE.toml: cannot be read: No such file or directory"


def test_psql_gets_the_password_where_nobody_sees_it(
    variables: dict[str, str], tmp_path: Path
) -> None:
    fake = tmp_path / "bin" / "psql"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$PGPASSWORD" "$@"\n')
    fake.chmod(0o755)
    seen = {**variables, "DATABASE_URL": NOBODY_THERE, "PATH": str(fake.parent)}
    done = advisor(seen, "psql", "-c", "SELECT 1")
    assert done.returncode == 0
    password, _, arguments = done.stdout.partition(" ")
    assert password == "secret"
    assert "secret" not in arguments
    assert "host=127.0.0.1" in arguments
    assert arguments.endswith("-c SELECT 1\n")
    nowhere = {**variables, "PATH": str(tmp_path)}
    assert "psql is not installed" in refusal(nowhere, "psql")


def test_migrating_twice_ends_at_the_same_revision(empty_database_url: str, tmp_path: Path) -> None:
    variables = environment(tmp_path, database_url=empty_database_url)
    for _ in range(2):
        done = advisor(variables, "migrate")
        assert done.returncode == 0
        assert done.stderr.splitlines()[-1] == f"database is at revision {tables.REVISION}"


@pytest.mark.usefixtures("stored")
def test_verify_passes_a_good_log_and_names_what_was_tampered_with(
    variables: dict[str, str], database_url: str
) -> None:
    good = advisor(variables, "verify")
    assert (good.returncode, good.stdout) == (0, "")
    assert (
        good.stderr
        == "2 decisions, 0 reports: every hash matches, every decision replays, no gaps\n"
        "2 links of 1 producer, 0 events missing\n"
    )
    known = decision_id("r-1")
    tamper(
        database_url,
        f"UPDATE decisions SET rsi = 57.2 WHERE decision_id = '{known}'",
    )
    bad = advisor(variables, "verify")
    assert bad.returncode == 1
    summary, _, *findings = bad.stderr.splitlines()
    assert summary.startswith("2 decisions, 0 reports; 2 faults: ")
    assert [finding.split(":")[0].strip() for finding in findings] == [str(known)] * 2
    assert len(advisor(variables, "verify", "--sample", "1").stderr.splitlines()) == 3


@pytest.mark.usefixtures("stored")
def test_replay_shows_that_nothing_or_what_differs(
    variables: dict[str, str], database_url: str
) -> None:
    known = str(decision_id("r-1"))
    same = advisor(variables, "replay", known)
    assert same.returncode == 0
    assert same.stderr.rstrip().endswith("advised, approve_r1.00_s1.0; replays to the same record")
    tamper(
        database_url,
        "UPDATE shared_parts SET content = jsonb_set(content, '{spread,max_bps}', '0.1') "
        "WHERE content ? 'spread'",
    )
    other = advisor(variables, "replay", known)
    assert other.returncode == 1
    assert "advices:" in other.stderr.splitlines()
    assert '"SPREAD"' in other.stderr
    assert other.stderr.rstrip().endswith("; differs")


def test_replay_refuses_what_is_not_there_and_what_is_no_id(variables: dict[str, str]) -> None:
    absent = str(decision_id("absent"))
    assert refusal(variables, "replay", absent) == f"no decision has the id {absent}"
    done = advisor(variables, "replay", "not-an-id")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "decision_id" in done.stderr


@pytest.mark.usefixtures("stored")
def test_replay_of_a_mutilated_record_is_one_line(
    variables: dict[str, str], database_url: str
) -> None:
    known = str(decision_id("r-1"))
    tamper(
        database_url,
        f"UPDATE decisions SET schema_version = NULL WHERE decision_id = '{known}'",
    )
    assert "(Decision: schema_version: " in refusal(variables, "replay", known)


async def test_retention_shows_what_would_go_and_drops_it_when_told_to(
    variables: dict[str, str], database_url: str
) -> None:
    log = ShadowLog.connect(database_url)
    for number, (year, month) in enumerate([(2023, 11), (2023, 12), (2023, 12), (2024, 1)]):
        await log.append(
            [build.decision_event(f"r-{number}", at=datetime(year, month, 3, tzinfo=UTC))]
        )
    command = ("retention", "--before", "2024-01")
    months = ["2023-11            1 decision", "2023-12            2 decisions"]
    for words, after in (
        ([], [*months, "nothing is dropped without --yes: 2 months, 3 decisions"]),
        (["--yes"], [*months, "dropped 2 months, 3 decisions"]),
        (["--yes"], ["no month before 2024-01 holds decisions"]),
    ):
        done = await asyncio.to_thread(advisor, variables, *command, *words)
        assert (done.returncode, done.stderr.splitlines()) == (0, after)
        assert (await log.counts())["decisions"] == (1 if words else 4)
    await log.aclose()


def test_retention_refuses_the_month_under_way_and_what_is_no_month(
    variables: dict[str, str],
) -> None:
    assert "is in the future" in refusal(variables, "retention", "--before", "9999-12", "--yes")
    for arguments in ((), ("--before", "January"), ("--before", "2024-13")):
        done = advisor(variables, "retention", *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert "--before" in done.stderr


MANIFEST = build.manifest(
    provenance={
        "illustrative_proposals": {
            "raw": {"A": 32},
            "corrected": {"A": 20, "H": 12},
            "label_mass_min": 0.4,
        }
    }
)


def test_the_import_of_a_model_shows_its_proposals_before_and_after_calibration(
    variables: dict[str, str], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "manifest.json").write_text(MANIFEST.model_dump_json())
    done = advisor(variables, "model", "import", str(directory))
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stderr.splitlines()]
    assert ["label", "action", "before", "calibration", "after"] in table
    assert ["A", "reject", "32", "20"] in table
    assert ["H", "approve_r1.00_s1.0", "0", "12"] in table
    assert ["J", "approve_r1.00_s2.5", "0", "0"] in table
    assert done.stderr.splitlines()[-2:] == [
        f"version {MANIFEST.model_version}, manifest {MANIFEST.hash()}",
        f"ready: MODEL={directory}",
    ]


async def test_state_shows_and_changes_the_state_with_the_token(
    variables: dict[str, str], database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    settings = settings_for(
        database_url, valkey_url, tmp_path, admin_token="correct horse", open=None
    )
    async with running(settings) as api:

        async def state(*arguments: str, token: str = "correct horse") -> dict[str, Any]:
            with_token = variables | {"ADVISOR_ADMIN_TOKEN": token}
            done = await asyncio.to_thread(
                advisor, with_token, "state", "--url", api.url, *arguments
            )
            assert done.returncode == 0, done.stderr
            document: dict[str, Any] = json.loads(done.stdout)
            return document

        async def refused(*arguments: str, token: str = "correct horse") -> str:
            with_token = variables | {"ADVISOR_ADMIN_TOKEN": token}
            return await asyncio.to_thread(
                refusal, with_token, "state", "--url", api.url, *arguments
            )

        assert (await state())["state"] == "ACTIVE"
        why = ("--reason", "drill", "--by", "ops")
        assert await state("halted", *why) == {"state": "HALTED", "recorded": "stream"}
        shown = await state()
        assert shown["state"] == "HALTED"
        change = shown["change"]
        assert (change["reason"], change["changed_by"]) == ("ops: drill", "admin")
        assert "is not known here" in await refused("ACTIVE", *why, token="wrong horse")
        assert "'ACTIVE', 'REDUCING' or 'HALTED'" in await refused("PAUSED", *why)
        assert "needs --reason and --by" in await refused("ACTIVE", "--reason", "only")
        assert (await state())["state"] == "HALTED"


def test_state_without_the_service_or_with_another_one_is_one_line(
    variables: dict[str, str],
) -> None:
    assert "does not answer" in refusal(variables, "state")
    refused = refusal(variables, "state", "--url", "http://[::1")
    assert "is not the address of a service" in refused
    with faulty(garbage) as server:
        server_url = f"{server.url}"
        why = ("HALTED", "--reason", "drill", "--by", "ops")
        assert "is not the advisor" in refusal(variables, "state", *why, "--url", server_url)


WITHOUT = {
    "migrate": "DATABASE_URL is not set",
    "verify": "DATABASE_URL is not set",
    "retention --before 2024-01": "DATABASE_URL is not set",
    "serve": "DATABASE_URL and REDIS_URL must be set",
    "writer": "DATABASE_URL and REDIS_URL must be set",
}


@pytest.mark.parametrize(("command", "says"), WITHOUT.items())
def test_a_missing_url_is_named(command: str, says: str, tmp_path: Path) -> None:
    assert refusal(environment(tmp_path), *command.split()).startswith(says)


@pytest.mark.parametrize("command", ["migrate", "verify"])
def test_an_absent_postgres_is_one_line_without_the_password(command: str, tmp_path: Path) -> None:
    says = refusal(environment(tmp_path, database_url=NOBODY_THERE), command)
    assert "Connection refused" in says
    assert says.endswith("check DATABASE_URL and the server")


@pytest.mark.parametrize("command", ["migrate", "verify"])
def test_a_wrong_password_is_one_line(
    command: str, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    wrong = postgres.url.replace(postgres.password, "wrong-secret")
    assert "password authentication failed" in refusal(
        environment(tmp_path, database_url=wrong), command
    )


def test_an_unmigrated_database_is_one_line(empty_database_url: str, tmp_path: Path) -> None:
    variables = environment(tmp_path, database_url=empty_database_url)
    for command in (
        ["verify"],
        ["replay", str(decision_id("r-1"))],
        ["retention", "--before", "2024-01"],
    ):
        assert refusal(variables, *command).endswith("run `advisor migrate`")


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def test_a_taken_port_is_named_with_its_variable(variables: dict[str, str]) -> None:
    with taken_port() as port:
        says = refusal(variables | {"ADVISOR_PORT": str(port)}, "serve")
        assert says == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use; "
            "stop what listens there, or set ADVISOR_HOST and ADVISOR_PORT"
        )
        says = refusal(variables | {"ADVISOR_WRITER_METRICS_PORT": str(port)}, "writer")
        assert says.endswith("stop what listens there, or set ADVISOR_WRITER_METRICS_PORT")


BAD_LIMITS = {
    'version = "x"\n[spread]\nmax_bps = -1\n[daily_los]\nmax_fraction = 0.1\n': [
        "spread.max_bps",
        "daily_los",
    ],
    "version = \n": ["not valid TOML", "line 1"],
    "[spread]\nenabled = false\n": ["version: Field required", "spread.enabled"],
}


@pytest.mark.parametrize(("text", "names"), BAD_LIMITS.items(), ids=["values", "syntax", "switch"])
def test_a_bad_limits_file_stops_the_start_with_every_violation(
    text: str, names: list[str], variables: dict[str, str], tmp_path: Path
) -> None:
    limits = tmp_path / "[b]limits.toml"
    limits.write_text(text)
    says = refusal(variables | {"ADVISOR_LIMITS": str(limits)}, "serve")
    assert says.startswith(str(limits)), "nothing in it is taken for mark-up"
    assert all(name in says for name in names), says


def test_a_redis_url_that_cannot_be_read_is_one_line(variables: dict[str, str]) -> None:
    for command, url in (("serve", "localhost:6379"), ("writer", "redis://host:port-secret/0")):
        says = refusal(variables | {"REDIS_URL": url}, command)
        assert says == "REDIS_URL cannot be read; write redis://:password@host:6379/0"


WRONG: list[tuple[dict[str, str], str]] = [
    (
        {"ADVISOR_LIMITS": "absent.toml"},
        "absent.toml: cannot be read.*set ADVISOR_LIMITS to a limits file",
    ),
    ({"MODEL": "absent"}, "there is no model directory absent: set MODEL to one"),
    ({"VLLM_URL": "http://127.0.0.1:1", "MODEL": ""}, "VLLM_URL needs MODEL"),
    (
        {"ADVISOR_PORT": "http", "ADVISOR_THREADS": "0"},
        "environment: ADVISOR_PORT: .*got 'http'.*; ADVISOR_THREADS: .*got '0'",
    ),
    ({"ADVISOR_LOG_LEVEL": "loud"}, "environment: ADVISOR_LOG_LEVEL: .*got 'loud'"),
    ({"ADVISOR_ADMIN_TOKEN": "short"}, r"environment: ADVISOR_ADMIN_TOKEN: [^(]*$"),
    (
        {"ADVISOR_PROT": "1", "ADVISOR_THREADS": "0"},
        r"ADVISOR_PROT: no such setting; did you mean ADVISOR_PORT\?; ADVISOR_THREADS: ",
    ),
    (
        {"DATABASE_URL": "mysql://secret@host/db"},
        "DATABASE_URL names mysql, not Postgres; write postgresql://",
    ),
]


def test_serve_refuses_a_wrong_setting(variables: dict[str, str]) -> None:
    with ThreadPoolExecutor() as pool:
        refusals = pool.map(lambda row: refusal(variables | row[0], "serve"), WRONG)
        for (changes, expected), says in zip(WRONG, refusals, strict=True):
            assert re.search(expected, says), changes


def test_up_refuses_a_home_that_cannot_be_written_or_is_in_use(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "file").touch()
    done = advisor(environment(tmp_path / "file"), "up", "--exit")
    assert done.returncode == 2
    lies, refused = done.stderr.splitlines()
    assert lies == f"state lies in {tmp_path}/file"
    assert refused.startswith(f"advisor: {tmp_path}/file/postgres cannot be written: Not a dir")
    with EmbeddedValkey(tmp_path / "home" / "valkey"):
        taken = environment(tmp_path / "home", database_url=database_url)
        done = advisor(taken, "up", "--exit")
    assert done.returncode == 2
    assert "is in use by another running instance" in done.stderr
    assert "Traceback" not in done.stderr
