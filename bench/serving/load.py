"""A lean HTTP/1.1 load generator on plain asyncio streams, kept alive, so that it costs less than
what it measures: in a closed loop, or with arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_CONNECTIONS = 480
"""Fewer than the service takes by default: what is measured is its door."""


@dataclass(frozen=True)
class Load:
    """Latencies (s) of all requests, and the wall time (s) they took together."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Empirical quantile of latency (s)."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def post(connection: Connection, head: bytes, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to one request on an open connection."""
    reader, writer = connection
    writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
    header = await reader.readuntil(b"\r\n\r\n")
    length = int(header.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(header[9:12]), await reader.readexactly(length)


def head_of(url: str, token: str, *fields: str) -> bytes:
    """The header of a request, up to its length."""
    lines = ["POST /advise HTTP/1.1", f"Host: {urlsplit(url).netloc}", *fields]
    lines += [f"Authorization: Bearer {token}"]
    lines += ["Content-Type: application/json", "Content-Length: "]
    return "\r\n".join(lines).encode()


async def connect(url: str) -> Connection:
    """A connection to the server at a URL."""
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def load(
    url: str, token: str, clients: int, requests: int, body: Callable[[int], bytes]
) -> Load:
    """`clients` closed-loop connections send `requests` requests in total; `body(n)` is the
    n-th. Raises RuntimeError unless each answer is 200."""
    head = head_of(url, token)
    bodies = [body(number) for number in range(requests)]
    bodies.reverse()
    latencies: list[float] = []

    async def client() -> None:
        connection = await connect(url)
        while bodies:
            document = bodies.pop()
            begin = perf_counter()
            status, answer = await post(connection, head, document)
            if status != 200:
                raise RuntimeError(f"HTTP {status}: {answer[:300].decode()}")
            latencies.append(perf_counter() - begin)
        connection[1].close()
        await connection[1].wait_closed()

    begin = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(latencies, perf_counter() - begin)


class Answered(NamedTuple):
    """What came back for one request of an open loop, and how long after its arrival (s). Status 0:
    the connection was closed, or none was left."""

    status: int
    abstained: bool
    seconds: float


async def arrivals(
    url: str,
    token: str,
    rate: float,
    seconds: float,
    body: Callable[[int], bytes],
    deadline_ms: int,
) -> tuple[list[Answered], float]:
    """Requests that arrive by chance, `rate` a second for so many seconds, whatever became of those
    before; at most `MAX_CONNECTIONS` at once. The answers, and when the last came (s)."""
    head, chance = head_of(url, token, f"X-Deadline-Ms: {deadline_ms}"), random.Random(1)
    opened: list[Connection] = []
    idle: list[Connection] = []
    answers: list[Answered] = []
    under_way: set[asyncio.Task[None]] = set()

    async def ask(document: bytes, arrival: float) -> None:
        status, answer = 0, b""
        while idle and idle[-1][0].at_eof():  # The server closes what was idle for long.
            idle.pop()
        with suppress(OSError, asyncio.IncompleteReadError):
            if idle:
                connection = idle.pop()
            else:
                connection = await connect(url)
                opened.append(connection)
            status, answer = await post(connection, head, document)
            idle.append(connection)
        abstained = b'"status":"abstained"' in answer
        answers.append(Answered(status, abstained, perf_counter() - arrival))

    begin = perf_counter()
    arrival = begin + chance.expovariate(rate)
    numbers = count()
    while arrival < begin + seconds:
        await asyncio.sleep(max(arrival - perf_counter(), 0))
        if len(under_way) >= MAX_CONNECTIONS:
            answers.append(Answered(0, False, 0.0))
        else:
            task = asyncio.create_task(ask(body(next(numbers)), arrival))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        arrival += chance.expovariate(rate)
    await asyncio.gather(*under_way)
    took = perf_counter() - begin
    for _, writer in opened:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return answers, took
