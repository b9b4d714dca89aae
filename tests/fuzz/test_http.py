"""Generated requests over the whole OpenAPI document, valid ones and others, one by one and in
journeys along its links, asked with the tokens of a desk, a reporter and a reader: no reply is a
defect, what a role may not do is refused, and what was recorded verifies.

ADVISOR_FUZZ_REQUESTS makes at least so many (`make fuzz`: 20,000).
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path

import httpx
import pytest

from app.api.tokens import TokenFile
from app.domain.principal import Role
from app.shadow_log.proof.verify import verify_log
from tests.service.processes import Child, environment
from tests.service.running import ROOT, until

REQUESTS = int(os.environ.get("ADVISOR_FUZZ_REQUESTS", "0"))
SEED = int(os.environ.get("ADVISOR_FUZZ_SEED", "1"))
FEW, MANY = ("--phases", "fuzzing", "--max-examples", "2"), ("--max-examples", "40")
SHORT = ("--phases", "fuzzing,stateful", "--max-examples", "8")
LONG = ("--phases", "coverage,fuzzing,stateful", "--max-examples", "150")
NEXT = ("--phases", "fuzzing,stateful", "--max-examples", "300")
"""The phase `coverage` makes the same requests with every seed."""
ROLES = {
    "desk": [Role.AGENT, Role.OPERATOR],
    "reporter": [Role.REPORTER],
    "reader": [Role.READER],
}
"""The first may do nearly everything; the others are refused most of it."""
pytestmark = pytest.mark.timeout(0 if REQUESTS else 600)
"""Three runs of a program that takes seconds to start, on a machine that does other things too."""


def schemathesis(url: str, token: str, work: Path, seed: int, *arguments: str) -> str:
    """One run; what it said. Raises AssertionError with that when a check failed."""
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    headers = ["--header", f"Authorization: Bearer {token}"]
    configuration = str(Path(__file__).with_name("schemathesis.toml"))
    command = [sys.executable, "-c", program, "--config-file", configuration]
    command += ["run", f"{url}/openapi.json", "--seed", str(seed)]
    command += ["--checks", "no_fault", "--continue-on-failure", "--request-timeout", "30"]
    done = subprocess.run(
        [*command, "--no-color", *headers, *arguments],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": str(ROOT)},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_of(token: str) -> httpx.AsyncClient:
    """A client that may see metrics."""
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"})


async def answered(url: str, reader: str) -> Counter[str]:
    """Replies by status, as the service itself counted them."""
    codes: Counter[str] = Counter()
    async with metrics_of(reader) as client:
        metrics = (await client.get(f"{url}/metrics")).raise_for_status().text
    for code, number in re.findall(
        r'^advisor_requests_total\{code="(\d+)".* (\S+)$', metrics, re.M
    ):
        codes[code] += int(float(number))
    return codes


async def drained(writer: Child, reader: str) -> None:
    """Wait until the writer has moved everything."""
    async with metrics_of(reader) as client:

        async def empty() -> bool:
            lines = (await client.get(f"{writer.url}/metrics")).text.splitlines()
            return "advisor_journal_backlog 0.0" in lines

        await until(empty)


def _turns(tokens: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Whose token is used, and how much is asked with it: each in turn, then the first again as
    long as more is wanted."""
    first, *others = tokens
    yield first, LONG if REQUESTS else SHORT
    for name in others:
        yield name, MANY if REQUESTS else FEW
    while True:
        yield first, NEXT


async def test_no_generated_request_finds_a_defect(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    variables = environment(
        tmp_path, database_url=database_url, redis_url=valkey_url, advisor_open=None
    )
    file = TokenFile(tmp_path / "tokens.json")
    of = {"reporter": ["desk"]}
    tokens = {name: file.create(name, ROLES[name], of=of.get(name, [])) for name in ROLES}
    api, writer = (Child(name, variables, tmp_path / name) for name in ("serve", "writer"))
    try:
        for child in (api, writer):
            child.start()
        for child in (api, writer):
            await child.ready()
        said = {}
        for seed, (name, arguments) in zip(count(SEED), _turns(tokens), strict=False):
            run = partial(schemathesis, api.url, tokens[name], tmp_path, seed, *arguments)
            said[name] = await asyncio.to_thread(run)
            codes = await answered(api.url, tokens["reader"])
            print(f"{name}, seed {seed}: {codes.total()} requests answered so far", flush=True)
            if len(said) == len(tokens) and codes.total() >= REQUESTS:
                break
        print(f"{codes.total()} requests answered: {dict(sorted(codes.items()))}")
        assert {code for code in codes if code >= "500"} <= {"503"}
        assert codes["200"] > 20, "a service that refuses everything proves nothing"
        assert codes["403"] > 20, "a service that lets everybody do everything proves nothing"
        assert re.search(r"API Links: +[1-9]\d* covered", said["desk"]), "no link was followed"
        assert "Traceback" not in api.said + writer.said
        await drained(writer, tokens["reader"])
    finally:
        for child in (api, writer):
            child.kill()
    assert (await verify_log(database_url)).findings == []
