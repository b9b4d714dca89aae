"""A lean HTTP/1.1 load generator on plain asyncio streams, kept alive, so that it costs less than
what it measures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit


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


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, body: bytes
) -> bytes:
    """One request on an open connection; raises RuntimeError unless the answer is 200."""
    writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
    header = await reader.readuntil(b"\r\n\r\n")
    status = header[9:12]
    length = int(header.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    answer = await reader.readexactly(length)
    if status != b"200":
        raise RuntimeError(f"HTTP {status.decode()}: {answer[:300].decode()}")
    return answer


async def load(
    url: str, token: str, clients: int, requests: int, body: Callable[[int], bytes]
) -> Load:
    """`clients` closed-loop connections send `requests` requests in total; `body(n)` is the
    n-th."""
    parts = urlsplit(url)
    head = (
        f"POST /advise HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: ".encode()
    )
    bodies = [body(number) for number in range(requests)]
    bodies.reverse()
    latencies: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while bodies:
            document = bodies.pop()
            begin = perf_counter()
            await post(reader, writer, head, document)
            latencies.append(perf_counter() - begin)
        writer.close()
        await writer.wait_closed()

    begin = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(latencies, perf_counter() - begin)
