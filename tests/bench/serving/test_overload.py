"""The load generator and what is counted of its answers."""

from __future__ import annotations

import asyncio
import os
from itertools import count
from pathlib import Path

import pytest

from bench.serving.load import Answered, arrivals
from bench.serving.memory import Look, figures, memory_mb, write
from bench.serving.overload import Overload

ANSWERS = {200: b'{"status":"advised"}', 503: b'{"status":503}'}


async def test_arrivals_wait_for_nobody_and_each_is_accounted_for() -> None:
    """Half of the answers come when all requests have come, every third is a refusal."""
    asked, numbers, release = 0, count(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while head := await _head(reader):
            assert b"X-Deadline-Ms: 700" in head
            assert b"Authorization: Bearer secret" in head
            await reader.readexactly(int(head.rsplit(b" ", 1)[1]))
            asked, number = asked + 1, next(numbers)
            if number % 2:
                await release.wait()
            status = 200 if number % 3 else 503
            body = ANSWERS[status]
            length = f"content-length: {len(body)}".encode()
            writer.write(b"HTTP/1.1 %d x\r\n%s\r\n\r\n%s" % (status, length, body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        asyncio.get_running_loop().call_later(0.6, release.set)
        answers, took = await arrivals(url, "secret", 200, 0.5, lambda n: b"x" * (n + 1), 700)
    assert len(answers) == asked > 50
    assert took >= 0.5
    assert {answer.status for answer in answers} == {200, 503}
    assert sum(answer.status == 503 for answer in answers) == len(range(0, asked, 3))


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).strip()
    except asyncio.IncompleteReadError:
        return b""


def test_what_is_let_in_is_told_from_what_is_refused_abstained_and_failed() -> None:
    answers = [
        *(Answered(200, False, 0.1 * n) for n in range(1, 6)),
        Answered(200, True, 1.9),
        Answered(503, False, 0.001),
        Answered(503, False, 0.001),
        Answered(0, False, 0.0),
        Answered(500, False, 0.1),
    ]
    overload = Overload(3.0, 2.0, answers)
    assert overload.throughput == 2.5, "five readings in two seconds"
    assert overload.figures("paced", peak=2.5) == pytest.approx(
        {
            "paced_3x_p50_ms": 400.0,
            "paced_3x_p99_ms": 1900.0,
            "paced_3x_refused": 0.2,
            "paced_3x_abstained": 0.1,
            "paced_3x_failed": 0.2,
            "paced_3x_of_peak": 1.0,
        }
    )


def test_memory_is_kept_as_numbers_and_a_curve(tmp_path: Path) -> None:
    held = [{"api": 100.0, "valkey": 10.0}, {"api": 130.0, "valkey": 10.0}]
    held += [{"api": 131.5, "valkey": 9.0}]
    looks = [Look(500 * n, mb, 250.0 * n) for n, mb in enumerate(held)]
    table, curve = write(looks, tmp_path / "bench")
    assert table.read_text().splitlines() == [
        "decisions,api_mb,valkey_mb,decisions_per_s",
        "0,100.0,10.0,0.0",
        "500,130.0,10.0,250.0",
        "1000,131.5,9.0,500.0",
    ]
    assert curve.read_text().startswith("<?xml")
    assert figures(looks) == {
        "api_mb": 131.5,
        "valkey_mb": 9.0,
        "api_mb_grown_in_second_half": 1.5,
        "valkey_mb_grown_in_second_half": -1.0,
    }
    assert memory_mb([os.getpid()]) > 10
    assert memory_mb([2**22 + 1]) == 0, "a process that ended holds nothing"
