"""Generated requests over the whole OpenAPI document, valid ones and others, one by one and in
journeys along its links: no reply is a defect, and what was recorded verifies.

ADVISOR_FUZZ_REQUESTS makes at least so many (`make fuzz`: 20,000).
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path

import httpx

from app.shadow_log.proof.verify import verify_log
from tests.service.processes import Child, bearer, environment
from tests.service.running import ROOT, until

REQUESTS = int(os.environ.get("ADVISOR_FUZZ_REQUESTS", "0"))
SEED = int(os.environ.get("ADVISOR_FUZZ_SEED", "1"))
SHORT = ("--phases", "fuzzing,stateful", "--max-examples", "8")
LONG = ("--phases", "coverage,fuzzing,stateful", "--max-examples", "150")
NEXT = ("--phases", "fuzzing,stateful", "--max-examples", "300")
"""The phase `coverage` makes the same requests with every seed."""


def schemathesis(url: str, work: Path, seed: int, *arguments: str) -> str:
    """One run; what it said. Raises AssertionError with that when a check failed."""
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    headers = [part for pair in bearer().items() for part in ("--header", ": ".join(pair))]
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


async def answered(url: str) -> Counter[str]:
    """Replies by status, as the service itself counted them."""
    codes: Counter[str] = Counter()
    async with httpx.AsyncClient(headers=bearer()) as client:
        metrics = (await client.get(f"{url}/metrics")).text
    for code, number in re.findall(
        r'^advisor_requests_total\{code="(\d+)".* (\S+)$', metrics, re.M
    ):
        codes[code] += int(float(number))
    return codes


async def drained(writer: Child) -> None:
    """Wait until the writer has moved everything."""
    async with httpx.AsyncClient(headers=bearer()) as client:

        async def empty() -> bool:
            lines = (await client.get(f"{writer.url}/metrics")).text.splitlines()
            return "advisor_journal_backlog 0.0" in lines

        await until(empty)


async def test_no_generated_request_finds_a_defect(
    database_url: str, valkey_url: str, tmp_path: Path
) -> None:
    variables = environment(tmp_path, database_url=database_url, redis_url=valkey_url)
    api, writer = (Child(name, variables, tmp_path / name) for name in ("serve", "writer"))
    try:
        for child in (api, writer):
            child.start()
        for child in (api, writer):
            await child.ready()
        for seed in count(SEED):
            arguments = SHORT if not REQUESTS else LONG if seed == SEED else NEXT
            said = await asyncio.to_thread(schemathesis, api.url, tmp_path, seed, *arguments)
            codes = await answered(api.url)
            if codes.total() >= REQUESTS:
                break
        print(f"{codes.total()} requests answered: {dict(sorted(codes.items()))}")
        assert {code for code in codes if code >= "500"} <= {"503"}
        assert codes["200"] > 20, "a service that refuses everything proves nothing"
        assert re.search(r"API Links: +[1-9]\d* covered", said), "no journey followed a link"
        assert "Traceback" not in api.said + writer.said
        await drained(writer)
    finally:
        for child in (api, writer):
            child.kill()
    assert (await verify_log(database_url)).findings == []
